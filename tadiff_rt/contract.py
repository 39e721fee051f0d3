"""What images a network was trained on."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataContract:
    """What the network was trained on; a property of the checkpoint, kept in the engine bundle."""

    size: int = 192
    """Edge of the square in-plane window, in voxels."""
    spacing_mm: float = 1.0
    spacing_tolerance: float = 0.1
    """Relative, along every axis."""
    percentiles: tuple[float, float] = (0.2, 99.8)
    orientation: str = "PLI"
    """Axis codes of the canonical array, as nibabel names them."""
    num_sources: int = 3
    min_slices: int = 8

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.spacing_mm < math.inf or self.num_sources < 1:
            raise ValueError(
                "size, spacing_mm and num_sources must be positive numbers, got "
                f"{self.size}, {self.spacing_mm} and {self.num_sources}"
            )
