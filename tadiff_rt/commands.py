"""What `tadiff-rt predict` and `demo` do, callable from Python: read, forecast, write whole."""

import dataclasses
import time
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from tadiff_rt.assembly import Forecast
from tadiff_rt.backends import available_cores
from tadiff_rt.batches import Progress
from tadiff_rt.case import MODALITIES, Case, ReadOptions
from tadiff_rt.errors import EngineError, UsageError, printable
from tadiff_rt.forecast import Forecaster
from tadiff_rt.journal import discard_journal
from tadiff_rt.overview import check_drawing, difference_png, overview_png
from tadiff_rt.readers import read_case
from tadiff_rt.request import NUM_SOURCES, PredictRequest
from tadiff_rt.write import ResultFolder, write_bytes, write_nifti

MANIFEST = "forecast.json"
IMAGES = ("T1w", "ce-gadolinium_T1w", "FLAIR")
"""File name endings of T1, T1c and FLAIR, as in BIDS."""

PICTURE_BYTES = 1 << 20
"""More than an overview or a difference takes as PNG."""

DEMO_DAYS = "+120"
DEMO_TREATMENTS = ("TMZ", "none")
DEMO_STEPS = 10
"""Half the default: the demo is to take minutes on two cores."""
DEMO_BUNDLE = "demo.tadiff"
DEMO_CASE = "demo_case"


def write_forecast(forecast: Forecast, folder: Path) -> list[str]:
    """Writes the volumes and the overview of a forecast; returns the file names."""
    written = []

    def volume(name: str, data: Any, dtype: str = "float32") -> None:
        write_nifti(folder / name, data, forecast.affine, forecast.header, dtype)
        written.append(name)

    for m, ending in enumerate(IMAGES):
        volume(f"predicted_{ending}.nii.gz", forecast.mean[m])
        if forecast.std is not None:
            volume(f"predictedstd_{ending}.nii.gz", forecast.std[m])
    volume("tumour_probability.nii.gz", forecast.tumour_probability)
    volume("tumour_mask.nii.gz", forecast.tumour_mask, "uint8")
    write_bytes(folder / "overview.png", overview_png(forecast))
    return [*written, "overview.png"]


def expected_bytes(case: Case, samples: int) -> int:
    """Bytes that `write_forecast` takes at most: those of the volumes before compression."""
    voxels = case.sessions[-1].images[MODALITIES[0]].data.size
    float_volumes = len(IMAGES) * (2 if samples > 1 else 1) + 1
    return voxels * (4 * float_volumes + 1) + PICTURE_BYTES


def predict_to_folder(
    engine: str | Path,
    case_path: Path,
    out: Path,
    request: PredictRequest,
    *,
    options: ReadOptions,
    overwrite: bool = False,
    backend: str = "auto",
    threads: int | None = None,
    workers: int = 1,
    work: Path | None = None,
    progress: Progress | None = None,
) -> Forecast:
    """Reads a case, forecasts it and writes a result folder, complete or not at all.

    Args:
        workers, work: see `Forecaster.predict`. What is kept in `work` is removed in the end.
    """
    start = time.perf_counter()
    request.check()
    check_drawing()
    _check_apart(work, out, [case_path, Path(engine)])
    inputs = [case_path, engine]
    with ResultFolder(out, overwrite=overwrite, inputs=inputs, manifest=MANIFEST) as result:
        # Workers share the cores, unless the number of threads is asked for.
        forecaster = Forecaster.load(
            engine, backend, threads or max(1, available_cores() // workers)
        )
        reading = time.perf_counter()
        case = read_case(case_path, options, last=NUM_SOURCES)
        read_seconds = time.perf_counter() - reading
        result.require_space(expected_bytes(case, request.size().samples))
        forecast = forecaster.predict(
            case, progress=progress, workers=workers, work=work, **dataclasses.asdict(request)
        )
        writing = time.perf_counter()
        write_forecast(forecast, result.path)
        seconds = forecast.report["seconds"]
        seconds.update(read=read_seconds, write=time.perf_counter() - writing)
        seconds["total"] = time.perf_counter() - start
        result.complete({**forecast.report, "files": result.files()})
    if work is not None:
        discard_journal(work)
    return forecast


def _check_apart(work: Path | None, out: Path, inputs: Sequence[Path]) -> None:
    """UsageError TD3055 for a work folder in the result or in an input, before anything runs."""
    if work is None:
        return
    for folder in (out, *inputs):
        if work.resolve().is_relative_to(folder.resolve()):
            what = f"the work folder lies in {printable(str(folder))}"
            raise UsageError("TD3055", what, where="--work", fix="give a folder of its own")


def run_demo(
    out: Path,
    samples: int | str,
    threads: int | None,
    overwrite: bool,
    progress: Progress | None = None,
) -> dict[str, Forecast]:
    """Forecasts the bundled simulated case under two treatments with the same noise."""
    requests = {
        treatment: PredictRequest(
            day=DEMO_DAYS, treatment=treatment, samples=samples, steps=DEMO_STEPS, slices="tumour"
        )
        for treatment in DEMO_TREATMENTS
    }
    for request in requests.values():
        request.check()
    check_drawing()
    with as_file(files("tadiff_rt") / "data") as data:
        bundle, case_path = data / DEMO_BUNDLE, data / DEMO_CASE
        if not bundle.is_dir() or not case_path.is_dir():
            raise EngineError(
                "TD5014",
                "this installation holds no demo data",
                where=str(data),
                fix="make them with `make demo-data`, or install a released wheel",
            )
        with ResultFolder(out, overwrite=overwrite, manifest=MANIFEST) as result:
            forecaster = Forecaster.load(bundle, threads=threads)
            case = read_case(case_path, last=NUM_SOURCES)
            each = [expected_bytes(case, r.size().samples) for r in requests.values()]
            result.require_space(sum(each) + PICTURE_BYTES)
            forecasts: dict[str, Forecast] = {}
            for number, (treatment, request) in enumerate(requests.items()):
                forecasts[treatment] = forecaster.predict(
                    case,
                    **dataclasses.asdict(request),
                    progress=_shared(progress, number, len(requests)),
                )
                write_forecast(forecasts[treatment], result.subfolder(treatment))
            write_bytes(result.path / "difference.png", difference_png(forecasts))
            reports = {name: forecast.report for name, forecast in forecasts.items()}
            result.complete({"forecasts": reports, "files": result.files()})
    return forecasts


def _shared(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Progress of the `number`-th of `count` equal parts."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, count * total)
