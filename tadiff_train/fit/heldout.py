"""The loss on patients who are not trained on: the criterion that weights are chosen by."""

from collections.abc import Sequence
from itertools import islice

import torch

from tadiff_rt.schedule import NoiseSchedule
from tadiff_train.data.cache import CachedCase
from tadiff_train.data.windows import Window, Windows, collate
from tadiff_train.diffusion import LOSSES, validation_terms
from tadiff_train.fit.trainer import Trainer

WINDOWS_PER_PATIENT = 4
SEED = 0
"""Not that of the run: runs with other seeds are judged by the same windows and noise."""


def windows_of(case: CachedCase, num_timesteps: int, count: int) -> list[Window]:
    """Fixed windows of a patient, as in a forecast: the target last, history as published."""
    windows = Windows(
        [case],
        seed=SEED,
        num_timesteps=num_timesteps,
        slots="future",
        sources="published",
        augmentation="none",
    )
    return [windows[k] for k in range(count)]


class HeldOut:
    """Fixed windows, timesteps and noise, so that two losses differ by the weights alone."""

    def __init__(
        self,
        cases: Sequence[CachedCase],
        schedule: NoiseSchedule,
        num_timesteps: int,
        batch_size: int,
    ) -> None:
        """Takes the patients that a window can be made of.

        Args:
            num_timesteps: the last timestep of training; errors at levels that are not trained
                would hide all others.
        """
        usable = [case for case in cases if len(case.days) >= 2 and len(case.images)]
        windows = [
            window
            for case in usable
            for window in windows_of(case, num_timesteps, WINDOWS_PER_PATIENT)
        ]
        self.schedule = NoiseSchedule(schedule.alphas_cumprod[:num_timesteps])
        rest = iter(windows)
        chunks = iter(lambda: list(islice(rest, batch_size)), [])
        self.batches = [collate(chunk) for chunk in chunks]
        self.sizes = [len(batch.target) for batch in self.batches]

    @torch.no_grad()
    def terms(self, trainer: Trainer) -> dict[str, float]:
        """Mean loss terms of the averaged weights, over windows; empty without any."""
        total: dict[str, float] = {}
        loss = LOSSES[trainer.config.loss]
        for k, (window, size) in enumerate(zip(self.batches, self.sizes, strict=True)):
            batch = window.to(trainer.processes.device).batch
            with trainer.autocast():
                terms = validation_terms(
                    trainer.averaged, batch, self.schedule, loss, seed=SEED + k
                )
            for name, value in terms.items():
                total[name] = total.get(name, 0.0) + float(value) * size / sum(self.sizes)
        return total
