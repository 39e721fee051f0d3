"""How near a student comes to its teacher, on windows and noise that it has not seen."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tadiff_rt.card import ModelCard
from tadiff_rt.certify.distilled import UNTRAINED
from tadiff_rt.certify.network import TINY, Drawn, distance
from tadiff_rt.ensemble import TARGET_SLOT, mask_probability
from tadiff_rt.errors import UsageError
from tadiff_rt.solvers import SolverPlan, make_plan, solve
from tadiff_train.data import CachedCase, split_by_patient
from tadiff_train.data.windows import Window, Windows, collate
from tadiff_train.distill.config import DistillConfig
from tadiff_train.distill.trajectory import (
    TEACHER_GRID,
    TEACHER_SOLVER,
    course,
    denoiser,
    start,
)
from tadiff_train.network import TaDiffNet

OTHER_NOISE = "{}, teacher with other noise"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Runs:
    """An ensemble on each of n windows."""

    images: NDArray[np.float32]
    """(samples, n, 3, h, w)"""
    probability: NDArray[np.float32]
    """(samples, n, h, w) of the target's tumour."""
    brain: NDArray[np.bool_]
    """(n, h, w) where any source has tissue."""

    @property
    def drawn(self) -> Drawn:
        """The same, as the certificates of bundles have it."""
        masks = self.probability > 0.5
        return Drawn(
            mean=self.images.mean(0).swapaxes(0, 1),
            std=self.images.std(0, ddof=1).swapaxes(0, 1),
            probability=self.probability.mean(0),
            voxels=masks.sum((1, 2, 3)),
            brain=self.brain,
        )

    @property
    def volume_spread(self) -> float:
        """Mean over windows of the standard deviation of the tumour's size, in voxels."""
        voxels = (self.probability > 0.5).sum((2, 3))
        return float(voxels.std(0, ddof=1).mean())


@dataclass(frozen=True)
class Measured:
    """Distances from the teacher; the names are those of a card's `measured`."""

    student: dict[str, float]
    untrained: dict[str, float]
    """Of the teacher's own solver in as many evaluations, with the same noise."""
    other_noise: dict[str, float]
    """Of the teacher itself with other noise: what so many samples cannot resolve."""

    def flat(self) -> dict[str, float]:
        """All of them under one name each."""
        return {
            **self.student,
            **{UNTRAINED.format(name): value for name, value in self.untrained.items()},
            **{OTHER_NOISE.format(name): value for name, value in self.other_noise.items()},
        }


def held_out(
    cases: Sequence[CachedCase], trained_on: Collection[str] = ()
) -> tuple[list[CachedCase], list[CachedCase]]:
    """Patients to distil on, and those to measure on: what the teacher learned on, and the others.

    Whom the teacher was kept from, the student is kept from too: a test patient of one is a test
    patient of the other. Where none of the cohort was trained on, the default split's "train" and
    the others. Where that leaves a side without patients, as a small cohort may, the last by name
    is measured on.

    Args:
        trained_on: names of the teacher's training patients; empty where that is not known.

    Raises:
        UsageError: TD3096, there is one patient alone.
    """
    usable = sorted(
        (c for c in cases if len(c.days) >= 2 and len(c.images)), key=lambda case: case.name
    )
    if len(usable) < 2:
        raise UsageError(
            "TD3096",
            "distilling needs two patients with two sessions and a slice with tumour, one to "
            f"learn on and one to measure on; got {len(usable)}",
            where="--data",
        )
    learnt = [case for case in usable if case.name in trained_on]
    learnt = learnt or split_by_patient(usable)["train"]
    names = {case.name for case in learnt}
    others = [case for case in usable if case.name not in names]
    if learnt and others:
        return learnt, others
    return usable[:-1], usable[-1:]


def measure(
    teacher: TaDiffNet,
    student: TaDiffNet,
    card: ModelCard,
    cases: Sequence[CachedCase],
    config: DistillConfig,
    *,
    windows: int = 16,
    samples: int = 8,
    progress: Progress | None = None,
) -> Measured:
    """Ensembles of the student, of the teacher in as many evaluations, and of the teacher itself.

    Args:
        card: of the teacher.
        cases: patients that the student was not trained on.
        windows: drawn from them.
        samples: of each ensemble, 2 or more.
    """
    schedule, few = card.schedule.build(), config.evaluations
    path = course(schedule, card.start_lam, few, config.substeps)
    coarse = make_plan(schedule, TEACHER_SOLVER, few, TEACHER_GRID, card.start_lam)
    runs = ((teacher, path.teacher, 0), (student, path.student, 0), (teacher, coarse, 0))
    drawn = []
    for number, (net, plan, seed) in enumerate((*runs, (teacher, path.teacher, 1))):
        drawn.append(_draw(net, plan, card, cases, windows, samples, (config.seed, seed)))
        if progress is not None:
            progress(number + 1, len(runs) + 1)
    reference, own, untrained, other = drawn
    return Measured(*(_distances(run, reference) for run in (own, untrained, other)))


@torch.no_grad()
def _draw(
    net: TaDiffNet,
    plan: SolverPlan,
    card: ModelCard,
    cases: Sequence[CachedCase],
    windows: int,
    samples: int,
    seeds: tuple[int, int],
) -> Runs:
    """`samples` of each of the first `windows` windows; the same noise for the same seeds."""
    source = Windows(cases, seed=seeds[0], num_timesteps=1, slots="future")
    device = next(net.parameters()).device
    images, probability, brain = [], [], []
    for index in range(windows):
        window = source[index]
        many = collate([window] * samples)
        noise = np.random.default_rng((*seeds, index)).standard_normal(
            many.noise.shape, dtype=np.float32
        )
        values = {**vars(many), "noise": torch.from_numpy(noise)}
        batch = Window(**{name: value.to(device) for name, value in values.items()})
        x = start(batch, plan, informed=card.start_lam is not None)
        image, logits = solve(denoiser(net, batch), x, plan, x0_range=card.x0_range)
        images.append(image.cpu().numpy())
        assert logits is not None
        probability.append(mask_probability(logits[:, TARGET_SLOT].cpu().numpy()))
        brain.append((window.images[:-1] > 0).any(dim=1).any(dim=0).numpy())
    masks = np.stack(probability, 1).astype(np.float32)
    return Runs(np.stack(images, 1), masks, np.stack(brain))


def _distances(run: Runs, reference: Runs) -> dict[str, float]:
    between = distance(run.drawn, reference.drawn)
    square = (run.images.astype(np.float64) - reference.images) ** 2
    return {
        "image": float(np.sqrt(square.mean((0, 2))[reference.brain].mean())),
        "mean image": between.mean,
        "spread": between.spread,
        "spread ratio": between.spread_ratio,
        "volume spread ratio": (run.volume_spread + TINY) / (reference.volume_spread + TINY),
        "probability": between.probability,
        "Dice": between.dice,
    }
