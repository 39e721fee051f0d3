"""Training windows from longitudinal cases: three source sessions and a target, one slice.

Window `index` of a run is a function of (seed, index) alone: which patient, slice, sessions and
target slot, the timestep, the noise, and every augmentation. (The published target slots also
toss coins for a batch: functions of the seed and the batch's number.) So a run can be resumed at
any step, and spread over any number of processes or loader workers, without a state to carry.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tadiff_rt.errors import UsageError
from tadiff_train.data.augment import AUGMENTS, augment
from tadiff_train.data.cache import CachedCase
from tadiff_train.diffusion import Batch
from tadiff_train.network import NUM_SESSIONS

TargetSlots = Literal["future", "published", "paper"]
Sources = Literal["mixed", "published"]
Augmentation = Literal["none", "flip", "full"]
LAST = NUM_SESSIONS - 1
WINDOW, SLOT, BATCH, AUGMENTATION = range(4)
"""Streams of random numbers, so that an option that draws leaves the other draws as they are."""


@dataclass(frozen=True)
class Window:
    """One item of a training batch; a batch of them has one more leading axis."""

    images: Tensor
    """(4, 3, h, w) clean images in [0, 1]."""
    masks: Tensor
    """(4, h, w) tumour, 0 or 1, float."""
    days: Tensor
    """(4,) days since the patient's first session."""
    treatments: Tensor
    """(4,) treatment codes."""
    target: Tensor
    """() int64: the slot to predict."""
    t: Tensor
    """() int64: trained timestep, 1 ... T."""
    noise: Tensor
    """(3, h, w) standard normal."""

    @property
    def batch(self) -> Batch:
        """What the loss takes beside timestep and noise."""
        return Batch(self.images, self.masks, self.days, self.treatments, self.target)

    def to(self, device: torch.device) -> "Window":
        """A copy on a device, without waiting for it where the memory is pinned."""
        return Window(*(x.to(device, non_blocking=True) for x in vars(self).values()))

    def pin_memory(self) -> "Window":
        """A copy in memory that a GPU reads by itself; torch's loader looks for this name."""
        return Window(*(x.pin_memory() for x in vars(self).values()))


def collate(windows: Sequence[Window]) -> Window:
    """Windows stacked along a new first axis."""
    columns = zip(*(vars(w).values() for w in windows), strict=True)
    return Window(*(torch.stack(column) for column in columns))


class Windows(torch.utils.data.Dataset[Window]):
    """An endless data set of random windows; patients are drawn evenly, whatever their scans."""

    def __init__(
        self,
        cases: Sequence[CachedCase],
        *,
        seed: int,
        num_timesteps: int,
        slots: TargetSlots = "future",
        sources: Sources = "mixed",
        augmentation: Augmentation = "flip",
        batch_size: int = 1,
    ) -> None:
        """The data set of a run.

        Args:
            num_timesteps: timesteps are drawn evenly from 1 to this one.
            slots, sources: see `choose_target` and `choose_sessions`.
            augmentation: a key of `augment.AUGMENTS`.
            batch_size: windows of an optimiser step, which share the coins of published slots.

        Raises:
            UsageError: TD3032, no case has two sessions and a slice with tumour.
        """
        self.cases = [c for c in cases if len(c.days) >= 2 and len(c.images)]
        if not self.cases:
            raise UsageError("TD3032", "no case has two sessions and a slice with tumour")
        self.seed = seed
        self.num_timesteps = num_timesteps
        self.slots = slots
        self.sources = sources
        self.augmentation = augmentation
        self.batch_size = batch_size

    def __getitem__(self, index: int) -> Window:
        rng = self._rng(index, WINDOW)
        case = self.cases[int(rng.integers(len(self.cases)))]
        at = int(rng.integers(len(case.images)))
        sessions = choose_sessions(len(case.days), rng, self.sources)
        days = np.array(case.days)[sessions]
        target = self._target(index, days)
        flips = rng.random() < 0.5  # drawn in any case: what follows stays as it is
        images, masks = self._changed(
            index, case.images[at][sessions], case.masks[at][sessions], target, flips
        )
        return Window(
            images=_tensor(images),
            masks=_tensor(masks),
            days=_tensor(days),
            treatments=_tensor(np.array(case.treatments)[sessions]),
            target=torch.tensor(target),
            t=torch.tensor(int(rng.integers(1, self.num_timesteps + 1))),
            noise=torch.from_numpy(rng.standard_normal(images.shape[1:], dtype=np.float32)),
        )

    def _rng(self, number: int, stream: int) -> np.random.Generator:
        # The counter is 256 bits: numbers are 2^64 draws apart, streams 2^128.
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, number, stream, 0]))

    def _target(self, index: int, days: NDArray[np.int64]) -> int:
        of_batch = self._rng(index // self.batch_size, BATCH)
        return choose_target(days, self.slots, self._rng(index, SLOT), of_batch)

    def _changed(
        self,
        index: int,
        images: NDArray[np.float16],
        masks: NDArray[np.bool_],
        target: int,
        flips: bool,
    ) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
        if self.augmentation == "full":
            rng, config = self._rng(index, AUGMENTATION), AUGMENTS["full"]
            return augment(images.astype(np.float32), masks, rng, config, target=target)
        if self.augmentation == "flip" and flips:  # axis -1 runs right to left
            return images[..., ::-1], masks[..., ::-1]
        return images, masks


def _tensor(x: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(x.astype(np.float32))


def choose_sessions(
    num: int, rng: np.random.Generator, sources: Sources = "mixed"
) -> NDArray[np.int64]:
    """Four session indices in time order, the last one the latest, from `num` >= 2 sessions.

    "published": the three sessions before the last, the earliest repeated at the front where
    history is short. "mixed": so in seven windows of ten, otherwise any earlier ones, which
    teaches longer horizons.
    """
    target = int(rng.integers(1, num))
    if sources == "mixed" and target > LAST and rng.random() < 0.3:
        earlier = np.sort(rng.choice(target, LAST, replace=False))
    else:
        earlier = np.maximum(np.arange(target - LAST, target), 0)
    return np.append(earlier, target)


def choose_target(
    days: NDArray[np.int64],
    slots: TargetSlots,
    rng: np.random.Generator,
    of_batch: np.random.Generator,
) -> int:
    """The slot to predict; the other three are its sources, in time order.

    "future": the last, as in every forecast.
    "published": in half of the batches any of the four, so that windows of four days predict the
        past (slot 0), the middle and the future in 12.5, 25 and 62.5 %. In such a batch, where
        sources share a day, one coin for all decides between the last slot and the source that
        has a day of its own; where all three share it, any slot, although its day is seen beside.
    "paper": past, middle and future in 20, 30 and 50 %, as is reported of the paper; the last,
        where another slot shares the day of the one drawn, since that would show the answer.

    Args:
        days: (4,) of the window.
        rng, of_batch: of the window and of its batch, both fresh.
    """
    if slots == "future":
        return LAST
    if slots == "paper":
        slot = int(rng.choice(NUM_SESSIONS, p=(0.2, 0.15, 0.15, 0.5)))
        return slot if np.count_nonzero(days == days[slot]) == 1 else LAST
    is_random, to_first, to_third = of_batch.random(3) < 0.5
    if not is_random:
        return LAST
    first_shared, second_shared = days[0] == days[1], days[1] == days[2]
    if second_shared and not first_shared:
        return 0 if to_first else LAST
    if first_shared and not second_shared:
        return 2 if to_third else LAST
    return int(rng.integers(NUM_SESSIONS))
