"""How tests, benchmarks and export checks measure numerical error: one definition for all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def relative_error(got: Tensor, exact: Tensor) -> float:
    """max |got - exact| / max |exact|, in float64; NaN if anything is NaN."""
    got, exact = got.double(), exact.double()
    return float((got - exact).abs().max() / exact.abs().max())


@dataclass(frozen=True)
class Budget:
    """The error that a faster implementation is allowed."""

    exact: Tensor
    allowed: float
    dtype: torch.dtype

    def check(self, got: Tensor) -> None:
        """Raises AssertionError where `got` has another dtype or shape, or is too far off."""
        assert got.dtype == self.dtype, f"dtype {got.dtype}, expected {self.dtype}"
        assert got.shape == self.exact.shape, f"shape {got.shape}, expected {self.exact.shape}"
        error = relative_error(got, self.exact)
        assert error <= self.allowed, (
            f"relative error {error:.2e}, allowed {self.allowed:.2e} in {self.dtype}"
        )


def error_budget(
    reference: Callable[..., Tensor], x: Tensor, *args: Any, factor: float = 2.0
) -> Budget:
    """At most `factor` times as far from float64 as PyTorch is in the dtype of `x`.

    No hand-set tolerance: the reference, run in the dtype of the kernel, says what rounding costs
    (the criterion of Dao et al. 2022 for FlashAttention). One unit in the last place is allowed on
    top, for when PyTorch happens to be exact.

    Args:
        reference: what is computed, in plain PyTorch.
        x, args: its arguments; tensors among them are cast to float64 for the exact result.
    """
    exact = reference(*(a.double() if isinstance(a, Tensor) else a for a in (x, *args)))
    rounding = relative_error(reference(x, *args), exact)
    return Budget(exact, factor * rounding + torch.finfo(x.dtype).eps, x.dtype)
