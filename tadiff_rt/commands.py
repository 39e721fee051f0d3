"""What `tadiff-rt predict` and `demo` do, callable from Python: read, forecast, write whole."""

import dataclasses
import time
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from tadiff_rt.backends import AUTO, available_cores, find_artefact
from tadiff_rt.batches import Progress
from tadiff_rt.bundle import open_bundle
from tadiff_rt.case import MODALITIES, Case, ReadOptions
from tadiff_rt.derivatives import expected_bytes, subject_label, write_comparison
from tadiff_rt.errors import EngineError, UsageError, printable
from tadiff_rt.forecast import Forecaster, Ready, make_ready
from tadiff_rt.journal import discard_journal
from tadiff_rt.overview import check_drawing
from tadiff_rt.preview import Estimate, estimate
from tadiff_rt.readers import read_case
from tadiff_rt.readers.tables import quoted
from tadiff_rt.request import NUM_SOURCES, PredictRequest
from tadiff_rt.scenarios import Comparison
from tadiff_rt.stopwatch import Stopwatch, whole
from tadiff_rt.write import ResultFolder, write_bytes

MANIFEST = "forecast.json"
REPORT = "report.html"
REPORT_BYTES = 15 << 20
"""More than the page takes."""

DEMO_DAYS = ("+60", "+120")
DEMO_TREATMENTS = ("TMZ", "none")
DEMO_PRESET = "fast"
"""The demo is to take minutes on two cores."""
DEMO_BUNDLE = "demo.tadiff"
DEMO_CASE = "demo_case"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """How a forecast is run; none of it changes a result but for `backend`."""

    backend: str = "auto"
    threads: int | None = None
    workers: int = 1
    """Batches at a time, which share the cores unless `threads` is given."""
    work: Path | None = None
    """Keeps finished slices; see `Forecaster.compare`. Removed in the end."""

    def load(self, engine: str | Path) -> Forecaster:
        """The forecaster of a bundle."""
        threads = self.threads or max(1, available_cores() // self.workers)
        return Forecaster.load(engine, self.backend, threads)


def predict_to_folder(
    engine: str | Path,
    case_path: Path,
    out: Path,
    request: PredictRequest,
    *,
    options: ReadOptions,
    running: Running,
    overwrite: bool = False,
    report: bool = False,
    subject: str = "",
    progress: Progress | None = None,
) -> Comparison:
    """Reads a case, forecasts it and writes a result folder, complete or not at all.

    Args:
        report: also writes a page to look at, `report.html`.
        subject: label of the patient in file names; empty: that of a folder sub-LABEL, and of
            other names none, because they may identify the patient.

    Raises:
        UsageError: TD3069, `subject` is no label; and see `Forecaster.compare`.
    """
    start, watch = time.perf_counter(), Stopwatch()
    with watch.stage("check"):
        request.check()
        check_subject(subject)
        check_drawing()
        _check_apart(running.work, [out, case_path, Path(engine)])
    inputs = [case_path, engine]
    with ResultFolder(out, overwrite=overwrite, inputs=inputs, manifest=MANIFEST) as result:
        with watch.stage("load"):
            forecaster = running.load(engine)
        with watch.stage("read"):
            case = read_case(case_path, options, last=NUM_SOURCES)
        result.require_space(result_bytes(case, request, report=report))
        comparison = forecaster.compare(
            case,
            workers=running.workers,
            work=running.work,
            progress=progress,
            **_fields(request),
        )
        label = subject or label_of(comparison.case_name)
        written = write_comparison(comparison, result, subject=label, watch=watch)
        if report:
            with watch.stage("page"):
                from tadiff_rt.html import report_html

                write_bytes(result.path / REPORT, report_html(comparison))
        _complete(comparison, result, written, watch, start)
    if running.work is not None:
        discard_journal(running.work)
    return comparison


def check_case(
    engine: str | Path,
    case_path: Path,
    out: Path | None,
    request: PredictRequest,
    options: ReadOptions,
    *,
    running: Running,
    overwrite: bool = False,
    subject: str = "",
) -> Ready:
    """Every check of the bundle, the case, the request and the place of the result.

    No network is loaded and nothing is written: whether the backend runs on this machine and what
    a work folder holds is seen later.
    """
    request.check()
    check_subject(subject)
    check_drawing()
    _check_apart(running.work, [*([out] if out else []), case_path, Path(engine)])
    if out is not None:
        place = ResultFolder(
            out, overwrite=overwrite, inputs=[case_path, engine], manifest=MANIFEST
        )
        place.check()
    bundle = open_bundle(engine)
    if running.backend != AUTO:
        find_artefact(running.backend, bundle)
    return make_ready(bundle, read_case(case_path, options, last=NUM_SOURCES), request)


def estimate_request(
    engine: str | Path,
    ready: Ready,
    request: PredictRequest,
    running: Running,
    *,
    report: bool = False,
) -> Estimate:
    """What a request that passed `check_case` will take, with one batch timed."""
    forecaster = running.load(engine)
    needed = result_bytes(ready.case, request, report=report)
    return estimate(
        forecaster,
        ready,
        needed,
        running.workers,
        page=report,
        resumable=running.work is not None,
    )


def result_bytes(case: Case, request: PredictRequest, *, report: bool) -> int:
    """What the result of a request takes on disk at most, with or without `report.html`."""
    voxels = case.sessions[-1].images[MODALITIES[0]].data.size
    scenarios = len(request.days) * len(request.treatments)
    page = REPORT_BYTES if report else 0
    return expected_bytes(voxels, scenarios, request.size().samples) + page


def run_demo(
    out: Path,
    samples: int | str,
    threads: int | None,
    overwrite: bool,
    progress: Progress | None = None,
) -> Comparison:
    """Forecasts the bundled simulated case on two days under two treatments."""
    request = PredictRequest(
        days=DEMO_DAYS,
        treatments=DEMO_TREATMENTS,
        samples=samples,
        preset=DEMO_PRESET,
        slices="tumour",
    )
    with as_file(files("tadiff_rt") / "data") as data:
        bundle, case_path = data / DEMO_BUNDLE, data / DEMO_CASE
        if not bundle.is_dir() or not case_path.is_dir():
            raise EngineError(
                "TD5014",
                "this installation holds no demo data",
                where=str(data),
                fix="make them with `make demo-data`, or install a released wheel",
            )
        return predict_to_folder(
            bundle,
            case_path,
            out,
            request,
            options=ReadOptions(),
            running=Running(threads=threads),
            overwrite=overwrite,
            report=True,
            progress=progress,
        )


def _fields(request: PredictRequest) -> dict[str, Any]:
    """By name, not copied."""
    return {f.name: getattr(request, f.name) for f in dataclasses.fields(request)}


def check_subject(subject: str) -> None:
    """UsageError TD3069 for what is no BIDS label; empty is none at all."""
    if subject and subject != subject_label(subject):
        what = f"a subject is 1 to 32 letters and digits, got {quoted(subject)}"
        raise UsageError("TD3069", what, where="--subject", fix="leave out sub- and other signs")


def label_of(case_name: str) -> str:
    """The label of a folder sub-LABEL; other names may identify the patient."""
    return subject_label(case_name if case_name.startswith("sub-") else "")


def _complete(
    comparison: Comparison,
    result: ResultFolder,
    written: dict[str, dict[str, Any]],
    watch: Stopwatch,
    start: float,
) -> None:
    with watch.stage("hash"):
        files = result.files()
    scenarios = {
        name: {**entry, **written.get(name, {})}
        for name, entry in comparison.report["scenarios"].items()
    }
    stages = {**comparison.report["seconds"], **watch.seconds}
    seconds = whole(stages, time.perf_counter() - start)
    report = {**comparison.report, "scenarios": scenarios, "seconds": seconds}
    comparison.report.update(report)
    result.complete({**report, "files": files})


def _check_apart(work: Path | None, folders: Sequence[Path]) -> None:
    """UsageError TD3055 for a work folder in the result or in an input, before anything runs."""
    if work is None:
        return
    for folder in folders:
        if work.resolve().is_relative_to(folder.resolve()):
            what = f"the work folder lies in {printable(str(folder))}"
            raise UsageError("TD3055", what, where="--work", fix="give a folder of its own")
