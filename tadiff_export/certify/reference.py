"""What the checkpoint computes, in float64: the measure of every artefact of one export."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from tadiff_export.certify.exact import Count, NetworkBackend
from tadiff_export.certify.measure import Outputs, errors
from tadiff_export.certify.probes import NUM_SOURCES, REQUEST, head_slices, make_probes
from tadiff_rt.backends import Backend
from tadiff_rt.batches import BatchRunner, Progress, Sampling
from tadiff_rt.card import ModelCard
from tadiff_rt.certify.network import Distance, Drawn, distance
from tadiff_rt.errors import UsageError
from tadiff_rt.noise import NoiseSource
from tadiff_rt.runner import SampleSize, run_ensemble
from tadiff_rt.sampling import SamplingRequest
from tadiff_train.network import TaDiffNet

PROBE_ROWS = 2
"""Different rows of a probe: with one, a bucket whose rows are mixed up would look right."""

ENSEMBLE_IMAGES = 4
"""Seed of the slice that the ensemble is drawn for; probes have those below."""

DESCRIPTION = (
    f"the checkpoint in PyTorch {torch.__version__}, convolutions, norms and attention in float64"
)


@dataclass(frozen=True)
class Settings:
    """How much is measured. Cost: 8 + samples x num_steps evaluations in float64, that and twice
    the second part in fp32, and for every artefact 8 + 2 x samples x num_steps of its own."""

    samples: int = 4
    num_steps: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 2 or self.num_steps < 1:
            raise UsageError(
                "TD3015",
                "a certificate needs 2 or more samples and 1 or more steps, got "
                f"{self.samples} and {self.num_steps}",
            )


DEFAULT = Settings()


@dataclass(frozen=True, eq=False)
class Point:
    """An evaluation of the network with its exact result."""

    t: float
    shift_row: int
    """Which of the rows of `Reference.condition` belongs to it."""
    sources: NDArray[np.float32]
    """(n, 9, h, w)"""
    x: NDArray[np.float32]
    """(n, 3, h, w)"""
    exact: Outputs
    """float64, (n, 3, h, w) and (n, 4, h, w)."""
    own: dict[str, float]
    """Errors of plain fp32 PyTorch; see `measure.errors`."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Everything that artefacts of one checkpoint are compared with, computed once.

    Memory: the outputs of every evaluation in float64, 60 MB for 4 samples of 6 steps of a
    192 x 192 image.
    """

    settings: Settings
    sampling: Sampling
    sources: NDArray[np.float32] = field(repr=False)
    """(1, 9, h, w) of the ensemble."""
    times: NDArray[np.float64]
    """(probes,) t of every probe."""
    probes: tuple[Point, ...] = field(repr=False)
    conditions: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    """Days and treatment codes of every probe."""
    steps: tuple[Point, ...] = field(repr=False)
    """Every sample at every step of its trajectory."""
    drawn: Drawn = field(repr=False)
    """The ensemble."""
    floor: Distance
    """Of an ensemble of another seed, drawn by fp32 PyTorch, from it."""

    @classmethod
    def build(
        cls,
        net: TaDiffNet,
        card: ModelCard,
        settings: Settings = DEFAULT,
        progress: Progress | None = None,
    ) -> "Reference":
        """Evaluates the checkpoint on the probes and along the trajectories of an ensemble.

        Args:
            card: says image size, schedule, range of the data and start, as in the runtime.
            progress: called with evaluations done and in total.
        """
        schedule, size = card.schedule.build(), card.data.size
        probes = make_probes(schedule, PROBE_ROWS, size)
        along = settings.samples * min(settings.num_steps, schedule.num_train_timesteps)
        count = Count(progress, 2 * len(probes) * PROBE_ROWS + 3 * along)
        exact = NetworkBackend(net, torch.float64, count)
        plain = NetworkBackend(net, torch.float32, count)
        points = []
        for k, probe in enumerate(probes):
            for backend in (exact, plain):
                backend.condition(np.array([probe.t]), probe.days, probe.treatments)
            points.append(_point(exact, plain, probe.t, k, probe.sources, probe.x))
        sampling = sampling_of(card, settings)
        sources = head_slices(ENSEMBLE_IMAGES, 1, size)[:, :NUM_SOURCES]
        drawn = draw(exact, sampling, sources, settings.samples)
        steps = _steps(exact, plain, sampling, sources, settings.samples)
        other = replace(sampling, noise=NoiseSource(settings.seed ^ 1))
        floor = distance(draw(plain, other, sources, settings.samples), drawn)
        return cls(
            settings=settings,
            sampling=sampling,
            sources=sources,
            times=np.array([probe.t for probe in probes]),
            probes=tuple(points),
            conditions=tuple((probe.days, probe.treatments) for probe in probes),
            steps=steps,
            drawn=drawn,
            floor=floor,
        )


def sampling_of(card: ModelCard, settings: Settings) -> Sampling:
    """As the runtime samples by default, in fewer steps."""
    schedule = card.schedule.build()
    request = SamplingRequest(
        samples=settings.samples,
        steps=min(settings.num_steps, schedule.num_train_timesteps),
        seed=settings.seed,
    )
    return Sampling(
        request.plan(schedule, card.start_lam),
        request.noise(),
        card.x0_range,
        informed=card.start_lam is not None,
    )


def draw(
    backend: Backend,
    sampling: Sampling,
    sources: NDArray[np.float32],
    samples: int,
    progress: Progress | None = None,
) -> Drawn:
    """An ensemble of one slice, by the loop of the runtime.

    Raises:
        NumericsError: the backend gave NaN or infinity (TD6002).
    """
    shifts = backend.condition(sampling.plan.t, *REQUEST)
    runner = BatchRunner(backend, sampling, shifts, sources, progress=progress)
    result = run_ensemble(runner, np.ones(sources.shape[2:], np.bool_), [0], SampleSize(samples))
    assert result.std is not None
    brain = np.any(sources > 0, axis=1)
    return Drawn(result.mean, result.std, result.probability, result.tumour_voxels, brain)


def _point(
    exact: NetworkBackend,
    plain: NetworkBackend,
    t: float,
    row: int,
    sources: NDArray[np.float32],
    x: NDArray[np.float32],
) -> Point:
    outputs = exact.evaluate(sources, x, row)
    return Point(t, row, sources, x, outputs, errors(plain.evaluate(sources, x, row), outputs))


def _steps(
    exact: NetworkBackend,
    plain: NetworkBackend,
    sampling: Sampling,
    sources: NDArray[np.float32],
    samples: int,
) -> tuple[Point, ...]:
    """The evaluations of the ensemble that `exact` has just drawn, sample by sample."""
    plan = sampling.plan
    rows = plain.condition(plan.t, *REQUEST)[:, 0].astype(int)
    taken = exact.evaluations
    points = []
    for i, t in enumerate(plan.t.tolist()):
        mine = taken[i :: plan.num_steps]
        x = np.concatenate([x for x, _ in mine])
        outputs = {
            name: np.concatenate([outputs[name] for _, outputs in mine]) for name in mine[0][1]
        }
        repeated = np.repeat(sources, samples, axis=0)
        own = errors(plain.evaluate(repeated, x, rows[i]), outputs)
        points.append(Point(t, i, repeated, x, outputs, own))
    return tuple(points)
