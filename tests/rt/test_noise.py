"""Philox against the vectors of its authors; noise against its definitions, slowly, and its laws.

Statistical bounds are 5 sigma or the same probability, 6e-7, of a false alarm were the fixed seeds
random; some 160 are checked in all.
"""

import itertools
import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tadiff_rt import latin, noise
from tadiff_rt.errors import UsageError
from tadiff_rt.gaussian import ar1_weights, normal_quantile
from tadiff_rt.noise import INITIAL, NoiseSource, normal, philox4x32
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import make_plan, solve

WORD = 2**32 - 1
FALSE_ALARM = 6e-7


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


@given(st.integers(0, 2**64 - 1), words, words, st.integers(0, WORD - 2), st.integers(1, 11))
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
    source = NoiseSource(3)
    batch, later = source.initial(rows, (2, 3)), source.step(rows, (2, 3))(4)
    assert batch.shape == later.shape == (len(rows), 2, 3)
    for k, (slice_index, sample) in enumerate(rows):
        np.testing.assert_array_equal(batch[k], normal(3, sample, slice_index, INITIAL, (2, 3)))
        np.testing.assert_array_equal(later[k], normal(3, sample, slice_index, 5, (2, 3)))


def test_first_solver_row_does_not_reuse_the_initial_noise():
    rows = [(0, 0)]
    source = NoiseSource(3)
    assert not np.array_equal(source.initial(rows, (4,)), source.step(rows, (4,))(0))


def test_ancestral_run_of_a_sample_is_the_same_alone_and_in_a_batch():
    plan = make_plan(NoiseSchedule.linear(), "ddpm", 5)
    rows = [(8, 0), (8, 1), (3, 1)]

    def run(rows):
        source = NoiseSource(11)
        x_T, fresh = source.initial(rows, (2, 4)), source.step(rows, (2, 4))
        return solve(lambda x, t, i: (np.tanh(x), None), x_T, plan, fresh)

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
        ((0, 0, 0, 2**32 - 1), r"step must be below 2\^32 - 2, got 4294967295"),
        ((0, 0, 0, 2**32 - 2), r"step must be below 2\^32 - 2, got 4294967294"),
    ],
)
def test_rejects_what_does_not_fit_the_counter(arguments, message):
    with pytest.raises(UsageError, match=message) as error:
        normal(*arguments, (1,))
    assert error.value.code == "TD3017"


def clear_caches():
    noise._cached_normal.cache_clear()
    latin._strata.cache_clear()


