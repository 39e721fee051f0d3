"""Training windows: what is drawn, from which stream, and how often."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from tadiff_rt.errors import UsageError
from tadiff_train.data.augment import AUGMENTS, augment
from tadiff_train.data.cache import CachedCase
from tadiff_train.data.windows import Windows, choose_sessions, choose_target, collate
from tests.train.toy_runs import discs


def windows_of(*cases: CachedCase, **options) -> Windows:
    return Windows(cases, **{"seed": 5, "num_timesteps": 1000, **options})


def long_case(sessions: int = 7) -> CachedCase:
    """Every voxel says which slice, session, modality and column it is of."""
    rng = np.random.default_rng(0)
    images = rng.random((3, sessions, 3, 8, 6)).astype(np.float16)
    masks = rng.random((3, sessions, 8, 6)) < 0.4
    days = tuple(30 * s for s in range(sessions))
    return CachedCase("sub-long", days, tuple(s % 3 for s in range(sessions)), images, masks)


def test_the_draws_of_a_window():
    """The order of draws, written out: a change would make every run another one."""
    cases = (discs(0), long_case())
    windows = windows_of(*cases, num_timesteps=600)
    sizes = set()
    for index in (*range(12), 77, 10**9):
        rng = np.random.Generator(np.random.Philox(key=5, counter=[0, index, 0, 0]))
        case = cases[rng.integers(2)]
        at = rng.integers(3)
        target = rng.integers(1, len(case.days))
        if target > 3 and rng.random() < 0.3:
            before = sorted(rng.choice(target, 3, replace=False))
        else:
            before = [max(target - k, 0) for k in (3, 2, 1)]
        sessions = [*before, target]
        step = -1 if rng.random() < 0.5 else 1
        t = rng.integers(1, 601)
        got = windows[index]
        expected = case.images[at][sessions][..., ::step].astype(np.float32)
        assert np.array_equal(got.images.numpy(), expected)
        assert np.array_equal(got.masks.numpy(), case.masks[at][sessions][..., ::step])
        assert got.days.tolist() == [case.days[s] for s in sessions]
        assert got.treatments.tolist() == [case.treatments[s] for s in sessions]
        assert (int(got.target), int(got.t)) == (3, t)
        noise = rng.standard_normal(expected.shape[1:], dtype=np.float32)
        assert np.array_equal(got.noise.numpy(), noise)
        sizes.add(expected.shape[-1])
    assert sizes == {16, 6}  # both patients occurred


def test_types_and_collation():
    windows = windows_of(discs(0))
    batch = collate([windows[k] for k in range(3)])
    assert batch.images.shape == (3, 4, 3, 16, 16)
    assert batch.masks.shape == (3, 4, 16, 16)
    assert batch.noise.shape == (3, 3, 16, 16)
    assert {batch.images.dtype, batch.masks.dtype, batch.days.dtype} == {torch.float32}
    assert {batch.target.dtype, batch.t.dtype} == {torch.int64}
    assert torch.equal(batch.images[2], windows[2].images)
    moved = batch.to(torch.device("meta"))
    assert {x.device.type for x in vars(moved).values()} == {"meta"}


@pytest.mark.parametrize(
    "option",
    [
        {"slots": "published"},
        {"slots": "paper"},
        {"augmentation": "none"},
        {"augmentation": "full"},
        {"batch_size": 8},
    ],
)
def test_an_option_leaves_all_other_draws_as_they_are(option):
    plain, other = windows_of(long_case()), windows_of(long_case(), **option)
    for k in range(40):
        a, b = plain[k], other[k]
        assert torch.equal(a.noise, b.noise)
        assert torch.equal(a.days, b.days)
        assert a.t == b.t
        if "augmentation" not in option:
            assert torch.equal(a.images, b.images)


def test_seeds_and_indices_give_other_windows():
    first = windows_of(discs(0))
    noises = [first[k].noise for k in range(3)] + [windows_of(discs(0), seed=6)[0].noise]
    for i, a in enumerate(noises):
        assert all(not torch.equal(a, b) for b in noises[:i])
    assert torch.equal(first[2].noise, windows_of(discs(0))[2].noise)


def test_patients_are_drawn_evenly_whatever_they_have():
    windows = windows_of(discs(0, 4), long_case())
    sizes = Counter(windows[k].images.shape[-1] for k in range(1000))
    assert sizes[16] == pytest.approx(500, abs=65)  # four deviations


def test_patients_without_a_window_are_passed_over():
    one, two = discs(0, 1), discs(1, 2)
    empty = dataclasses.replace(two, images=two.images[:0], masks=two.masks[:0])
    windows = windows_of(one, empty, two)
    assert [case.name for case in windows.cases] == ["sub-1"]
    with pytest.raises(UsageError, match="TD3032"):
        windows_of(one, empty)


def test_short_history_repeats_the_earliest_session_at_the_front():
    for sources in ("published", "mixed"):
        rng = np.random.default_rng(0)
        drawn = {tuple(choose_sessions(4, rng, sources).tolist()) for _ in range(200)}
        assert drawn == {(0, 0, 0, 1), (0, 0, 1, 2), (0, 1, 2, 3)}


def test_published_sources_are_those_before_the_target():
    rng = np.random.default_rng(1)
    for _ in range(300):
        a, b, c, target = choose_sessions(9, rng, "published")
        assert [a, b, c] == [max(target - k, 0) for k in (3, 2, 1)]
    mixed = [choose_sessions(9, rng, "mixed") for _ in range(600)]
    assert any(s[2] != s[3] - 1 for s in mixed)
    assert all((np.diff(s) > 0).all() for s in mixed if s[3] > 2)


def targets(days, slots, batches: int, size: int = 1) -> list[int]:
    """Slots of windows with these days."""
    rng = np.random.default_rng(2)
    drawn = []
    for _ in range(batches):
        seed = int(rng.integers(2**31))
        for _ in range(size):
            of_batch = np.random.default_rng(seed)
            drawn.append(choose_target(np.array(days), slots, rng, of_batch))
    return drawn


@pytest.mark.parametrize(
    ("slots", "days", "shares"),
    [
        ("future", (0, 1, 2, 3), (0, 0, 0, 1)),
        ("published", (0, 1, 2, 3), (1 / 8, 1 / 8, 1 / 8, 5 / 8)),
        ("published", (0, 1, 1, 3), (1 / 4, 0, 0, 3 / 4)),
        ("published", (0, 0, 2, 3), (0, 0, 1 / 4, 3 / 4)),
        ("published", (0, 0, 0, 3), (1 / 8, 1 / 8, 1 / 8, 5 / 8)),
        ("paper", (0, 1, 2, 3), (0.2, 0.15, 0.15, 0.5)),
        ("paper", (0, 0, 2, 3), (0, 0, 0.15, 0.85)),
        ("paper", (0, 0, 0, 3), (0, 0, 0, 1)),
    ],
)
def test_proportions_of_target_slots(slots, days, shares):
    count = Counter(targets(days, slots, 8000))
    for slot, share in enumerate(shares):
        deviation = (8000 * share * (1 - share)) ** 0.5
        assert count[slot] == pytest.approx(8000 * share, abs=4 * deviation + 1e-9)


def test_past_middle_and_future_of_full_windows():
    """12.5, 25 and 62.5 % as published; 20, 30 and 50 % as is reported of the paper."""
    for slots, expected in (("published", (0.125, 0.25, 0.625)), ("paper", (0.2, 0.3, 0.5))):
        windows = windows_of(discs(0), slots=slots, sources="published", batch_size=4)
        full = [w for w in map(windows.__getitem__, range(4000)) if len(set(w.days.tolist())) == 4]
        count = Counter(int(w.target) for w in full)
        got = np.array([count[0], count[1] + count[2], count[3]]) / len(full)
        # About 1300 windows in 1000 batches.
        np.testing.assert_allclose(got, expected, atol=0.06)


def test_published_coins_are_of_a_batch():
    """With every slot drawn, a batch of 64 windows is all future, or a fourth of each."""
    windows = windows_of(discs(0), slots="published", batch_size=64)
    future = []
    for batch in range(12):
        slots = [int(windows[64 * batch + k].target) for k in range(64)]
        future.append(slots.count(3) / 64)
    plain = [share for share in future if share == 1]
    assert 0 < len(plain) < 12
    assert max(share for share in future if share < 1) < 0.75


def test_flip_and_none():
    flipped = 0
    plain, none = windows_of(long_case()), windows_of(long_case(), augmentation="none")
    for k in range(60):
        a, b = plain[k], none[k]
        if not torch.equal(a.images, b.images):
            flipped += 1
            assert torch.equal(a.images, b.images.flip(-1))
            assert torch.equal(a.masks, b.masks.flip(-1))
    assert 15 <= flipped <= 45


def test_full_augmentation_is_that_of_augment():
    """From its own stream, on what the cache holds, the target's intensities kept."""
    full = windows_of(discs(0), augmentation="full", slots="paper")
    none = windows_of(discs(0), augmentation="none", slots="paper")
    changed = 0
    for k in range(12):
        plain = none[k]
        rng = np.random.Generator(np.random.Philox(key=5, counter=[0, k, 3, 0]))
        images, masks = augment(
            plain.images.numpy(),
            plain.masks.numpy() > 0,
            rng,
            AUGMENTS["full"],
            target=int(plain.target),
        )
        assert np.array_equal(full[k].images.numpy(), images)
        assert np.array_equal(full[k].masks.numpy(), masks)
        changed += not torch.equal(full[k].images, plain.images)
    assert changed == 12
