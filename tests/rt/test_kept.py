"""Samples that stay: rounding, files, and what becomes of pairs of them."""

import numpy as np
import pytest

from tadiff_rt.ensemble import SliceStatistics, mask_probability
from tadiff_rt.kept import as_array, from_array, pack, paired_std, unpack

SHAPE = (5, 7)


@pytest.fixture
def logits():
    return np.random.default_rng(3).normal(0, 4, (6, *SHAPE)).astype(np.float32)


def statistics(logits, keep=True):
    made = SliceStatistics((3, *SHAPE), SHAPE, keep=keep)
    for number, sample in enumerate(logits):
        made.add(np.full((3, *SHAPE), number, np.float32), sample)
    return made


def test_a_probability_is_kept_to_half_a_level():
    probability = np.linspace(0, 1, 35).reshape(SHAPE)
    kept = unpack(pack(probability), SHAPE)
    assert kept.dtype == np.float32
    assert np.abs(kept - probability).max() <= 0.5 / 255 + 1e-7
    assert (kept.min(), kept.max()) == (0, 1)
    assert pack(kept) == pack(probability)  # once rounded, it stays


def test_statistics_keep_every_sample_in_order(logits):
    made = statistics(logits)
    kept = np.array([unpack(sample, SHAPE) for sample in made.kept])
    np.testing.assert_allclose(kept, mask_probability(logits), atol=0.5 / 255 + 1e-6)
    assert statistics(logits, keep=False).kept is None
    assert "kept" not in statistics(logits, keep=False).state()


def test_kept_samples_survive_a_file(logits):
    made = statistics(logits[:4])
    restored = SliceStatistics.restored({k: v.copy() for k, v in made.state().items()})
    assert restored.kept == made.kept
    for number in (4, 5):
        for each in (made, restored):
            each.add(np.full((3, *SHAPE), number, np.float32), logits[number])
    assert restored.kept == made.kept == statistics(logits).kept
    levels = as_array(made.kept, SHAPE)
    assert (levels.dtype, levels.shape) == (np.uint8, (6, *SHAPE))
    assert from_array(levels) == made.kept


def test_a_state_that_lost_samples_is_none(logits):
    state = statistics(logits).state()
    with pytest.raises(ValueError, match="samples are missing"):
        SliceStatistics.restored({**state, "kept": state["kept"][:-1]})


def test_pairs_against_numpy(logits):
    one, two = logits, logits[::-1] + 1
    mean, std = paired_std(statistics(one).kept, statistics(two).kept, SHAPE)
    apart = [
        unpack(pack(mask_probability(a)), SHAPE).astype(float)
        - unpack(pack(mask_probability(b)), SHAPE)
        for a, b in zip(one, two, strict=True)
    ]
    np.testing.assert_allclose(mean, np.mean(apart, 0), atol=1e-7)
    np.testing.assert_allclose(std, np.std(apart, 0, ddof=1), atol=1e-7)
    fewer, of_fewer = paired_std(statistics(one).kept, statistics(two[:4]).kept, SHAPE)
    np.testing.assert_allclose(fewer, np.mean(apart[:4], 0), atol=1e-7)
    np.testing.assert_allclose(of_fewer, np.std(apart[:4], 0, ddof=1), atol=1e-7)
    assert paired_std(statistics(one[:1]).kept, statistics(two).kept, SHAPE)[1] is None
