"""How long does an export take, and where?  `python -m benchmarks.export_time [SAMPLES STEPS]`

- "demo 96": a checkpoint of the bundled network's configuration, with made-up weights, becomes a
  bundle of every target that can be built here, in fp32, in a process of its own as
  `tadiff-export` runs. Its parts sum to the total; "beside the stages" are the canary, lowering,
  opening what was made, hashing and writing. What cannot be built here is a row that says why.
- "A 192": the ONNX graphs alone of configuration A (32 channels, 2 residual blocks, 4 heads), by
  calling the steps, with their largest difference from PyTorch in one evaluation.
- Every file, written as those of a bundle are, which includes reading it back: its size, and the
  time beside that of copying as many bytes.

Certificates draw SAMPLES of STEPS evaluations, by default as many as `tadiff-export`. About three
minutes on two cores.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from benchmarks.engines_cpu import check, eager, inputs, onnxruntime
from benchmarks.floor import Roofline, Row, Work, timed_row
from benchmarks.gpu_bundle import network
from benchmarks.harness import row, run_in_turns, save
from benchmarks.made_case import card_of, write_checkpoint
from tadiff_export.certify.reference import Settings
from tadiff_export.norms import lower_group_norms
from tadiff_export.onnx import QUERY_CHUNK, conditioner_to_onnx, denoiser_to_onnx
from tadiff_export.package import export
from tadiff_export.split import split
from tadiff_export.wanted import TARGETS, Wanted
from tadiff_rt.backends import available_cores
from tadiff_rt.batches import Progress
from tadiff_rt.bundle import open_bundle
from tadiff_rt.certificate import Certificate
from tadiff_rt.errors import TadiffError
from tadiff_rt.manifest import Artefact
from tadiff_rt.write import write_bytes
from tadiff_train.network import NetworkConfig

NO_FLOOR = "tracing, compiling, comparing: no bytes or arithmetic that it cannot do without"
START, READ, REST = "start of Python and imports", "check and read", "beside the stages"
END, TOTAL = "end of the process", "total"
WRITES = 5
DEMO = Path(__file__).parents[1] / "tadiff_rt" / "data" / "demo.tadiff"
LAUNCH = """
import json, sys, time
import tadiff_export.cli, tadiff_export.package
imported = time.monotonic()
from benchmarks.export_time import exported
run, out, settings, *targets = sys.argv[1:]
seconds = exported(run, out, json.loads(settings), targets)
print(json.dumps([imported, seconds, time.monotonic()]))
"""
"""What this benchmark imports beside the exporter is in none of the times."""

T = TypeVar("T")
Times = dict[str, list[float]]
"""Seconds of each time that something was done, by name."""


class Stages:
    """When an export says that it begins and ends its stages; see `package.export`."""

    def __init__(self) -> None:
        self.seconds: Times = {}
        self._start = time.perf_counter()

    @contextmanager
    def stage(self, title: str) -> Iterator[Progress]:
        """The `stage` of an export."""
        start = time.perf_counter()
        yield lambda done, total: None
        self.seconds.setdefault(title, []).append(time.perf_counter() - start)

    def say(self, message: str) -> None:
        """The `say` of an export, whose first remark comes when the checkpoint is read."""
        self.seconds.setdefault(READ, [time.perf_counter() - self._start])


def exported(run: str, out: str, settings: dict[str, int], targets: list[str]) -> Times:
    """Exports a checkpoint: its stages, and as `REST` what is in none."""
    stages, start = Stages(), time.perf_counter()
    wanted = Wanted(targets=tuple(target for target in TARGETS if target in targets))
    export(
        Path(run),
        Path(out),
        wanted=wanted,
        settings=Settings(**settings),
        stage=stages.stage,
        say=stages.say,
    )
    whole = time.perf_counter() - start
    return {**stages.seconds, REST: [whole - sum(map(sum, stages.seconds.values()))]}


def in_process(run: Path, out: Path, settings: Settings, targets: list[str]) -> Times:
    """`exported` in a process of its own, with its start and its end.

    Raises:
        SystemExit: it failed.
    """
    words = [str(run), str(out), json.dumps(asdict(settings)), *targets]
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", LAUNCH, *words], capture_output=True, text=True, check=False
    )
    over = time.monotonic()
    if ended.returncode:
        raise SystemExit(f"the export failed: {ended.stderr[-500:]}")
    imported, inside, last = json.loads(ended.stdout.splitlines()[-1])
    return {START: [imported - began], **inside, END: [over - last]}


def available() -> tuple[list[str], dict[str, str]]:
    """Targets that can be built here, and why the others cannot."""
    here: list[str] = []
    reasons: dict[str, str] = {}
    for target in TARGETS:
        try:
            Wanted(targets=(target,)).check()
            here.append(target)
        except TadiffError as error:
            reasons[target] = f"{error.code}: {error.message}"
    return here, reasons


def verdict(artefact: Artefact) -> object:
    """What the certificate of an artefact says, or that of the graph that it was built from."""
    if artefact.role == "conditioner":
        return "compared with the checkpoint when it was made"
    if artefact.certificate is not None:
        return _said(artefact.certificate)
    graph = artefact.graph_certificate
    return {"not_run_here": True, **({"of_its_graph": _said(graph)} if graph else {})}


def _said(certificate: Certificate) -> dict[str, object]:
    return {
        "certificate": "passed" if certificate.passed else "failed",
        "of_allowed": round(certificate.worst, 4),
        "eps_error": certificate.outputs["eps"].value,
    }


def bundle_rows(
    case: str, run: Path, folder: Path, settings: Settings, roofline: Roofline
) -> list[Row]:
    """An export of every target that can be built here: stages, total, the missing, files."""
    targets, reasons = available()
    out = folder / "made.tadiff"
    times = in_process(run, out, settings, targets)
    artefacts = open_bundle(out).manifest.artefacts
    table = [
        row(case, name, [sum(seconds)], times=len(seconds), no_floor=NO_FLOOR, quality="a stage")
        for name, seconds in times.items()
    ]
    columns = {
        "mb": round(sum(artefact.bytes for artefact in artefacts) / 1e6, 3),
        "targets": targets,
        "certificate_samples": settings.samples,
        "certificate_steps": settings.num_steps,
        "threads": available_cores(),
        "quality": {artefact.file: verdict(artefact) for artefact in artefacts},
    }
    whole = sum(sum(seconds) for seconds in times.values())
    total = row(case, TOTAL, [whole], no_floor=NO_FLOOR, **columns)
    missing = [not_measured(case, target, reason) for target, reason in reasons.items()]
    written = [
        write_row(case, a.file, (out / a.file).read_bytes(), folder, roofline, verdict(a))
        for a in artefacts
    ]
    return [*table, total, *missing, *written]


def not_measured(case: str, target: str, reason: str) -> Row:
    """The row of a target that cannot be built here."""
    said = {"no_floor": "not measured", "quality": "not measured"}
    return {"case": case, "contestant": f"{target} engine, fp32", "not_measured": reason, **said}


def graph_rows(
    case: str, config: NetworkConfig, size: int, folder: Path, roofline: Roofline
) -> list[Row]:
    """The ONNX graphs of a network, step by step, and what the denoiser's computes.

    Raises:
        SystemExit: it differs from PyTorch by more than rounding.
    """
    conditioner, denoiser = split(network(config))
    _, first = _timed(lambda: conditioner_to_onnx(conditioner))
    model, second = _timed(lambda: denoiser_to_onnx(denoiser, size, query_chunk=QUERY_CHUNK))
    lowered, third = _timed(lambda: lower_group_norms(model))
    data, fourth = _timed(lambda: lowered.SerializeToString(deterministic=True))
    feed = inputs(denoiser, 1, size)
    got = onnxruntime(data, feed, available_cores())()
    error = float(f"{check('the graph', got, eager(denoiser, feed, None)()):.1e}")
    seconds = {
        "conditioner to ONNX": first,
        f"denoiser to ONNX, {size} x {size}": second,
        "lower the group norms": third,
        "serialise": fourth,
    }
    said = {"no_floor": NO_FLOOR, "quality": "a step"}
    table = [row(case, name, [spent], **said) for name, spent in seconds.items()]
    quality = {"difference_from_pytorch": error}
    columns = {"mb": round(len(data) / 1e6, 3), "quality": quality}
    total = row(case, TOTAL, [sum(seconds.values())], no_floor=NO_FLOOR, **columns)
    return [*table, total, write_row(case, "denoiser.fp32.onnx", data, folder, roofline, quality)]


def write_row(
    case: str, file: str, data: bytes, folder: Path, roofline: Roofline, quality: object
) -> Row:
    """Writing a file of a bundle and reading it back, beside copying its bytes."""
    path = folder / f"written-{file}"
    seconds = run_in_turns({file: lambda: write_bytes(path, data)}, WRITES)[file]
    works = [Work(2 * len(data))]
    columns = {"mb": round(len(data) / 1e6, 3), "quality": quality}
    return timed_row(f"{case}/write", file, seconds, works, roofline, **columns)


def _timed(step: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    made = step()
    return made, time.perf_counter() - start


def main(*settings: str) -> None:
    """Writes the rows of both cases."""
    asked = Settings(*map(int, settings))
    roofline = Roofline.of_this_cpu(available_cores())
    manifest = open_bundle(DEMO).manifest
    config, size = NetworkConfig(**manifest.network), manifest.card.data.size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = write_checkpoint(folder / "run", config, card_of(size))
        rows = bundle_rows(f"export/demo {size}", run, folder, asked, roofline)
        rows += graph_rows("export/A 192", NetworkConfig(), 192, folder, roofline)
    save("export_time", [roofline.as_row("export"), *rows])


if __name__ == "__main__":
    main(*sys.argv[1:])
