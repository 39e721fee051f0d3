"""Training windows from longitudinal cases: three source sessions and a target, one slice."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tadiff_rt.errors import UsageError
from tadiff_train.data.cache import CachedCase
from tadiff_train.diffusion import Batch
from tadiff_train.network import NUM_SESSIONS

TargetSlots = Literal["published", "future"]


def choose_sessions(num: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Four session indices in time order, the last one the target, from `num` >= 2 sessions.

    Mostly the three sessions before the target, the earliest repeated at the front where history
    is short (the published window); otherwise any earlier ones, which teaches longer horizons.
    """
    target = int(rng.integers(1, num))
    if target > NUM_SESSIONS - 1 and rng.random() < 0.3:
        sources = np.sort(rng.choice(target, NUM_SESSIONS - 1, replace=False))
    else:
        sources = np.maximum(np.arange(target - NUM_SESSIONS + 1, target), 0)
    return np.append(sources, target)


def choose_target(rng: np.random.Generator, slots: TargetSlots) -> int:
    """The slot to predict: always the last, or half of the time any of the four (published)."""
    if slots == "published" and rng.random() < 0.5:
        return int(rng.integers(NUM_SESSIONS))
    return NUM_SESSIONS - 1


def batches(
    cases: Sequence[CachedCase], batch_size: int, seed: int, slots: TargetSlots = "future"
) -> Iterator[Batch]:
    """An endless stream of random windows; patients are drawn evenly, with left-right flips."""
    rng = np.random.default_rng([seed, 0x7AD1FF])
    usable = [c for c in cases if len(c.days) >= 2 and len(c.images)]
    if not usable:
        raise UsageError("TD3032", "no case has two sessions and a slice with tumour")
    while True:
        rows = [_window(usable[int(rng.integers(len(usable)))], rng) for _ in range(batch_size)]
        images, masks, days, treatments = (np.stack(column) for column in zip(*rows, strict=True))
        yield Batch(
            images=torch.from_numpy(images.astype(np.float32)),
            masks=torch.from_numpy(masks.astype(np.float32)),
            days=torch.from_numpy(days.astype(np.float32)),
            treatments=torch.from_numpy(treatments.astype(np.float32)),
            target=torch.tensor([choose_target(rng, slots) for _ in range(batch_size)]),
        )


def _window(case: CachedCase, rng: np.random.Generator) -> tuple[NDArray[np.generic], ...]:
    at = int(rng.integers(len(case.images)))
    sessions = choose_sessions(len(case.days), rng)
    images, masks = case.images[at][sessions], case.masks[at][sessions]
    if rng.random() < 0.5:  # axis -1 runs right to left: brains are nearly symmetric
        images, masks = images[..., ::-1], masks[..., ::-1]
    return images, masks, np.array(case.days)[sessions], np.array(case.treatments)[sessions]
