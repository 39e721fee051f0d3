"""The measure of error itself: it must notice what it is there for."""

import pytest
import torch

from tadiff_kernels.accuracy import error_budget, relative_error


def reference(x, gain):
    return torch.softmax(x, -1) * gain


@pytest.fixture
def args():
    rng = torch.Generator().manual_seed(11)
    return torch.randn(4, 33, generator=rng), torch.randn(33, generator=rng)


def test_relative_error_by_hand():
    exact = torch.tensor([1.0, -8.0, 2.0], dtype=torch.float64)
    assert relative_error(torch.tensor([1.5, -8.0, 1.0]), exact) == 1 / 8


def test_nan_is_an_error_of_nan():
    assert relative_error(torch.tensor([1.0, float("nan")]), torch.ones(2)) != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_reference_itself_passes(dtype, args):
    cast = [a.to(dtype) for a in args]
    error_budget(reference, *cast).check(reference(*cast))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda y: y * (1 + 1e-5), "relative error"),
        (lambda y: y.roll(1, 0), "relative error"),
        (lambda y: torch.where(y == y.max(), float("nan"), y), "relative error nan"),
        (lambda y: y.double(), "dtype"),
        (lambda y: y[:2], "shape"),
    ],
)
def test_faults_do_not_pass(fault, message, args):
    with pytest.raises(AssertionError, match=message):
        error_budget(reference, *args).check(fault(reference(*args)))
