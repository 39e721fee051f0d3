"""Does one number grow with another in a straight line?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LINEAR = 0.05
"""Largest residual of a line, as a share of the number itself."""


@dataclass(frozen=True)
class Line:
    """The straight line through points that has the least squares of residuals."""

    slope: float
    """Of y for 1 of x."""
    intercept: float
    r2: float
    """Share of the variance of y that the line explains; 1 where y does not vary."""
    largest_residual: float
    """Largest distance of a y from the line, as a share of that y."""

    @classmethod
    def through(cls, x: Sequence[float], y: Sequence[float]) -> "Line":
        """Of at least three points with y > 0: two are always on a line.

        Raises:
            ValueError: fewer points, or all at one x.
        """
        if len(x) < 3 or len(set(x)) < 2:
            raise ValueError(f"a line needs three points and two places, got x = {list(x)}")
        slope, intercept = (float(value) for value in np.polyfit(x, y, 1))
        apart = np.asarray(y) - (slope * np.asarray(x) + intercept)
        spread = float(np.square(np.asarray(y) - np.mean(y)).sum())
        r2 = 1 - float(np.square(apart).sum()) / spread if spread else 1.0
        return cls(slope, intercept, r2, float(np.abs(apart / np.asarray(y)).max()))

    @property
    def is_linear(self) -> bool:
        """Whether no point is further from the line than LINEAR."""
        return self.largest_residual <= LINEAR

    def columns(self, unit: str) -> dict[str, object]:
        """Of a row; slope and intercept are in `unit`."""
        return {
            f"slope_{unit}": float(f"{self.slope:.4g}"),
            f"intercept_{unit}": float(f"{self.intercept:.4g}"),
            "r2": round(self.r2, 5),
            "largest_residual": round(self.largest_residual, 4),
            "linear": self.is_linear,
        }
