"""The noise schedule a network was trained on, and the noise levels a sampler visits on it.

This is the only module in which a timestep becomes an array index.
"""

import math
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tadiff_rt.errors import UsageError

GRIDS = ("logsnr", "trailing", "linspace", "quadratic", "karras", "all")
"""Names that `NoiseSchedule.levels` understands."""

KARRAS_RHO = 7.0
"""Karras et al. 2022, section 3 and Table 1."""


@dataclass(frozen=True)
class Levels:
    """Noise levels of one sampling run, noisiest first, one for each network evaluation.

    The run starts at t[0] = T, the level of pure noise, and goes from its last level to clean
    data (alpha = 1, sigma = 0), which needs no evaluation and has no entry here.
    """

    t: tuple[float, ...]
    """Time fed to the network, one-based; fractional on the log-SNR grid."""
    alpha: tuple[float, ...]
    """√ᾱ at each t."""
    sigma: tuple[float, ...]
    """√(1 − ᾱ) at each t."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noise levels of training: x_t = √ᾱ_t · x_0 + √(1 − ᾱ_t) · ε (Ho et al. 2020, Eq. 4).

    Timesteps are **one-based**, t in 1 … T, as in the paper and as the network is fed in
    training. The schedule is a property of the checkpoint: sampling in fewer steps chooses levels
    on it and never rebuilds it, because the network knows only these (t, ᾱ_t) pairs.
    """

    alphas_cumprod: NDArray[np.float64]
    """(T,) ᾱ_1 … ᾱ_T, strictly falling inside (0, 1); read-only."""

    def __post_init__(self) -> None:
        a = np.array(self.alphas_cumprod, dtype=np.float64)
        ok = a.ndim == 1 and a.size > 0 and bool(np.all((a > 0) & (a < 1)))
        if not (ok and bool(np.all(np.diff(a) < 0))):
            raise UsageError(
                "TD3045",
                "the noise schedule must be a vector of alphas_cumprod that falls strictly inside "
                f"(0, 1), got shape {a.shape} with values {a.ravel()[:1]} to {a.ravel()[-1:]}",
                fix="pass the betas of training, each in (0, 1)",
            )
        a.flags.writeable = False
        object.__setattr__(self, "alphas_cumprod", a)

    @classmethod
    def linear(
        cls, num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2
    ) -> "NoiseSchedule":
        """β_1 … β_T evenly spaced, 1e-4 to 0.02: Ho et al. 2020, section 4, and TaDiff."""
        return cls.from_betas(np.linspace(beta_start, beta_end, num_train_timesteps))

    @classmethod
    def from_betas(cls, betas: ArrayLike) -> "NoiseSchedule":
        """ᾱ_t = Π_{s ≤ t} (1 − β_s): Ho et al. 2020, section 2."""
        kept = 1.0 - np.array(betas, dtype=np.float64)
        return cls(np.cumprod(kept, axis=0, dtype=np.float64))

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of timesteps the network was trained on."""
        return len(self.alphas_cumprod)

    @overload
    def alpha_bar(self, t: float) -> float: ...
    @overload
    def alpha_bar(self, t: NDArray[np.float64]) -> NDArray[np.float64]: ...
    def alpha_bar(self, t: float | NDArray[np.float64]) -> float | NDArray[np.float64]:
        """ᾱ at time t in [1, T]; between trained timesteps log ᾱ is linear in t.

        Linear log ᾱ is the continuous-time form that the DPM-Solver code gives a discrete schedule
        (Lu et al. 2022a). At integer t the result is the table entry, bit for bit.

        Raises:
            UsageError: t lies outside [1, T] (TD3045).
        """
        times = np.asarray(t, dtype=np.float64)
        T = self.num_train_timesteps
        if not np.all((times >= 1) & (times <= T)):
            raise UsageError("TD3045", f"t must be in 1 to {T} (one-based), got {t}")
        low = np.floor(times).astype(np.int64)
        high = np.minimum(low + 1, T)
        log_a = np.log(self.alphas_cumprod)
        between = np.exp(log_a[low - 1] + (times - low) * (log_a[high - 1] - log_a[low - 1]))
        result = np.where(times == low, self.alphas_cumprod[low - 1], between)
        return float(result) if result.ndim == 0 else result

    @overload
    def lam(self, t: float) -> float: ...
    @overload
    def lam(self, t: NDArray[np.float64]) -> NDArray[np.float64]: ...
    def lam(self, t: float | NDArray[np.float64]) -> float | NDArray[np.float64]:
        """λ_t = log(α_t / σ_t), **half** the log-SNR, with α = √ᾱ; falls as t grows."""
        a = np.asarray(self.alpha_bar(t))
        result = 0.5 * (np.log(a) - np.log1p(-a))
        return float(result) if result.ndim == 0 else result

    @overload
    def t_of_lam(self, lam: float) -> float: ...
    @overload
    def t_of_lam(self, lam: NDArray[np.float64]) -> NDArray[np.float64]: ...
    def t_of_lam(self, lam: float | NDArray[np.float64]) -> float | NDArray[np.float64]:
        """The time t in [1, T] at which `self.lam(t)` is `lam`.

        Raises:
            UsageError: `lam` lies outside [λ_T, λ_1] by more than rounding (TD3045).
        """
        lams = np.asarray(lam, dtype=np.float64)
        low, high = self.lam(float(self.num_train_timesteps)), self.lam(1.0)
        if not np.all((lams >= low - 1e-9) & (lams <= high + 1e-9)):
            raise UsageError("TD3045", f"lam must be in {low:.6g} to {high:.6g}, got {lam}")
        # log ᾱ = log sigmoid(2λ); the log form keeps all digits of ᾱ near 1.
        minus_log_a = np.logaddexp(0.0, -2.0 * lams)
        steps = np.arange(1.0, self.num_train_timesteps + 1)
        result = np.interp(minus_log_a, -np.log(self.alphas_cumprod), steps)
        return float(result) if result.ndim == 0 else result

    def levels(
        self,
        num_steps: int,
        grid: str = "logsnr",
        start_lam: float | None = None,
        *,
        round_times: bool = False,
    ) -> Levels:
        """The levels of a run of `num_steps` network evaluations, from T or `start_lam` down.

        Grids, from the first time t_0 (T unless `start_lam` is given):
            logsnr: even in λ down to t = 1. With clean data as the final step this keeps the
                spread of narrow posteriors; see docs/solvers.md for every other grid.
            trailing: t_0·(1 − i/n) rounded, the "trailing" spacing of Lin et al. 2024, Table 2.
            linspace: 1 + (t_0 − 1)(1 − i/n) rounded, the last level of which is about t_0 / n:
                the default of the multistep solvers of diffusers, but for the rounding of halves.
            quadratic: even in √t down to t = 1 (Song et al. 2021, appendix D.2).
            karras: (σ/α)^(1/7) even down to t = 1 (Karras et al. 2022, Eq. 5).
            all: every trained timestep t_0 … 1, as published; `num_steps` must be their number.

        Args:
            num_steps: network evaluations.
            grid: see above.
            start_lam: λ of the first level, for a run that starts from a noised guess instead of
                pure noise; None for that of T.
            round_times: visit whole times only, those the network was trained on; where rounding
                would visit a time twice, its neighbours move up.

        Raises:
            UsageError: `num_steps` is not in 1 … t_0 (TD3010), `grid` is unknown (TD3041), or
                `start_lam` is not a level of this schedule (TD3047).
        """
        if grid not in GRIDS:
            raise UsageError("TD3041", f"grid must be one of {', '.join(GRIDS)}, got {grid!r}")
        first = self._first_time(start_lam)
        most = int(first)
        fewest = most if grid == "all" else 1
        if not isinstance(num_steps, int | np.integer) or not fewest <= num_steps <= most:
            raise UsageError(
                "TD3010",
                f"num_steps must be an integer in {fewest} to {most} on the grid {grid!r}, "
                f"got {num_steps!r}",
                fix=f"the network was trained on {self.num_train_timesteps} timesteps; "
                "20 steps are the default",
            )
        t = self._times(int(num_steps), grid, first)
        if round_times or grid in ("trailing", "linspace"):
            t = _distinct(t, most)
        return self.levels_at(t)

    def levels_at(self, times: ArrayLike) -> Levels:
        """The levels at given times, which fall strictly inside [1, T].

        Raises:
            UsageError: they do not (TD3045).
        """
        t = np.array(times, dtype=np.float64)
        if t.ndim != 1 or t.size == 0 or not bool(np.all(np.diff(t) < 0)):
            raise UsageError("TD3045", f"times of a run must fall strictly, got {t.tolist()}")
        a = self.alpha_bar(t)
        return Levels(
            tuple(t.tolist()), tuple(np.sqrt(a).tolist()), tuple(np.sqrt(1 - a).tolist())
        )

    def rounded(self, levels: Levels) -> Levels:
        """`levels` at whole times, each visited once; see `levels`."""
        return self.levels_at(_distinct(np.array(levels.t), int(levels.t[0])))

    def _first_time(self, start_lam: float | None) -> float:
        T = float(self.num_train_timesteps)
        low, high = self.lam(T), self.lam(1.0)
        if start_lam is None:
            return T
        if not low <= start_lam < high:
            raise UsageError(
                "TD3047", f"start_lam must be in {low:.4g} to {high:.4g}, got {start_lam}"
            )
        return self.t_of_lam(start_lam)

    def _times(self, num_steps: int, grid: str, first: float) -> NDArray[np.float64]:
        """Times of a grid, not rounded; `first` and, where a grid ends there, 1 are exact."""
        if grid == "all":
            return np.arange(num_steps, 0, -1, dtype=np.float64)
        if grid == "trailing":
            return np.linspace(first, 0, num_steps + 1)[:-1]
        if grid == "linspace":
            return np.linspace(first, 1, num_steps + 1)[:-1]
        if grid == "quadratic":
            t = np.linspace(math.sqrt(first), 1, num_steps) ** 2
        else:
            low, high = self.lam(first), self.lam(1.0)
            if grid == "karras":
                # sigma/alpha = exp(-λ), hence its power of 1/rho is exp(-λ/rho).
                ends = math.exp(-low / KARRAS_RHO), math.exp(-high / KARRAS_RHO)
                lams = -KARRAS_RHO * np.log(np.linspace(*ends, num_steps))
            else:
                lams = np.linspace(low, high, num_steps)
            t = self.t_of_lam(lams)
        t[0] = first  # the inverse is exact to rounding only
        if num_steps > 1:
            t[-1] = 1
        return t


def _distinct(t: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """`t` rounded to whole times in 1 … `most` that fall strictly; there are at least len(t).

    Falling strictly means that t_i + i does not rise, which a running maximum from the end
    makes true by moving times up, and the cap keeps.
    """
    place = np.arange(len(t))
    whole = np.clip(np.round(t), 1, most)
    return np.minimum(np.maximum.accumulate((whole + place)[::-1])[::-1], most) - place
