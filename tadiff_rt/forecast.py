"""The forecast of one case: from sessions and a request to volumes on the patient's grid."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Unpack

from tadiff_rt.assembly import VOLUME_LEVEL, Forecast, assemble
from tadiff_rt.backends import Backend, available_cores, load_backend
from tadiff_rt.backends.choose import choose
from tadiff_rt.batches import Progress, Sampling
from tadiff_rt.bundle import Bundle, open_bundle
from tadiff_rt.case import Case, Session
from tadiff_rt.device.runners import Runners
from tadiff_rt.differences import compare_forecasts, comparison_report, past_volumes
from tadiff_rt.errors import UsageError
from tadiff_rt.journal import Journal, fingerprint, journal_folders
from tadiff_rt.preprocess import Prepared, prepare
from tadiff_rt.report import (
    model_report,
    sampling_report,
    session_report,
    volume_report,
    without_names,
)
from tadiff_rt.request import (
    Options,
    PredictRequest,
    Scenario,
    check_scenarios,
    select_sources,
)
from tadiff_rt.runner import Runner, SampleSize, run_ensemble
from tadiff_rt.sampling import AUTO
from tadiff_rt.scenarios import Comparison
from tadiff_rt.slices import choose_slices, parse_slices
from tadiff_rt.stopwatch import Stopwatch, of_all

__all__ = ["VOLUME_LEVEL", "Forecast", "Forecaster", "Ready", "choose_slices"]


@dataclass(frozen=True, eq=False)
class Ready:
    """A case that passed every check, with what the scenarios of a request share."""

    case: Case
    scenarios: tuple[Scenario, ...]
    sources: tuple[Session, Session, Session]
    prepared: Prepared
    slices: tuple[int, ...]
    size: SampleSize
    sampling: Sampling
    notes: tuple[str, ...]
    """What was assumed, relaxed or is unusual; may name sessions and files."""


class Forecaster:
    """A loaded bundle; one instance serves any number of cases and requests."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        load_seconds: float,
        choice: tuple[str, ...] = (),
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.choice = choice
        """Why this backend, a line each, where it was left to the program."""
        self._runners = Runners(backend, bundle)
        self._load_seconds = load_seconds

    @classmethod
    def load(
        cls, path: str | Path, backend: str = "auto", threads: int | None = None
    ) -> "Forecaster":
        """Opens a bundle, verifies its files and loads it on a backend.

        Args:
            backend: "NAME", "NAME:PRECISION", or "auto" for the fastest that was measured here.
            threads: of a CPU; None for all cores.

        Raises:
            EngineError: the bundle is damaged or cannot run here.
            UsageError: unknown backend, or an address in place of a folder.
        """
        start = time.perf_counter()
        bundle = open_bundle(path)
        reasons: tuple[str, ...] = ()
        if backend == AUTO:
            choice = choose(bundle, threads or available_cores())
            loaded, reasons = choice.backend, choice.reasons
        else:
            loaded = load_backend(backend, bundle, threads)
        return cls(bundle, loaded, time.perf_counter() - start, reasons)

    def predict(
        self,
        case: Case,
        *,
        day: int | str,
        treatment: str,
        workers: int = 1,
        work: Path | None = None,
        progress: Progress | None = None,
        **options: Unpack[Options],
    ) -> Forecast:
        """Forecasts the scan and the tumour on a future day under a treatment.

        See `compare`, of which this is one scenario.
        """
        comparison = self.compare(
            case,
            days=[day],
            treatments=[treatment],
            workers=workers,
            work=work,
            progress=progress,
            **options,
        )
        return comparison.first

    def compare(
        self,
        case: Case,
        *,
        days: Sequence[int | str],
        treatments: Sequence[str],
        workers: int = 1,
        work: Path | None = None,
        progress: Progress | None = None,
        **options: Unpack[Options],
    ) -> Comparison:
        """Forecasts every day under every treatment with the same noise, and what differs.

        The same case, scenario, options and seed give the same bits on one machine, whatever
        else is asked for or runs in the batch and with any number of workers; `samples=8` extends
        `samples=4` (but for `latin`). On a GPU a network may give other bits in buckets of
        another size, and free memory decides on it: the report names the bucket.

        Args:
            case: at least one session; the last three are used, fewer are padded at the front.
            days: each since the first session, or "+90": since the last.
            treatments: each given from the last session until the day; keys of
                `case.TREATMENTS`. The others are compared with the last of them.
            workers: batches computed at a time, each on the threads of the backend; a GPU
                computes one.
            work: a folder that keeps finished slices: the same request goes on from them after
                an interruption. Not removed; see `journal.discard_journal`.
            progress: called with the network evaluations done and in total.
            options: fields of `request.PredictRequest`: samples, steps, seed, slices, ... A
                distilled network takes the steps, solver and grid that it was trained for alone.

        Raises:
            InputDataError, UsageError: the case or the request cannot be used.
            NumericsError: a sample is not finite.
            ResourceError: memory ran out.
        """
        if workers < 1:
            raise UsageError("TD3022", f"workers must be 1 or more, got {workers}")
        watch = Stopwatch({"load": self._load_seconds})
        with watch.stage("prepare"):
            request = PredictRequest(days=days, treatments=treatments, **options)
            ready = make_ready(self.bundle, case, request)
        scenarios = ready.scenarios
        folders = journal_folders(work, [scenario.name for scenario in scenarios])
        forecasts = {}
        for number, (scenario, folder) in enumerate(zip(scenarios, folders, strict=True)):
            forecasts[scenario] = self._forecast(
                ready,
                scenario,
                watch.copy(),
                workers=workers,
                work=folder,
                keep=len(request.treatments) > 1,
                progress=_part(progress, number, len(scenarios)),
            )
        of_each = [forecast.report["seconds"] for forecast in forecasts.values()]
        with watch.stage("compare"):
            past = past_volumes(ready.sources)
            differences = compare_forecasts(forecasts)
            report = comparison_report(forecasts, differences, past)
        report["seconds"] = of_all(watch.seconds, of_each)
        return Comparison(case.name, forecasts, differences, past, report)

    def _forecast(
        self,
        ready: Ready,
        scenario: Scenario,
        watch: Stopwatch,
        *,
        workers: int,
        work: Path | None,
        keep: bool,
        progress: Progress | None,
    ) -> Forecast:
        """One scenario of a case that is ready."""
        prepared, chosen, size, sampling = (
            ready.prepared,
            ready.slices,
            ready.size,
            ready.sampling,
        )
        card = self.bundle.manifest.card
        with watch.stage("condition"):
            runner = self._runners.runner(
                sampling,
                conditions(ready.sources, scenario, card.treatments),
                prepared.sources,
                size,
                len(chosen),
                workers=workers,
                progress=progress,
                keep=keep,
            )
        with watch.stage("sample"):
            inside = prepared.window.inside(prepared.grid.shape)
            # How many samples are enough depends on all slices; otherwise each stands alone.
            together = chosen if size.volume_ci else ()
            more = (inside, together, *(["kept"] if keep else []))
            journal = self._journal(work, sampling, size, runner, *more)
            result = run_ensemble(runner, inside, chosen, size, journal)
        watch.split("sample", runner.seconds)
        report = {
            "model": model_report(self.bundle, self.backend, self.choice),
            "request": {"day": scenario.day, "treatment": scenario.treatment},
            "sources": [session_report(session) for session in ready.sources],
            "notes": [*without_names(ready.notes, ready.case), *result.notes],
            "sampling": {
                **sampling_report(sampling, size, result, chosen, runner.batch),
                "start_lam": card.start_lam,
            },
            **runner.report(),
        }
        with watch.stage("map back"):
            forecast = assemble(result, prepared, ready.sources[-1], chosen, report)
        report["volume_ml"] = volume_report(forecast.volume_ml, len(chosen))
        report["seconds"] = watch.seconds
        return forecast

    def _journal(
        self,
        work: Path | None,
        sampling: Sampling,
        size: SampleSize,
        runner: Runner,
        *more: object,
    ) -> Journal | None:
        """The journal of this very forecast in `work`."""
        if work is None:
            return None
        parts = [
            self.bundle.manifest_sha256,
            version("tadiff"),
            runner.runtime,
            sampling.plan.table,
            sampling.noise,
            sampling.x0_range,
            sampling.informed,
            size,
            runner.conditioning,
            runner.sources,
            *more,
        ]
        return Journal(work, fingerprint(parts))


