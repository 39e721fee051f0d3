"""The area under the sparsification error: known orders, the definition written out."""

import itertools
import math

import numpy as np
import pytest

from tadiff_train.metrics import ause


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def curve(order: list[int], error: np.ndarray, num: int) -> list[float]:
    """Mean error of what is left when a share 0, 1/num ... of `order` has been removed."""
    return [float(np.mean(error[order[len(order) * i // num :]])) for i in range(num)]


def area(values: list[float]) -> float:
    return sum((a + b) / 2 for a, b in itertools.pairwise(values))


def test_the_order_of_the_errors_is_0_and_chance_is_1(rng: np.random.Generator):
    """Chance: 100,000 voxels, of which the last twentieth has a standard error of 1.4 %."""
    error = rng.exponential(size=100_000)
    assert ause(np.exp(3 * error), error) == pytest.approx(0, abs=1e-12)
    assert ause(rng.random(error.size), error) == pytest.approx(1, abs=0.02)
    assert ause(-error, error) > 2


def test_two_voxels_by_hand():
    """Left: both, mean 1/2; then the one kept, 1 or 0. Areas 1/2 and, for chance, 1/4."""
    error = np.array([0.0, 1.0])
    assert ause(np.array([2.0, 1.0]), error, num=2) == pytest.approx(2)
    assert ause(np.array([1.0, 2.0]), error, num=2) == pytest.approx(0)
    assert ause(np.array([1.0, 1.0]), error, num=2) == pytest.approx(1)


@pytest.mark.parametrize(("n", "num"), [(57, 7), (40, 20), (20, 20), (31, 2)])
def test_it_is_its_definition(rng: np.random.Generator, n: int, num: int):
    error = rng.random(n)
    uncertainty = error + rng.normal(scale=0.5, size=n)
    by = curve(sorted(range(n), key=lambda i: -uncertainty[i]), error, num)
    oracle = curve(sorted(range(n), key=lambda i: -error[i]), error, num)
    between = area([a - b for a, b in zip(by, oracle, strict=True)])
    chance = area([float(error.mean()) - b for b in oracle])
    assert ause(uncertainty, error, num=num) == pytest.approx(between / chance, rel=1e-12)


def test_equal_uncertainties_are_in_random_order_in_expectation(rng: np.random.Generator):
    """The mean over many random orders of the ties, and no effect of how voxels are stored."""
    error = np.sort(rng.random(60))
    assert ause(np.zeros(60), error) == pytest.approx(1)
    assert ause(np.zeros(60), error[::-1].copy()) == pytest.approx(1)
    uncertainty = (error + rng.normal(scale=0.3, size=60) > 0.5).astype(float)
    drawn = [ause(uncertainty + 1e-6 * rng.random(60), error, num=10) for _ in range(3000)]
    standard_error = np.std(drawn) / math.sqrt(3000)
    assert ause(uncertainty, error, num=10) == pytest.approx(
        np.mean(drawn), abs=5 * standard_error
    )


def test_units_do_not_count(rng: np.random.Generator):
    error = rng.random(500)
    uncertainty = error + rng.random(500)
    value = ause(uncertainty, error)
    assert ause(uncertainty**3, error) == value
    assert ause(uncertainty, 40 * error) == pytest.approx(value)


def test_an_easy_background_flatters_and_is_left_out(rng: np.random.Generator):
    error, uncertainty = rng.random((2, 20, 20))
    brain = np.zeros((20, 20), bool)
    brain[5:15, 5:15] = True
    inside = ause(uncertainty[brain], error[brain])
    assert ause(np.where(brain, uncertainty, math.nan), error, brain) == inside
    easy = ause(np.where(brain, uncertainty, 0), np.where(brain, error, 0))
    assert easy < inside - 0.3


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_without_a_largest_error_there_is_no_oracle(value: float):
    """A sum of 0.1 is rounded, so that its mean is not 0.1."""
    assert ause(np.arange(30.0), np.full(30, value)) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(30), np.ones(29)), r"shapes differ: \(30,\), \(29,\)"),
        ((np.ones(30), np.ones(30), np.ones(29, bool)), r"the mask's \(29,\)"),
        ((np.ones(30), np.ones(30), np.zeros(30, bool)), "boolean and not empty"),
        ((np.ones(30), np.ones(30), np.ones(30)), "boolean and not empty, got float64"),
        ((np.full(30, math.nan), np.ones(30)), "uncertainty must be finite"),
        ((np.ones(30), np.full(30, math.inf)), "error must be finite"),
        ((np.ones(30), np.full(30, -0.5)), "error must not be negative, got -0.5"),
        ((np.ones(30), np.ones(30), None, 1), "num must be 2 to the 30 voxels, got 1"),
        ((np.ones(30), np.ones(30), None, 31), "num must be 2 to the 30 voxels, got 31"),
    ],
)
def test_what_has_no_order_is_refused(arguments, message: str):
    with pytest.raises(ValueError, match=message):
        ause(*arguments)
