"""What the first process of a run writes while it goes: curves, pictures, state, checkpoints."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tadiff_rt.card import ModelCard
from tadiff_rt.errors import NumericsError
from tadiff_train.data.windows import Window
from tadiff_train.fit.config import FitConfig
from tadiff_train.fit.curves import Curves
from tadiff_train.fit.heldout import HeldOut
from tadiff_train.fit.identity import Identity
from tadiff_train.fit.run import BEST, save_state, write_checkpoint
from tadiff_train.fit.sample import sample_picture
from tadiff_train.fit.trainer import Trainer, learning_rate_at

LOSS_PREFIX = "smooth_"
"""Before the loss terms in a sidecar: "loss" itself is the preset's name there."""
VALIDATION_PREFIX = "val_"


@dataclass
class Course:
    """How far a run has come."""

    step: int = 0
    """The last one that is done."""
    smooth: dict[str, float] = field(default_factory=dict)
    """Moving averages of the loss terms over about a hundred steps."""
    seconds: float = 0.0
    """Of training, over all sessions of the run."""
    best: float | None = None
    """The least held-out loss."""

    def add(self, step: int, terms: Mapping[str, float]) -> None:
        """Takes the loss terms of a step.

        Raises:
            NumericsError: TD6003, one is not finite.
        """
        weight = max(1 / step, 0.01)
        for name, number in terms.items():
            if not math.isfinite(number):
                raise NumericsError(
                    "TD6003",
                    f"the {name} term of the loss is {number} at step {step}",
                    fix="lower --learning-rate, or look for broken images with the training data",
                )
            before = self.smooth.get(name, number)
            self.smooth[name] = before * (1 - weight) + number * weight
        self.step = step


def is_saved(config: FitConfig, step: int) -> bool:
    """Whether the run is saved after a step."""
    return step % config.save_every == 0 or step == config.steps


def is_drawn(config: FitConfig, step: int) -> bool:
    """Whether a sample is drawn after a step."""
    return config.picture_every > 0 and step % config.picture_every == 0


def is_due(config: FitConfig, step: int) -> bool:
    """Whether there is something to record after a step."""
    return step % config.log_every == 0 or is_drawn(config, step) or is_saved(config, step)


class Recorder:
    """Writes to the folder of a run."""

    def __init__(
        self,
        out: Path,
        trainer: Trainer,
        card: ModelCard,
        course: Course,
        identity: Identity,
        held_out: HeldOut,
        to_draw: Window,
    ) -> None:
        """Nothing is written before `open`."""
        self.out, self.trainer, self.card, self.course = out, trainer, card, course
        self.identity, self.held_out, self.to_draw = identity, held_out, to_draw
        self._curves: Curves | None = None
        self._start = time.monotonic() - course.seconds
        self._line = (course.step, course.seconds)

    def open(self, *, quiet: bool) -> None:
        """Brings the folder to where the run stands: curves are cut back, the checkpoint is made.

        Args:
            quiet: does not say that TensorBoard is missing.
        """
        self._curves = Curves(self.out, self.course.step, quiet=quiet)
        if self.course.step:
            self.save_weights(self.out)

    def close(self) -> None:
        """Closes the curves."""
        if self._curves is not None:
            self._curves.close()

    def record(self, gradient_norm: float, *, ends: bool) -> None:
        """After a step: curves, held-out loss, picture and save, as far as they are due.

        Args:
            ends: the run was asked to end and is saved, wherever it stands.

        Raises:
            ResourceError, OutputError: the folder cannot be written; what was saved before is
                still there.
        """
        config, step = self.trainer.config, self.course.step
        self.course.seconds = time.monotonic() - self._start
        saves = is_saved(config, step)
        found = self.held_out.terms(self.trainer) if saves else {}
        if step % config.log_every == 0 or found:
            self._write_line(gradient_norm, found)
        if is_drawn(config, step) and self._curves is not None:
            title = f"step {step}, one sample"
            drawn = sample_picture(self.trainer.averaged, self.to_draw, self.card, title)
            self._curves.picture(step, *drawn)
        if found and found["loss"] < (math.inf if self.course.best is None else self.course.best):
            self.course.best = found["loss"]
            self.save_weights(self.out / BEST)
        if saves or ends:
            self.save()

    def save(self) -> None:
        """The state first: a checkpoint that is older than it is made anew when resuming."""
        record = {
            "course": asdict(self.course),
            "scaler": self.trainer.scaler.state_dict(),
            "identity": self.identity,
        }
        save_state(self.out, self.trainer.tensors(), record)
        self.save_weights(self.out)

    def save_weights(self, folder: Path) -> None:
        """The averaged weights as a checkpoint."""
        course = self.course
        training = {**asdict(self.trainer.config), "step": course.step, "seconds": course.seconds}
        training |= {LOSS_PREFIX + name: value for name, value in course.smooth.items()}
        if course.best is not None:
            training["best_val_loss"] = course.best
        write_checkpoint(folder, self.trainer.averaged, self.card, training)

    def _write_line(self, gradient_norm: float, found: Mapping[str, float]) -> None:
        config, step, seconds = self.trainer.config, self.course.step, self.course.seconds
        windows = config.batch_size * (step - self._line[0])
        rate = config.learning_rate * learning_rate_at(step - 1, config)
        values = {
            **self.course.smooth,
            "learning_rate": rate,
            "gradient_norm": gradient_norm,
            "seconds": seconds,
            "windows_per_second": windows / max(seconds - self._line[1], 1e-9),
        }
        values |= {VALIDATION_PREFIX + name: value for name, value in found.items()}
        if self._curves is not None:
            self._curves.line(step, values)
        self._line = (step, seconds)
