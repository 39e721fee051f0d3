"""Philox against the vectors of its authors; normals against the documented mapping."""

import itertools
import math

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from tadiff_rt.errors import UsageError
from tadiff_rt.noise import INITIAL, initial_noise, normal, philox4x32, step_noise
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import make_plan, solve

WORD = 2**32 - 1


def philox_one(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    return tuple(int(w) for w in philox4x32([np.uint32(c) for c in counter], key))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((WORD,) * 4, (WORD, WORD), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(counter, key, expected):
    """kat_vectors of the Random123 distribution, philox 4x32, 10 rounds."""
    assert philox_one(counter, key) == expected


def philox_slow(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Salmon et al. 2011, on Python integers."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        low, high = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (high >> 32) ^ b ^ k0, high & WORD, (low >> 32) ^ d ^ k1, low & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return a, b, c, d


words = st.integers(0, WORD)


@given(st.lists(st.tuples(words, words, words, words), min_size=1, max_size=5), words, words)
def test_vectorised_words_equal_the_definition(counters, k0, k1):
    columns = [np.array(column, dtype=np.uint32) for column in zip(*counters, strict=True)]
    got = zip(*(word.tolist() for word in philox4x32(columns, (k0, k1))), strict=True)
    assert list(got) == [philox_slow(counter, (k0, k1)) for counter in counters]


@given(st.integers(0, 2**64 - 1), words, words, words, st.integers(1, 11))
def test_normals_are_box_muller_of_the_documented_words(seed, sample, slice_index, step, n):
    """Element by element: which block, which word, which counter slot, which half of the seed."""
    expected = []
    for block in range((n + 3) // 4):
        counter = (block, slice_index, sample, step)
        w = philox_slow(counter, (seed % 2**32, seed // 2**32))
        for radius_word, angle_word in (w[:2], w[2:]):
            r = math.sqrt(-2 * math.log((radius_word + 1) / 2**32))
            angle = 2 * math.pi * (angle_word / 2**32)
            expected += [r * math.cos(angle), r * math.sin(angle)]
    got = normal(seed, sample, slice_index, step, (n,))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected[:n], rtol=1.2e-7, atol=1e-14)


def test_extreme_words_give_finite_normals(monkeypatch):
    """Word 2^32 - 1 is u = 1 (radius 0); word 0 is the smallest u and the largest radius."""
    for first in (0, WORD):
        fixed = tuple(np.full(1, w, np.uint32) for w in (first, 0, first, 0))
        monkeypatch.setattr("tadiff_rt.noise.philox4x32", lambda counter, key, f=fixed: f)
        got = normal(0, 0, 0, 0, (4,))
        radius = math.sqrt(2 * 32 * math.log(2)) if first == 0 else 0.0
        np.testing.assert_allclose(got, [radius, 0, radius, 0], rtol=1e-7)


@given(st.integers(0, 40), st.integers(0, 40))
def test_a_larger_array_begins_with_a_smaller_one(n, more):
    np.testing.assert_array_equal(normal(7, 1, 2, 3, (n + more,))[:n], normal(7, 1, 2, 3, (n,)))


def test_array_fills_in_c_order():
    np.testing.assert_array_equal(normal(7, 1, 2, 3, (3, 5, 2)).ravel(), normal(7, 1, 2, 3, (30,)))


small = st.integers(0, 3)
identities = st.tuples(st.sampled_from([0, 1, 2**32, 2**64 - 1]), small, small, small)


@given(identities, identities)
def test_different_identities_share_no_counter(one, other):
    """12 words of each; two equal 32-bit radii-and-angles in the same place would be reuse."""
    a, b = normal(*one, (12,)), normal(*other, (12,))
    assert np.array_equal(a, b) == (one == other)


def test_no_block_of_a_volume_repeats():
    """Every (slice, sample, step) of a small run: as many different leading values as draws.

    The first two normals of a block hold 64 random bits; among 12,288 blocks a chance repeat has
    probability 4e-12, rounding to float32 included below 1e-4.
    """
    draws = [normal(5, s, k, i, (256,)) for s in range(4) for k in range(6) for i in range(8)]
    pairs = np.concatenate(draws).reshape(-1, 4)[:, :2]
    assert len(np.unique(pairs, axis=0)) == len(pairs) == 4 * 6 * 8 * 64


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 9)), min_size=1, max_size=6))
def test_a_row_does_not_depend_on_its_batch(rows):
    """Any batch, order or neighbours: the row is the draw of its own (slice, sample)."""
    batch, later = initial_noise(3, rows, (2, 3)), step_noise(3, rows, (2, 3))(4)
    assert batch.shape == later.shape == (len(rows), 2, 3)
    for k, (slice_index, sample) in enumerate(rows):
        np.testing.assert_array_equal(batch[k], normal(3, sample, slice_index, INITIAL, (2, 3)))
        np.testing.assert_array_equal(later[k], normal(3, sample, slice_index, 5, (2, 3)))


def test_first_solver_row_does_not_reuse_the_initial_noise():
    rows = [(0, 0)]
    assert not np.array_equal(initial_noise(3, rows, (4,)), step_noise(3, rows, (4,))(0))


def test_ancestral_run_of_a_sample_is_the_same_alone_and_in_a_batch():
    plan = make_plan(NoiseSchedule.linear(), "ddpm", 5)
    rows = [(8, 0), (8, 1), (3, 1)]

    def run(rows):
        x_T = initial_noise(11, rows, (2, 4))
        return solve(lambda x, t, i: (np.tanh(x), None), x_T, plan, step_noise(11, rows, (2, 4)))

    together, alone = run(rows)[0], run(rows[1:2])[0]
    np.testing.assert_array_equal(together[1], alone[0])


def test_moments_and_distribution():
    """2^18 draws of a fixed seed; each bound is 5 sigma, false alarm 6e-7 were the seed random."""
    n = 2**18
    z = normal(20250701, 0, 0, 0, (n,)).astype(np.float64)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 5 * math.sqrt(variance / n), f"moment {power}"
    # Kolmogorov-Smirnov: P(sqrt(n) D > 2.74) = 2 exp(-2 · 2.74²) = 6e-7
    distance = np.abs(scipy.special.ndtr(np.sort(z)) - (np.arange(n) + 0.5) / n).max()
    assert distance * math.sqrt(n) < 2.74


def test_streams_are_uncorrelated():
    """Neighbours in every coordinate, and shifts inside one stream; 5 sigma each (6e-7)."""
    n = 2**15
    identities = [(9, 0, 0, 0), (10, 0, 0, 0), (9, 1, 0, 0), (9, 0, 1, 0), (9, 0, 0, 1)]
    streams = [normal(*identity, (n,)).astype(np.float64) for identity in identities]
    streams += [np.roll(streams[0], shift) for shift in (1, 2, 3, 4)]
    for a, b in itertools.combinations(streams, 2):
        assert abs((a * b).mean()) < 5 / math.sqrt(n)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 0, 0), r"seed must be an integer in 0 to 2\^64 - 1, got -1"),
        ((2**64, 0, 0, 0), "seed must be"),
        ((0.5, 0, 0, 0), "seed must be .* got 0.5"),
        (("abc", 0, 0, 0), "seed must be .* got 'abc'"),
        ((0, 2**32, 0, 0), r"sample must be an integer in 0 to 2\^32 - 1"),
        ((0, 0, -1, 0), "slice must be"),
        ((0, 0, 0, 2**32), "step must be"),
    ],
)
def test_rejects_what_does_not_fit_the_counter(arguments, message):
    with pytest.raises(UsageError, match=message) as error:
        normal(*arguments, (1,))
    assert error.value.code == "TD3017"
