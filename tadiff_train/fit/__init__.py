"""Training: configuration, the loop, and what a run leaves behind."""

from tadiff_train.fit.average import warmed_up_average
from tadiff_train.fit.config import PRESETS, FitConfig, config_of
from tadiff_train.fit.identity import patients_trained_on
from tadiff_train.fit.interrupt import Interrupted
from tadiff_train.fit.loop import Machine, fit, num_timesteps
from tadiff_train.fit.processes import Processes, joined
from tadiff_train.fit.recorder import LOSS_PREFIX
from tadiff_train.fit.run import require_new_run, write_checkpoint
from tadiff_train.fit.trainer import learning_rate_at

__all__ = [
    "LOSS_PREFIX",
    "PRESETS",
    "FitConfig",
    "Interrupted",
    "Machine",
    "Processes",
    "config_of",
    "fit",
    "joined",
    "learning_rate_at",
    "num_timesteps",
    "patients_trained_on",
    "require_new_run",
    "warmed_up_average",
    "write_checkpoint",
]