def make_ready(bundle: Bundle, case: Case, request: PredictRequest) -> Ready:
    """Everything that can be checked without a network, and what all scenarios share.

    Raises:
        InputDataError, UsageError: the case or the request cannot be used.
    """
    request.check()
    manifest, card = bundle.manifest, bundle.manifest.card
    scenarios = request.scenarios(case.sessions[-1].day)
    relaxed = check_scenarios(scenarios, case, card, extrapolate=request.extrapolate)
    sources, padding = select_sources(case)
    plan = request.plan(card.schedule.build(), card.start_lam, manifest.optimised, card.sampler)
    informed = card.start_lam is not None
    sampling = Sampling(plan, request.noise(), card.x0_range, informed=informed)
    prepared = prepare(sources, card.data, resample=request.resample)
    return Ready(
        case,
        scenarios,
        sources,
        prepared,
        choose_slices(prepared, parse_slices(request.slices)),
        request.size(),
        sampling,
        (*case.notes, *relaxed, *([padding] if padding else []), *prepared.notes),
    )


def conditions(
    sources: tuple[Session, ...], scenario: Scenario, codes: dict[str, int]
) -> tuple[list[float], list[float]]:
    """Days and treatment codes of the four slots: the sources in time order, then the request."""
    days = [*(session.day for session in sources), scenario.day]
    treatments = [*(session.treatment for session in sources), scenario.treatment]
    return [float(day) for day in days], [float(codes[name]) for name in treatments]


def _part(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Progress of the `number`-th of `count` equal parts."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, count * total)
