"""How to distil: every setting of a run."""

from dataclasses import dataclass
from typing import Literal, get_args

from tadiff_rt.errors import UsageError

Precision = Literal["fp32", "bf16"]

MOST_EVALUATIONS = 6
"""Beyond these a plain run of the teacher is no longer poor."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How to make a student of a few evaluations."""

    evaluations: int = 4
    """Of the student, 1 to MOST_EVALUATIONS."""
    substeps: int = 5
    """Steps of the teacher for one of the student; its run has evaluations x substeps + 1."""
    steps: int = 2000
    """Optimiser steps."""
    batch_size: int = 4
    learning_rate: float = 1e-4
    """A third or so of that of training: the student starts as its teacher."""
    warmup_steps: int = 50
    weight_decay: float = 0.0
    """None: it would pull away from the teacher's weights, not from overfitting."""
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    mask_weight: float = 0.05
    """Of the cross-entropy to the teacher's masks beside the squared distance of the states."""
    precision: Precision = "fp32"
    """Of convolutions and attention, of student and teacher alike."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.evaluations <= MOST_EVALUATIONS:
            raise UsageError(
                "TD3095",
                f"a student takes 1 to {MOST_EVALUATIONS} evaluations, got {self.evaluations}",
                where="--evaluations",
                fix="for more, take fewer steps of the teacher: tadiff-rt predict --steps N",
            )
        if self.substeps < 2:
            what = f"the teacher takes 2 or more steps for one of the student, got {self.substeps}"
            raise UsageError("TD3095", what, where="--substeps")
        if self.precision not in get_args(Precision):
            raise UsageError(
                "TD3095",
                f"precision must be one of {', '.join(get_args(Precision))}, "
                f"got {self.precision!r}",
                where="--precision",
            )
