"""Splits by patient: a function of the name alone, and shares as those of a fair draw."""

import dataclasses
import hashlib
import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from tadiff_rt.errors import UsageError
from tadiff_train.data.entry import CachedCase
from tadiff_train.data.split import FRACTIONS, parse_fractions, split_by_patient, split_of

NAMES = [f"sub-{i:04}" for i in range(10_000)]


def by_formula(name: str, shares: dict[str, str], salt: str) -> str:
    """The documented formula, in whole numbers and exact fractions."""
    digest = hashlib.sha256(salt.encode() + b"\x00" + name.encode()).hexdigest()
    u = Fraction(int(digest[:16], 16), 2**64)
    total = Fraction(0)
    for part, share in shares.items():
        total += Fraction(share)
        if u < total:
            return part
    raise AssertionError("shares do not add up to 1")


@pytest.mark.parametrize(
    ("shares", "salt"),
    [
        ({"train": "0.8", "val": "0.1", "test": "0.1"}, "tadiff"),
        ({"train": "0.7", "test": "0.3"}, "another"),
        ({"test": "0.25", "none": "0", "train": "0.75"}, ""),
        ({"all": "1"}, "x"),
    ],
)
def test_parts_are_those_of_the_formula(shares, salt):
    fractions = {part: float(share) for part, share in shares.items()}
    for name in (*NAMES[:2000], "Patient-001", "sub-é"):
        assert split_of(name, fractions, salt) == by_formula(name, shares, salt)


def test_a_known_patient():
    """SHA-256 by another program: printf 'tadiff\\0sub-0001' | sha256sum."""
    digest = hashlib.sha256(b"tadiff\0sub-0001").hexdigest()
    assert digest.startswith("2f1d8f0864ec3022")
    # 0x2f / 0x100 is 0.18: below 0.8, and below 0.2 but not 0.18.
    assert split_of("sub-0001") == "train"
    assert split_of("sub-0001", {"a": 0.2, "b": 0.8}) == "a"
    assert split_of("sub-0001", {"a": 0.18, "b": 0.82}) == "b"


def test_shares_are_those_of_a_fair_draw():
    counts = Counter(split_of(name) for name in NAMES)
    for part, share in FRACTIONS.items():
        deviation = np.sqrt(len(NAMES) * share * (1 - share))
        assert abs(counts[part] - share * len(NAMES)) < 4 * deviation
    # Another salt is another draw: the parts agree as often as chance makes them.
    same = sum(split_of(name) == split_of(name, salt="other") for name in NAMES)
    expected = sum(share**2 for share in FRACTIONS.values())
    assert same / len(NAMES) == pytest.approx(expected, abs=0.02)


def test_other_fractions_move_patients_across_moved_boundaries_only():
    more = {"train": 0.85, "val": 0.05, "test": 0.1}
    for name in NAMES[:2000]:
        before, after = split_of(name), split_of(name, more)
        assert (before == "test") == (after == "test")
        assert before != "train" or after == "train"


def test_the_end_of_a_rounded_sum_belongs_to_the_last_part():
    """0.1 ten times is 0.9999999999999999; and a part of no share gets nobody."""
    ten = {f"part{i}": 0.1 for i in range(10)}
    assert set(itertools.accumulate(ten.values())) & {1.0} == set()
    found = Counter(split_of(name, {**ten, "none": 0.0}) for name in NAMES)
    assert set(found) == set(ten)


def case(name: str, slices: int = 3) -> CachedCase:
    images = np.zeros((slices, 2, 3, 4, 4), np.float16)
    return CachedCase(name, (0, 9), (0, 1), images, images[:, :, 0] > 0)


def test_slices_of_one_patient_never_cross():
    """Every case of a patient, however often and among whomever it comes, is in one part."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        names = [f"sub-{i}" for i in rng.integers(0, 60, 40)]
        cases = [dataclasses.replace(case(name), days=(0, i)) for i, name in enumerate(names)]
        parts = split_by_patient(cases)
        assert list(parts) == ["train", "val", "test"]
        owners = [{c.name for c in part} for part in parts.values()]
        assert sum(map(len, owners)) == len(set(names))
        assert sorted(c.days[1] for part in parts.values() for c in part) == list(range(40))
        for part, members in parts.items():
            assert all(split_of(c.name) == part for c in members)
            assert [c.days[1] for c in members] == sorted(c.days[1] for c in members)


def test_a_part_may_be_empty():
    parts = split_by_patient([case("sub-1")], {"train": 1.0, "test": 0.0})
    assert (len(parts["train"]), parts["test"]) == (1, [])


@pytest.mark.parametrize(
    "fractions",
    [
        {},
        {"train": 0.8},
        {"train": 1.2, "test": -0.2},
        {"a": float("nan"), "b": 1.0},
        {"a": 1.001},
    ],
)
def test_fractions_must_be_shares_of_a_whole(fractions):
    for call in (lambda: split_of("sub-1", fractions), lambda: split_by_patient([], fractions)):
        with pytest.raises(UsageError, match="add up to 1") as caught:
            call()
        assert caught.value.code == "TD3070"


def test_fractions_as_text():
    assert parse_fractions("train=0.8, val=.1,test=0.1") == FRACTIONS
    assert list(parse_fractions("b=0.5,a=0.5")) == ["b", "a"]
    for text in ("", "train", "train=x", "=1", "a=0.5,a=0.5", "a=nan", "a=0.4,b=0.5", "a=inf"):
        with pytest.raises(UsageError) as caught:
            parse_fractions(text)
        assert caught.value.code == "TD3070"
