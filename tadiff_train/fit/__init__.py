"""Training: configuration, the loop, and what a run leaves behind."""

from tadiff_train.fit.loop import (
    LOSS_PREFIX,
    FitConfig,
    fit,
    learning_rate_at,
    require_new_run,
    warmed_up_average,
)

__all__ = [
    "LOSS_PREFIX",
    "FitConfig",
    "fit",
    "learning_rate_at",
    "require_new_run",
    "warmed_up_average",
]