def distance_from_normal(z: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance times sqrt(n); above 2.74 with probability `FALSE_ALARM`."""
    u = scipy.special.ndtr(np.sort(z, axis=None).astype(np.float64))
    n = u.size
    return math.sqrt(n) * max((np.arange(1, n + 1) / n - u).max(), (u - np.arange(n) / n).max())


def check_standard_normal(z: np.ndarray):
    z = z.astype(np.float64)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 5 * math.sqrt(variance / z.size), power
    assert distance_from_normal(z) < 2.74


def check_uncorrelated(a: np.ndarray, b: np.ndarray):
    """Of independent standard normal arrays."""
    assert abs((a.astype(np.float64) * b).mean()) < 5 / math.sqrt(a.size)


SOURCES = [NoiseSource(3), NoiseSource(3, coherence=0.5), NoiseSource(3, latin=10)]
each_source = pytest.mark.parametrize("source", SOURCES, ids=["plain", "coherent", "latin"])


def test_defaults_are_the_independent_draws_bit_for_bit():
    rows, shape = [(7, 2), (0, 0), (7, 3)], (3, 5)
    source = NoiseSource(2**63 + 5)
    for k, (at, sample) in enumerate(rows):
        expected = [normal(2**63 + 5, sample, at, step, shape) for step in (INITIAL, 4)]
        np.testing.assert_array_equal(source.initial(rows, shape)[k], expected[0])
        np.testing.assert_array_equal(source.step(rows, shape)(3)[k], expected[1])


@each_source
@given(rows=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=6))
def test_a_row_alone_is_the_row_of_any_batch(source, rows):
    """Whatever the order and the neighbours, with warm caches and with empty ones."""
    batch, later = source.initial(rows, (2, 3)), source.step(rows, (2, 3))(4)
    assert batch.shape == later.shape == (len(rows), 2, 3)
    assert batch.dtype == later.dtype == np.float32
    clear_caches()
    for k, row in enumerate(rows):
        np.testing.assert_array_equal(source.initial([row], (2, 3))[0], batch[k])
        np.testing.assert_array_equal(source.step([row], (2, 3))(4)[0], later[k])


@each_source
def test_a_caller_may_overwrite_what_it_got(source):
    first = source.initial([(2, 1)], (3,))
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(source.initial([(2, 1)], (3,)), kept)


@each_source
def test_every_part_of_the_identity_counts(source):
    """A cache that forgot a part of its key would repeat a draw."""
    draws = [
        NoiseSource(seed, source.coherence, source.latin).initial([(at, sample)], (8,))
        for seed in (3, 4)
        for at in (0, 1, 2)
        for sample in (0, 1)
    ]
    draws += [source.step([(at, k)], (8,))(i) for at in (0, 1) for k in (0, 1) for i in (0, 1)]
    assert len({draw.tobytes() for draw in draws}) == len(draws) == 20


@each_source
def test_a_larger_slice_begins_with_a_smaller_one(source):
    large, small = (source.initial([(1, 1)], shape) for shape in ((30,), (3, 7)))
    np.testing.assert_array_equal(large[0, :21], small.ravel())


@pytest.mark.parametrize("coherence", [0.01, 0.5, 0.9, 0.99])
def test_weights_have_the_stated_correlation(coherence):
    """Autocorrelation of w, exactly: rho^d cut at 2^-12, in closed form and within the bound."""
    w = ar1_weights(coherence)
    J = 1 + math.floor(math.log(2**-12) / math.log(coherence))
    assert len(w) == J
    lags = np.arange(J + 3)
    got = np.concatenate([np.correlate(w, w, "full")[J - 1 :], np.zeros(3)])
    stated = coherence**lags * (1 - coherence ** (2.0 * (J - lags))) / (1 - coherence ** (2 * J))
    np.testing.assert_allclose(got, np.where(lags < J, stated, 0), rtol=1e-12, atol=1e-15)
    shortfall = coherence**lags - got
    assert shortfall.min() > -1e-15
    assert shortfall.max() < 2**-12


def test_number_of_terms():
    assert [len(ar1_weights(rho)) for rho in (0, 2**-12.1, 0.5, 0.9, 0.99)] == [1, 1, 13, 79, 828]


@pytest.mark.parametrize("coherence", [0.5, 0.9])
@pytest.mark.parametrize("at", [0, 6, 100])
def test_coherent_noise_is_the_weighted_sum_of_earlier_slices(coherence, at):
    """The definition in exact sums; slices below 0 are counted back from 2^32."""
    J = 1 + math.floor(math.log(2**-12) / math.log(coherence))
    scale = math.sqrt((1 - coherence**2) / (1 - coherence ** (2 * J)))
    source = NoiseSource(2**40 + 1, coherence)
    for step in (INITIAL, 3):
        terms = [normal(2**40 + 1, 2, (at - j) % 2**32, step, (2, 5)) for j in range(J)]
        weighted = [scale * coherence**j * n.astype(np.float64) for j, n in enumerate(terms)]
        expected = [math.fsum(values) for values in np.stack(weighted, -1).reshape(-1, J)]
        rows = [(at, 2)]
        got = source.step(rows, (2, 5))(2) if step else source.initial(rows, (2, 5))
        # Half a unit of float32; the sum of 79 terms in float64 is off by 1e-14 at most.
        np.testing.assert_allclose(got.ravel(), expected, rtol=6e-8, atol=1e-13)


@pytest.mark.parametrize("coherence", [0.5, 0.9])
def test_coherent_noise_is_standard_normal_with_the_correlation_asked_for(coherence):
    """Lags 1 … 5, n = 2^16 elements and 2 starts; the variance of a product is 1 + rho^(2d)."""
    n = 2**16
    source = NoiseSource(20250702, coherence)
    z = source.initial([(at, 0) for at in range(12)], (n,)).astype(np.float64)
    later = source.step([(at, 0) for at in (4, 5)], (n,))(0)
    check_standard_normal(z[3])
    check_standard_normal(later[0])
    for lag in range(1, 6):
        for start in (0, 6):
            got = (z[start] * z[start + lag]).mean()
            bound = 5 * math.sqrt((1 + coherence ** (2 * lag)) / n) + 2**-12
            assert abs(got - coherence**lag) < bound, f"lag {lag}: {got}"
    got = (later[0].astype(np.float64) * later[1]).mean()
    assert abs(got - coherence) < 5 * math.sqrt((1 + coherence**2) / n), f"steps: {got}"


def test_coherent_noise_is_independent_in_all_but_the_slice():
    """Elements, elements of the next slice, samples, steps."""
    n = 2**16
    source = NoiseSource(8, coherence=0.9)
    here, next_slice, sample = source.initial([(40, 0), (41, 0), (40, 1)], (n,))
    steps = source.step([(40, 0)], (n,))
    for other in (sample, steps(0)[0], steps(1)[0]):
        check_uncorrelated(here, other)
    check_uncorrelated(steps(0)[0], steps(1)[0])
    for shift in (1, 2, 3, 4, 192):
        check_uncorrelated(here, np.roll(here, shift))
        check_uncorrelated(here, np.roll(next_slice, shift))


def test_quantile_against_scipy():
    """Wichura claims 1 in 10^16; 8.5e-16 apart was measured, with three roundings in each."""
    tails = np.logspace(-300, -1, 4000)
    u = np.concatenate([np.linspace(1e-6, 1 - 1e-6, 20001), tails, 1 - tails[tails > 1e-15]])
    np.testing.assert_allclose(normal_quantile(u), scipy.special.ndtri(u), rtol=1e-15, atol=0)


@pytest.mark.parametrize("u", [0.0, 1.0, -0.1, np.nan])
def test_quantile_refuses_what_has_none(u):
    with pytest.raises(ValueError, match="strictly inside 0 to 1"):
        normal_quantile(np.array([0.5, u]))


def stratified_slow(seed: int, sample: int, at: int, N: int, element: int) -> float:
    """x_T of one element of a Latin hypercube, from Philox on Python integers and scipy."""
    block, word = divmod(element, 4)
    key = (seed % 2**32, seed // 2**32)
    order = sorted((philox_slow((block, at, s, WORD), key)[word], s) for s in range(N))
    rank = [s for _, s in order].index(sample)
    place = (philox_slow((block, at, sample, WORD - 1), key)[word] + 0.5) / 2**32
    return scipy.special.ndtri((rank + place) / N)


@given(st.integers(0, 2**64 - 1), words, st.integers(2, 9), st.data())
def test_latin_hypercube_is_the_documented_one(seed, at, N, data):
    sample = data.draw(st.integers(0, N - 1))
    got = NoiseSource(seed, latin=N).initial([(at, sample)], (2, 3))
    expected = [stratified_slow(seed, sample, at, N, e) for e in range(6)]
    np.testing.assert_allclose(got.ravel(), expected, rtol=6e-8)


def test_a_hypercube_worked_in_parts_is_the_same():
    """4096 samples: 256 elements a part, three parts here."""
    N, elements = 4096, (3, 256, 511, 520)
    got = NoiseSource(1, latin=N).initial([(2, 4095)], (521,))[0]
    expected = [stratified_slow(1, 4095, 2, N, e) for e in elements]
    np.testing.assert_allclose(got[list(elements)], expected, rtol=6e-8)


def test_equal_words_rank_by_sample(monkeypatch):
    N, n = 40, 64
    words_of = np.random.default_rng(0).integers(0, 3, (4, N, n // 4)).astype(np.uint32)
    monkeypatch.setattr(latin, "philox4x32", lambda counter, key: tuple(words_of))
    clear_caches()
    strata = latin._strata(0, 0, N, n // 4)
    clear_caches()
    for e in range(n):
        order = sorted(range(N), key=lambda s: (words_of[e % 4, s, e // 4], s))
        assert strata[:, e].tolist() == [order.index(s) for s in range(N)]


@pytest.mark.parametrize("N", [2, 8, 4096])
def test_extreme_places_give_finite_normals(monkeypatch, N):
    """Words 0 and 2^32 - 1 of the outer strata: the quantile is never asked at 0 or 1."""
    strata = np.array([[0] * 4] + [[N - 1] * 4] * (N - 1), dtype=np.uint16)
    monkeypatch.setattr(latin, "_strata", lambda *_: strata)
    for sample, word, sign in ((0, 0, -1), (N - 1, WORD, 1)):
        fixed = tuple(np.full(1, word, np.uint32) for _ in range(4))
        monkeypatch.setattr(latin, "philox4x32", lambda counter, key, f=fixed: f)
        got = NoiseSource(0, latin=N).initial([(0, sample)], (4,))
        expected = -sign * scipy.special.ndtri(2.0**-33 / N)
        # 1 - 2^-33/N is rounded to 2^-53; its quantile moves by 2^-20 N / z relative at most.
        np.testing.assert_allclose(got, np.full((1, 4), expected), rtol=1e-6)


@pytest.mark.parametrize("N", [2, 5, 16])
def test_every_element_has_every_stratum_once(N):
    z = NoiseSource(6, latin=N).initial([(3, k) for k in range(N)], (3, 50, 50))
    strata = np.floor(scipy.special.ndtr(z.astype(np.float64)) * N).astype(int)
    np.testing.assert_array_equal(np.sort(strata, axis=0)[:, 0, 0, 0], np.arange(N))
    assert (np.sort(strata, axis=0) == np.arange(N)[:, None, None, None]).all()


def test_a_sample_of_a_hypercube_is_standard_normal():
    n = 2**17
    z = NoiseSource(20250703, latin=8).initial([(0, 0), (0, 5), (9, 7)], (n,))
    for sample in z:
        check_standard_normal(sample)


def test_samples_of_a_hypercube_have_the_correlation_of_strata():
    """E[z_s z_t] = −Σ m_i² / (N (N − 1)) with m_i the mean of stratum i, whose sum is 0."""
    N, n = 8, 2**16
    edge = scipy.stats.norm.pdf(scipy.stats.norm.ppf(np.arange(N + 1) / N))
    expected = -((N * np.diff(edge)) ** 2).sum() / (N * (N - 1))
    z = NoiseSource(12, latin=N).initial([(1, k) for k in range(N)], (n,)).astype(np.float64)
    for a, b in itertools.combinations(z, 2):
        assert abs((a * b).mean() - expected) < 5 * (a * b).std() / math.sqrt(n)


def test_elements_slices_and_orders_of_a_hypercube_are_independent():
    """All 3! orders equally often, and pairs of strata in any two elements or slices."""
    N, n = 3, 2**14
    source = NoiseSource(31, latin=N)
    z = source.initial([(at, k) for at in (4, 5) for k in range(N)], (n,)).reshape(2, N, n)
    strata = np.floor(scipy.special.ndtr(z.astype(np.float64)) * N).astype(int)
    orders = np.bincount(strata[0].T @ [9, 3, 1])
    assert scipy.stats.chisquare(orders[orders > 0]).pvalue > FALSE_ALARM
    assert (orders > 0).sum() == 6
    pairs = [(strata[0, 0], strata[1, s]) for s in range(N)]
    for shift in (1, 2, 3, 4, 5):
        pairs += [(strata[0, 0], np.roll(strata[0, s], shift)) for s in range(N)]
    for a, b in pairs:
        assert scipy.stats.chisquare(np.bincount(a * N + b)).pvalue > FALSE_ALARM


def test_steps_of_a_hypercube_draw_independently():
    rows = [(4, k) for k in range(3)]
    got = NoiseSource(5, latin=3).step(rows, (6,))(2)
    np.testing.assert_array_equal(got, NoiseSource(5).step(rows, (6,))(2))


def test_a_hypercube_draws_two_words_an_element_and_sample(monkeypatch):
    """N rows of a slice in any order cost O(N) words; without the strata kept it would be N²."""
    N, drawn = 6, 0

    def counted(counter, key):
        nonlocal drawn
        blocks = philox4x32(counter, key)
        drawn += sum(word.size for word in blocks)
        return blocks

    monkeypatch.setattr(latin, "philox4x32", counted)
    clear_caches()
    source = NoiseSource(5, latin=N)
    source.initial([(at, k) for k in range(N) for at in (8, 3)], (5, 8))
    assert drawn == 2 * (2 * N * 40)
    source.initial([(8, 2)], (5, 8))
    assert drawn == 2 * (2 * N * 40) + 40


def test_neighbouring_slices_share_their_draws(monkeypatch):
    """13 draws for the first slice of coherence 0.5, one for every further one."""
    drawn = []
    monkeypatch.setattr(noise, "normal", lambda *a: drawn.append(a) or normal(*a))
    clear_caches()
    NoiseSource(5, coherence=0.5).initial([(at, 0) for at in (22, 21, 20)], (4,))
    assert len(drawn) == 13 + 2


def blurred(z: np.ndarray, width: float) -> np.ndarray:
    """Images of pixels (n, h, w) smoothed by a Gaussian and scaled back to N(0, 1)."""
    impulse = np.zeros(z.shape[1:])
    impulse[0, 0] = 1
    smooth = [
        scipy.ndimage.gaussian_filter(a, (0, width, width), mode="wrap")
        for a in (z, impulse[None])
    ]
    return smooth[0] / np.sqrt((smooth[1] ** 2).sum())


@pytest.mark.parametrize(
    ("width", "head"),
    [(1, lambda y: scipy.special.expit(1.5 * y - 0.5)), (2, lambda y: y), (1, np.tanh)],
    ids=["sigmoid", "linear", "tanh"],
)
def test_a_hypercube_gives_better_means_and_no_worse_spread(width, head):
    """Toy forecasts: smoothed noise through a head; RMS errors of 8 samples, 100 ensembles.

    Measured with 200: error of the mean 3.3, 4.4 and 3.1 times smaller, error of the standard
    deviation 0.92, 1.05 and 0.91 times that of independent noise. The truth is a Gauss-Hermite
    integral. A smooth map is needed: a quadratic one gains nothing (1.0), a steep sigmoid 1.8.
    """
    N, size = 8, 24
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = weights / weights.sum()
    mean = (weights * head(nodes)).sum()
    std = math.sqrt((weights * (head(nodes) - mean) ** 2).sum())

    def errors(source):
        squares = np.zeros(2)
        for at in range(100):
            z = source.initial([(at, k) for k in range(N)], (size, size)).astype(np.float64)
            y = head(blurred(z, width))
            squares += ((y.mean(0) - mean) ** 2).mean(), ((y.std(0, ddof=1) - std) ** 2).mean()
        return np.sqrt(squares)

    independent, stratified = errors(NoiseSource(1)), errors(NoiseSource(1, latin=N))
    assert independent[0] / stratified[0] > 2
    assert stratified[1] / independent[1] < 1.1


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"seed": -1}, "TD3017", "seed must be .* got -1"),
        ({"coherence": -0.1}, "TD3048", "coherence must be in 0 to 0.99, got -0.1"),
        ({"coherence": 0.991}, "TD3048", "got 0.991"),
        ({"coherence": math.nan}, "TD3048", "got nan"),
        ({"coherence": "0.5"}, "TD3048", "got '0.5'"),
        ({"latin": 1}, "TD3049", "latin must be an integer in 2 to 4096, got 1"),
        ({"latin": 4097}, "TD3049", "got 4097"),
        ({"latin": 8.0}, "TD3049", "got 8.0"),
        ({"latin": 8, "coherence": 0.5}, "TD3049", "coherence 0.5 and latin 8 cannot be combined"),
    ],
)
def test_rejects_options_out_of_range(options, code, message):
    with pytest.raises(UsageError, match=message) as error:
        NoiseSource(**{"seed": 0, **options})
    assert error.value.code == code


@pytest.mark.parametrize(
    ("source", "row", "code", "message"),
    [
        (NoiseSource(0, latin=8), (0, 8), "TD3049", "sample must be below latin = 8, got 8"),
        (NoiseSource(0, latin=8), (-1, 0), "TD3017", "slice must be"),
        (NoiseSource(0, latin=8), (0, -1), "TD3017", "sample must be"),
        (NoiseSource(0, coherence=0.5), (-1, 0), "TD3017", "slice must be"),
        (NoiseSource(0, coherence=0.5), (0, 1.0), "TD3017", "sample must be"),
        (NoiseSource(0), (2**32, 0), "TD3017", "slice must be"),
    ],
)
def test_rejects_rows_out_of_range(source, row, code, message):
    source.initial([(0, 1)], (1,))  # what is cached is no way past the check
    with pytest.raises(UsageError, match=message) as error:
        source.initial([row], (1,))
    assert error.value.code == code


@pytest.mark.parametrize("coherence", [0.0, 0.5])
def test_no_solver_row_reaches_the_words_of_hypercubes(coherence):
    step = NoiseSource(0, coherence).step([(0, 0)], (1,))
    for row in (2**32 - 3, 2**32 - 2):
        with pytest.raises(UsageError, match="step must be below") as error:
            step(row)
        assert error.value.code == "TD3017"


@pytest.mark.parametrize("options", [{"coherence": np.float32(0.7)}, {"latin": np.uint8(8)}])
def test_numpy_scalars_are_the_numbers_they_hold(options):
    plain = {name: value.item() for name, value in options.items()}
    rows, shape = [(np.uint8(3), np.int64(1))], (50,)
    np.testing.assert_array_equal(
        NoiseSource(np.uint64(9), **options).initial(rows, shape),
        NoiseSource(9, **plain).initial([(3, 1)], shape),
    )
