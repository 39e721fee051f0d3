"""The forecast of one case: from sessions and a request to volumes on the patient's grid."""

import time
from importlib.metadata import version
from pathlib import Path

from tadiff_rt.assembly import VOLUME_LEVEL, Forecast, assemble
from tadiff_rt.backends import Backend, available_cores, load_backend
from tadiff_rt.backends.choose import choose
from tadiff_rt.batches import Progress, Sampling
from tadiff_rt.bundle import Bundle, open_bundle
from tadiff_rt.case import Case, Session
from tadiff_rt.device.runners import Runners
from tadiff_rt.errors import UsageError
from tadiff_rt.journal import Journal, fingerprint
from tadiff_rt.preprocess import prepare
from tadiff_rt.report import (
    Stopwatch,
    model_report,
    sampling_report,
    session_report,
    volume_report,
    without_names,
)
from tadiff_rt.request import (
    PredictRequest,
    Request,
    check_request,
    parse_day,
    select_sources,
)
from tadiff_rt.runner import Runner, SampleSize, run_ensemble
from tadiff_rt.sampling import AUTO
from tadiff_rt.slices import choose_slices, parse_slices

__all__ = ["VOLUME_LEVEL", "Forecast", "Forecaster", "choose_slices"]


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
        self._schedule = bundle.manifest.card.schedule.build()

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
        samples: int | str = 5,
        seed: int | str = 0,
        steps: int | str = AUTO,
        slices: str = "brain",
        solver: str = AUTO,
        grid: str = AUTO,
        round_times: bool = False,
        volume_ci: float | str | None = None,
        max_samples: int | str = 64,
        coherence: float = 0.0,
        latin: bool = False,
        extrapolate: bool = False,
        workers: int = 1,
        work: Path | None = None,
        progress: Progress | None = None,
    ) -> Forecast:
        """Forecasts the scan and the tumour on a future day under a treatment.

        The same case, request and seed give the same bits on one machine, whatever else runs in
        the batch and with any number of workers; `samples=8` extends `samples=4` (but for
        `latin`). On a GPU a network may give other bits in buckets of another size, and free
        memory decides on it: the report names the bucket.

        Args:
            case: at least one session; the last three are used, fewer are padded at the front.
            day: since the first session, or "+90": since the last.
            treatment: given from the last session until `day`; a key of `case.TREATMENTS`.
            slices: "brain", "tumour" (needs masks), "all", "k", "a:b" or a list of such, in the
                canonical grid.
            samples, seed, steps, solver, grid, round_times, volume_ci, max_samples, coherence,
                latin: how the ensemble is drawn; see `sampling.SamplingRequest`. A distilled
                network takes the steps, solver and grid that it was trained for alone.
            extrapolate: days and horizons beyond training are noted instead of refused.
            workers: batches computed at a time, each on the threads of the backend; a GPU
                computes one.
            work: a folder that keeps finished slices: the same request goes on from them after
                an interruption. Not removed; see `journal.discard_journal`.

        Raises:
            InputDataError, UsageError: the case or the request cannot be used.
            NumericsError: a sample is not finite.
            ResourceError: memory ran out.
        """
        asked = PredictRequest(
            day=day,
            treatment=treatment,
            samples=samples,
            volume_ci=volume_ci,
            max_samples=max_samples,
            steps=steps,
            seed=seed,
            solver=solver,
            grid=grid,
            round_times=round_times,
            coherence=coherence,
            latin=latin,
            slices=slices,
            extrapolate=extrapolate,
        )
        asked.check()
        if workers < 1:
            raise UsageError("TD3022", f"workers must be 1 or more, got {workers}")
        manifest = self.bundle.manifest
        card = manifest.card
        request = Request(parse_day(day, case.sessions[-1].day), treatment)
        relaxed = check_request(
            request,
            case,
            max_day=card.max_day,
            max_horizon_days=card.max_horizon_days,
            treatments=card.treatments,
            extrapolate=extrapolate,
        )
        sources, padding = select_sources(case)
        size = asked.size()
        sampling = Sampling(
            asked.plan(self._schedule, card.start_lam, manifest.optimised, card.sampler),
            asked.noise(),
            card.x0_range,
            informed=card.start_lam is not None,
        )
        watch = Stopwatch({"load": self._load_seconds})
        with watch.stage("prepare"):
            prepared = prepare(sources, card.data)
            chosen = choose_slices(prepared, parse_slices(slices))
        with watch.stage("condition"):
            runner = self._runners.runner(
                sampling,
                conditions(sources, request, card.treatments),
                prepared.sources,
                size,
                len(chosen),
                workers=workers,
                progress=progress,
            )
        with watch.stage("sample"):
            inside = prepared.window.inside(prepared.grid.shape)
            # How many samples are enough depends on all slices; otherwise each stands alone.
            together = chosen if size.volume_ci else ()
            result = run_ensemble(
                runner,
                inside,
                chosen,
                size,
                self._journal(work, sampling, size, runner, inside, together),
            )
        notes = [*case.notes, *relaxed, *([padding] if padding else []), *prepared.notes]
        report = {
            "model": model_report(self.bundle, self.backend, self.choice),
            "request": {"day": request.day, "treatment": request.treatment},
            "sources": [session_report(session) for session in sources],
            "notes": [*without_names(notes, case), *result.notes],
            "sampling": {
                **sampling_report(sampling, size, result, chosen, runner.batch),
                "start_lam": card.start_lam,
            },
            **runner.report(),
        }
        with watch.stage("map back"):
            forecast = assemble(result, prepared, sources[-1], chosen, report)
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


def conditions(
    sources: tuple[Session, ...], request: Request, codes: dict[str, int]
) -> tuple[list[float], list[float]]:
    """Days and treatment codes of the four slots: the sources in time order, then the request."""
    days = [*(session.day for session in sources), request.day]
    treatments = [*(session.treatment for session in sources), request.treatment]
    return [float(day) for day in days], [float(codes[name]) for name in treatments]
