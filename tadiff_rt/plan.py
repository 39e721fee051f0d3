"""One sampling run as a table of float64 coefficients, one row for each network evaluation.

Every method here is linear in what it combines, so with the noise estimate ε of row i

    x0_i    = (x_i − sigma_i · ε) / alpha_i
    x_{i+1} = coef_x · x_i + coef_x0 · x0_i + coef_x0_prev · x0_{i−1} + coef_x0_prev2 · x0_{i−2}
              + coef_x0_prev3 · x0_{i−3} + coef_noise · z_i

The letters are those of DPM-Solver: alpha = √ᾱ and sigma = √(1 − ᾱ), not DDPM's α_t = 1 − β_t.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.errors import NumericsError
from tadiff_rt.schedule import Levels, NoiseSchedule

MASK_WINDOW = 10
"""The published mask averages the logits of t = 1 … 10."""


@dataclass(frozen=True, eq=False)
class SolverPlan:
    """One sampling run as a table: entry i of every array belongs to row i. Arrays are read-only.

    Raises:
        NumericsError: a coefficient is not finite, or the mask weights are not an average
            (TD6004).
    """

    t: NDArray[np.float64]
    """Time fed to the network, one-based, noisiest first."""
    alpha: NDArray[np.float64]
    """√ᾱ at t: turns ε into x0."""
    sigma: NDArray[np.float64]
    """√(1 − ᾱ) at t: turns ε into x0."""
    coef_x: NDArray[np.float64]
    """Of the current x."""
    coef_x0: NDArray[np.float64]
    """Of this row's x0."""
    coef_x0_prev: NDArray[np.float64]
    """Of the previous row's x0; 0 in the first row."""
    coef_x0_prev2: NDArray[np.float64]
    """Of the x0 before that."""
    coef_x0_prev3: NDArray[np.float64]
    """Of the x0 before that."""
    coef_noise: NDArray[np.float64]
    """Of fresh standard normal noise; 0 throughout for a deterministic solver."""
    mask_weight: NDArray[np.float64]
    """Of this row's mask logits in the fused logits; sums to 1."""
    solver: str
    grid: str

    def __post_init__(self) -> None:
        for name in COLUMNS:
            column = np.array(getattr(self, name), dtype=np.float64)
            column.flags.writeable = False
            object.__setattr__(self, name, column)
        if not np.isfinite(self.table).all():
            raise NumericsError("TD6004", "a plan holds a coefficient that is not finite")
        if self.mask_weight.min() < 0 or abs(self.mask_weight.sum() - 1) > 1e-6:
            total = self.mask_weight.sum()
            raise NumericsError("TD6004", f"mask weights must be >= 0 and sum to 1, sum {total}")

    @property
    def num_steps(self) -> int:
        """Rows of the table."""
        return len(self.t)

    @property
    def nfe(self) -> int:
        """Network evaluations of one sample: one a row, of a two-stage method too."""
        return self.num_steps

    @property
    def table(self) -> NDArray[np.float64]:
        """(num_steps, 10) the columns in the order of `COLUMNS`, for a device buffer; a copy."""
        return np.column_stack([getattr(self, name) for name in COLUMNS])

    @property
    def history(self) -> int:
        """How many earlier x0 any row reads, 0 to 3."""
        used = (self.coef_x0_prev, self.coef_x0_prev2, self.coef_x0_prev3)
        return max((k + 1 for k, column in enumerate(used) if column.any()), default=0)


COLUMNS = tuple(f.name for f in fields(SolverPlan) if f.name not in ("solver", "grid"))
"""Names of the columns of `SolverPlan.table`, in order."""


def mask_weights(schedule: NoiseSchedule, levels: Levels) -> NDArray[np.float64]:
    """Weights that turn the logits of the visited levels into the published fused logits.

    TaDiff fuses the logits L(t) of its T-step run as Σ_t w_t·L(t) over t = 1 … min(10, T), with
    w_t = ᾱ_t / Σ ᾱ. A shorter run does not visit those t. Interpolate L linearly in λ between
    the visited levels, and constantly beyond the first and last: L(t) = Σ_i hat_i(λ_t)·L_i.
    Inserted into the sum, level i has weight Σ_t w_t·hat_i(λ_t). The hats sum to 1 at every λ and
    so do the weights, whatever is visited; on the full grid every λ_t is a level and the
    published weights come back. The error is that of linear interpolation: second order in the
    spacing of levels inside the window.
    """
    t = np.arange(1.0, min(MASK_WINDOW, schedule.num_train_timesteps) + 1)
    published = schedule.alpha_bar(t) / schedule.alpha_bar(t).sum()
    window = schedule.lam(t)
    nodes = schedule.lam(np.array(levels.t))  # rises along the run
    hats = [np.interp(window, nodes, one_hot) for one_hot in np.eye(len(nodes))]
    return np.array([float(hat @ published) for hat in hats])
