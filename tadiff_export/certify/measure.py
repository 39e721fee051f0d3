"""Errors of one evaluation, and what each precision is allowed."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tadiff_kernels.accuracy import relative_error
from tadiff_rt.certificate import Figure, Precision

Outputs = dict[str, NDArray[np.float64]]
""""eps" (n, 3, h, w) and "mask_logits" (n, 4, h, w)."""

OWN_FACTOR = 8.0
"""Allowed fp32 error as a multiple of PyTorch's own on the same inputs. Two fp32 programs that
sum in different orders differ from float64 by similar, not equal, amounts."""

OWN_FLOOR = 1e-5
"""Allowed on top. On smooth weights PyTorch's own error falls to 4e-7, and onnxruntime, with other
sums in norms and products, stays at 5e-6."""

STATISTICS_FLOOR = 1e-6
"""Rounding of the statistics of an ensemble, which are kept in float32."""


@dataclass(frozen=True)
class Budget:
    """What an artefact of one precision may differ from its checkpoint."""

    l2: float | None
    """Root mean square error over that of the output. It bounds the angle, too: the cosine of
    exact and artefact is at least sqrt(1 - l2^2), hence no figure of its own. None: by PyTorch's
    own error in fp32."""
    of_std: float | None
    """Maximum error over the output's standard deviation, or `l2` of its largest value where that
    is more; None as for `l2`."""
    of_noise: float
    """Difference of an ensemble's mean, spread and probability over the difference that another
    seed makes."""
    dice: float
    """1 - Dice of the ensemble's mask, or one voxel where that is more."""
    volume: float
    """Relative difference of the tumour volume, or one voxel of one sample."""


BUDGETS: dict[Precision, Budget] = {
    "fp32": Budget(l2=None, of_std=None, of_noise=0.01, dice=0.001, volume=0.001),
    "fp16": Budget(l2=5e-3, of_std=0.05, of_noise=0.1, dice=0.01, volume=0.02),
    "bf16": Budget(l2=3e-2, of_std=0.2, of_noise=0.25, dice=0.02, volume=0.03),
}


def errors(got: Outputs, exact: Outputs) -> dict[str, float]:
    """Of each output the largest error over the largest value; as NAME_l2 of the worst row the
    root mean square error over that of the row. Absolute where the output is 0 throughout; NaN
    if anything is NaN.
    """
    result = {}
    for name, truth in exact.items():
        mine = got[name].astype(np.float64)
        zero = not truth.any()
        worst = float(np.abs(mine).max()) if zero else _relative(mine, truth)
        result[name] = worst
        result[f"{name}_l2"] = worst if zero else _worst_row(mine, truth)
    return result


def _relative(got: NDArray[np.float64], exact: NDArray[np.float64]) -> float:
    return relative_error(torch.from_numpy(got), torch.from_numpy(exact))


def _worst_row(got: NDArray[np.float64], exact: NDArray[np.float64]) -> float:
    rows = range(len(exact))
    norms = [float(np.linalg.norm(exact[k])) for k in rows]
    apart = [float(np.linalg.norm(got[k] - exact[k])) for k in rows]
    # np.max, not max: NaN must stay.
    return float(np.max([a / (n or 1.0) for a, n in zip(apart, norms, strict=True)]))


def allowed(budget: Budget, exact: Outputs, own: dict[str, float]) -> dict[str, float]:
    """The limit of every figure of `errors`.

    Args:
        own: errors of plain fp32 PyTorch on the same inputs.
    """
    limits = {name: OWN_FACTOR * error + OWN_FLOOR for name, error in own.items()}
    for name, truth in exact.items():
        if budget.l2 is not None:
            limits[f"{name}_l2"] = max(limits[f"{name}_l2"], budget.l2)
        if budget.of_std is not None and truth.any():
            # Rounding is relative: an output whose largest value is 14 standard deviations may
            # be off by more of them there than one whose largest is 4.
            share = budget.of_std * float(truth.std()) / float(np.abs(truth).max())
            limits[name] = max(limits[name], share, budget.l2 or 0.0)
    return limits


def figures(
    got: Outputs, exact: Outputs, own: dict[str, float], budget: Budget
) -> dict[str, Figure]:
    """Every error beside its limit."""
    limits = allowed(budget, exact, own)
    return {name: figure(error, limits[name]) for name, error in errors(got, exact).items()}


def figure(error: float, limit: float) -> Figure:
    """An error that is not finite has no number."""
    return Figure(value=error if np.isfinite(error) else None, allowed=limit)
