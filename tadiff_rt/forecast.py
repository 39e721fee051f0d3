"""The forecast of one case: from sessions and a request to volumes on the patient's grid."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.backends import Backend, load_backend
from tadiff_rt.bundle import Bundle, open_bundle
from tadiff_rt.case import MODALITIES, Case, Session
from tadiff_rt.ensemble import volume_interval
from tadiff_rt.geometry import spacing_of
from tadiff_rt.preprocess import Prepared, prepare
from tadiff_rt.request import (
    Request,
    SliceChoice,
    check_request,
    parse_day,
    parse_samples,
    parse_seed,
    parse_slices,
    parse_steps,
    select_sources,
)
from tadiff_rt.runner import EnsembleResult, Float32Array, Progress, run_ensemble
from tadiff_rt.solvers import SolverPlan, make_plan

VOLUME_LEVEL = 0.9
TUMOUR_MARGIN = 2
"""Slices forecast beyond those that hold tumour, for "--slices tumour"."""


@dataclass(frozen=True)
class VolumeEstimate:
    """Tumour volume of the forecast, over the slices that were forecast."""

    mean_ml: float
    low_ml: float | None
    """Lower end of the interval; None for a single sample."""
    high_ml: float | None
    level: float
    """Probability with which a further sample falls into the interval."""
    samples_ml: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Forecast:
    """A predicted session on the voxel grid of the last session's T1; never acquired."""

    mean: Float32Array
    """(3, x, y, z) mean T1, T1c, FLAIR in the scanner units of the last session; 0 where no slice
    was forecast."""
    std: Float32Array | None
    """(3, x, y, z) standard deviation over samples, same units; None for a single sample."""
    tumour_probability: Float32Array
    """(x, y, z) mean over samples of the tumour probability."""
    volume_ml: VolumeEstimate
    affine: NDArray[np.float64]
    """(4, 4) voxel -> RAS+ mm."""
    header: Any = field(repr=False)
    """NIfTI header of the last session's T1: orientation codes for writing."""
    slices: tuple[int, ...]
    """Forecast slices of the canonical grid, superior to inferior."""
    ensemble: EnsembleResult = field(repr=False)
    """The same statistics on the network's grid, in [0, 1]."""
    prepared: Prepared = field(repr=False)
    """The sources on the network's grid."""
    report: dict[str, Any] = field(repr=False)
    """What was asked, from what, with what, and how long it took; no identifiers."""

    @property
    def tumour_mask(self) -> NDArray[np.bool_]:
        """(x, y, z) voxels whose tumour probability is above one half."""
        return self.tumour_probability > 0.5


