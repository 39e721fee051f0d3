"""Network evaluations a sample where nothing else is said, and what they are worth."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """What steps and solver are where they are left open."""

    steps: int
    solver: str
    spread_percent: tuple[int, int]
    """Least and most of the true standard deviation that samples keep, of Gaussian data with the
    deviations of `certify.analytic.STANDARD_DEVIATIONS`, from pure noise; computed in closed form
    by `certify.analytic.gaussian_run` and checked by a test."""

    def __str__(self) -> str:
        low, high = self.spread_percent
        return f"{self.steps} evaluations, spread kept to {low}-{high} %"


DEFAULT = "default"
PRESETS = {
    "fast": Preset(8, "unipc_2", (94, 106)),
    DEFAULT: Preset(20, "dpmpp_2m", (99, 101)),
    "reference": Preset(50, "dpmpp_2m", (98, 100)),
}