@dataclass
class Stopwatch:
    """Seconds spent in named stages."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to stage `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Forecaster:
    """A loaded bundle; one instance serves any number of cases and requests."""

    def __init__(self, bundle: Bundle, backend: Backend, load_seconds: float) -> None:
        self.bundle = bundle
        self.backend = backend
        self._load_seconds = load_seconds
        self._schedule = bundle.manifest.card.schedule.build()

    @classmethod
    def load(
        cls, path: str | Path, backend: str = "auto", threads: int | None = None
    ) -> "Forecaster":
        """Opens a bundle, verifies its files and loads it on a backend.

        Raises:
            EngineError: the bundle is damaged or cannot run here.
            UsageError: unknown backend.
        """
        start = time.perf_counter()
        bundle = open_bundle(path)
        loaded = load_backend(backend, bundle, threads)
        return cls(bundle, loaded, time.perf_counter() - start)

    def predict(
        self,
        case: Case,
        *,
        day: int | str,
        treatment: str,
        samples: int | str = 5,
        seed: int | str = 0,
        steps: int | str = 20,
        slices: str = "brain",
        solver: str = "dpmpp_2m",
        grid: str = "logsnr",
        extrapolate: bool = False,
        progress: Progress | None = None,
    ) -> Forecast:
        """Forecasts the scan and the tumour on a future day under a treatment.

        The same case, request and seed give the same bits on one machine with one number of
        threads, whatever else runs in the batch; `samples=8` extends `samples=4`.

        Args:
            case: at least one session; the last three are used, fewer are padded at the front.
            day: since the first session, or "+90": since the last.
            treatment: given from the last session until `day`; a key of `case.TREATMENTS`.
            samples: ensemble members; two or more give a spread.
            steps: network evaluations a sample.
            slices: "brain", "tumour" (needs masks), "all", "k" or "a:b", in the canonical grid.

        Raises:
            InputDataError, UsageError: the case or the request cannot be used.
            NumericsError: a sample is not finite.
        """
        card = self.bundle.manifest.card
        samples, seed = parse_samples(samples), parse_seed(seed)
        steps = parse_steps(steps, self._schedule.num_train_timesteps)
        choice = parse_slices(slices)
        request = Request(parse_day(day, case.sessions[-1].day), treatment)
        relaxed = check_request(
            request,
            case,
            max_day=card.max_day,
            treatments=card.treatments,
            extrapolate=extrapolate,
        )
        sources, padding = select_sources(case)
        plan = make_plan(self._schedule, solver, steps, grid)
        watch = Stopwatch({"load": self._load_seconds})
        with watch.stage("prepare"):
            prepared = prepare(sources, card.data)
            chosen = choose_slices(prepared, choice)
        with watch.stage("condition"):
            shifts = self.backend.condition(plan.t, *conditions(sources, request, card.treatments))
        with watch.stage("sample"):
            result = run_ensemble(
                self.backend,
                plan,
                shifts,
                prepared.sources,
                prepared.window.inside(prepared.grid.shape),
                chosen,
                samples,
                seed,
                card.x0_range,
                progress,
            )
        notes = [*case.notes, *relaxed, *([padding] if padding else []), *prepared.notes]
        report = {
            "model": self._model_report(),
            "request": {"day": request.day, "treatment": request.treatment},
            "sources": [session_report(session) for session in sources],
            "notes": without_names(notes, case),
            "sampling": {
                **sampling_report(plan, samples, seed, chosen, self.backend.batch),
                "x0_range": card.x0_range,
            },
        }
        with watch.stage("map back"):
            forecast = assemble(result, prepared, sources[-1], chosen, report)
        report["seconds"] = watch.seconds
        return forecast

    def _model_report(self) -> dict[str, Any]:
        manifest = self.bundle.manifest
        return {
            "tadiff": version("tadiff"),
            "backend": self.backend.description,
            "name": manifest.card.name,
            "trained_on": manifest.card.trained_on,
            "intended_use": manifest.card.intended_use,
            "bundle_manifest_sha256": self.bundle.manifest_sha256,
            "weights_sha256": manifest.weights_sha256,
        }


def conditions(
    sources: tuple[Session, ...], request: Request, codes: dict[str, int]
) -> tuple[list[float], list[float]]:
    """Days and treatment codes of the four slots: the sources in time order, then the request."""
    days = [*(session.day for session in sources), request.day]
    treatments = [*(session.treatment for session in sources), request.treatment]
    return [float(day) for day in days], [float(codes[name]) for name in treatments]


def choose_slices(prepared: Prepared, choice: SliceChoice) -> tuple[int, ...]:
    """Canonical slice indices to forecast; "tumour" adds a margin into which tumour may grow."""
    tumour = None
    if prepared.masks is not None:
        held = prepared.masks.any(axis=(0, 2, 3))
        reach = np.ones(2 * TUMOUR_MARGIN + 1, dtype=int)
        tumour = (np.convolve(held, reach, mode="same") > 0) & prepared.brain
    chosen = choice.resolve(len(prepared.sources), prepared.brain, tumour)
    return tuple(int(at) for at in chosen)


def assemble(
    result: EnsembleResult,
    prepared: Prepared,
    last: Session,
    slices: tuple[int, ...],
    report: dict[str, Any],
) -> Forecast:
    """The ensemble's statistics on the voxels of the last session's T1, in its scanner units."""
    volume = last.images[MODALITIES[0]]

    def mapped(images: Float32Array) -> Float32Array:
        scaled = images * prepared.intensity_scale[:, None, None, None]
        stacks = [prepared.to_patient_grid(image.astype(np.float32)) for image in scaled]
        return np.stack(stacks)

    voxel_ml = float(np.prod(spacing_of(volume.affine))) / 1000
    volume_ml = estimate_volume(tuple((result.tumour_voxels * voxel_ml).tolist()))
    report["volume_ml"] = {
        "mean": volume_ml.mean_ml,
        "interval": [volume_ml.low_ml, volume_ml.high_ml],
        "level": volume_ml.level,
        "samples": list(volume_ml.samples_ml),
        "covers": f"{len(slices)} forecast slices",
    }
    return Forecast(
        mean=mapped(result.mean),
        std=None if result.std is None else mapped(result.std),
        tumour_probability=prepared.to_patient_grid(result.probability),
        volume_ml=volume_ml,
        affine=volume.affine,
        header=volume.header,
        slices=slices,
        ensemble=result,
        prepared=prepared,
        report=report,
    )


def estimate_volume(samples_ml: tuple[float, ...]) -> VolumeEstimate:
    """Mean and prediction interval of the tumour volume; no interval for a single sample."""
    interval = volume_interval(samples_ml, VOLUME_LEVEL)
    mean, low, high = interval if interval else (samples_ml[0], None, None)
    return VolumeEstimate(mean, low, high, VOLUME_LEVEL, samples_ml)


def without_names(notes: Sequence[str], case: Case) -> list[str]:
    """`notes` with days in place of file and session names, which may identify the patient."""
    labels = {}
    for session in case.sessions:
        volumes = {**session.images, **({"mask": session.mask} if session.mask else {})}
        labels.update({v.label: f"{kind} of day {session.day}" for kind, v in volumes.items()})
    # A session may be named "3": only where a note ends a phrase with a name is it one.
    sessions = {session.name: f"day {session.day}" for session in case.sessions}
    name = re.compile(rf"(?<= )({'|'.join(map(re.escape, sessions))})(?=[,:]|$)")
    return [_replaced(note, labels) or name.sub(lambda m: sessions[m[1]], note) for note in notes]


def _replaced(note: str, labels: dict[str, str]) -> str:
    """`note` with the label that it is about replaced; empty if it is about none."""
    for label in sorted(labels, key=len, reverse=True):
        if label and label in note:
            return note.replace(label, labels[label])
    return ""


def session_report(session: Session) -> dict[str, Any]:
    """Day, treatment and voxel hashes of a source; no names."""
    return {
        "day": session.day,
        "treatment": session.treatment,
        "sha256": {modality: session.images[modality].sha256 for modality in MODALITIES},
    }


def sampling_report(
    plan: SolverPlan, samples: int, seed: int, slices: tuple[int, ...], batch: int
) -> dict[str, Any]:
    """How the ensemble was drawn."""
    return {
        "solver": plan.solver,
        "grid": plan.grid,
        "steps": plan.num_steps,
        "network_evaluations": plan.nfe * samples * len(slices),
        "samples": samples,
        "seed": seed,
        "slices": list(slices),
        "batch": batch,
    }
