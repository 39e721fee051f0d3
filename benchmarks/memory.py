"""How much memory does a forecast take, what does it grow with, and does the stated bound hold?

    python -m benchmarks.memory [PART ...]     # slices, ..., large; see `rows`; without: all

Whole processes of `tadiff-rt predict`, from the interpreter to the result on disk, with the
bundled model and case: the largest resident memory that the system counted for each. Beside it
stands the bound that `tadiff-rt predict --dry-run` states for exactly that request. One number of
the request changes at a time: slices, samples, scenarios, steps; the row "line" has the straight
line through them. All but scenarios are to take none: the line's slope times the largest number
must stay below CONSTANT of the peak there. Scenarios do take memory, by design: all are compared,
and the result holds the volumes of each. Further rows: what `info` and `--check` take, a last
batch that does not fill the bucket, the page of --report, and a made-up patient of
192 x 192 x 155 voxels of 1 mm, resampled to the model's grid and back.

The floor, floor_mb, is what no program could do without: the graphs with their weights, the
volumes of the result, and what the layer of the network that moves most reads and writes for one
bucket. The rest is mostly libraries and the other activations. About three minutes on two cores.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tadiff_rt
from benchmarks.fits import Line
from benchmarks.floor import Row
from benchmarks.harness import save
from benchmarks.installation import command
from benchmarks.made_case import write_case
from benchmarks.network_cost import layers
from benchmarks.peak import MB, peak_of
from tadiff_rt.bundle import open_bundle
from tadiff_rt.case import MODALITIES
from tadiff_rt.readers import read_case
from tadiff_rt.request import NUM_SOURCES
from tadiff_train.network import NetworkConfig

QUESTION = "memory"
DATA = Path(tadiff_rt.__file__).parent / "data"
CONSTANT = 0.05
"""Growth over the whole axis that counts as none, as a share of the peak."""
SCENARIOS = "scenarios"
REPORT = ("--report",)
NO_FLOOR = "memory, not time: see floor_mb"
FLOAT = 4
"""Bytes."""


@dataclass(frozen=True)
class Asked:
    """One request, and what it is asked of."""

    engine: Path
    case: Path
    slices: tuple[int, ...]
    samples: int = 4
    days: tuple[str, ...] = ("+60",)
    treatments: tuple[str, ...] = ("TMZ",)
    steps: int = 2
    more: tuple[str, ...] = ()
    """Further words."""

    @property
    def scenarios(self) -> int:
        """Forecasts that are compared."""
        return len(self.days) * len(self.treatments)

    def words(self) -> list[str]:
        """Of `tadiff-rt predict`, without a place for the result."""
        listed = ",".join(map(str, self.slices))
        where = ["--engine", str(self.engine), "--case", str(self.case)]
        what = ["--day", *self.days, "--treatment", *self.treatments, "--slices", listed]
        return [*where, *what, "--samples", str(self.samples), f"--steps={self.steps}", *self.more]


def measured(asked: Asked) -> Row:
    """Columns of one request: the peak, the bound, the floor, and what was checked.

    Raises:
        SystemExit: a process failed, or the result is not what was asked for.
    """
    predict = [*command(Path(sys.executable)), "predict", *asked.words(), "--json", "--quiet"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _, said = peak_of([*predict, "--dry-run"], folder)
        bound_mb = json.loads(said)["estimate"]["memory_bytes"] / MB
        peak_mb, report = peak_of([*predict, "--out", str(folder / "out")], folder)
    return {
        "peak_mb": round(peak_mb, 1),
        "bound_mb": round(bound_mb, 1),
        "within": peak_mb <= bound_mb,
        "floor_mb": round(floor_mb(asked), 1),
        "no_floor": NO_FLOOR,
        "quality": checked(json.loads(report), asked),
    }


def checked(report: dict[str, Any], asked: Asked) -> str:
    """Words for the column quality.

    Raises:
        SystemExit: the report of a run is not of the request.
    """
    scenarios = report["scenarios"].values()
    drawn = {(len(s["volume_ml"]["samples"]), tuple(s["sampling"]["slices"])) for s in scenarios}
    if len(scenarios) != asked.scenarios or drawn != {(asked.samples, asked.slices)}:
        raise SystemExit(f"{asked} gave {len(scenarios)} scenarios of {drawn}")
    return "a whole result: all scenarios, slices and samples that were asked for"


def floor_mb(asked: Asked) -> float:
    """Graphs, result volumes and the activations of the layer that moves most, in MB."""
    manifest = open_bundle(asked.engine).manifest
    denoiser = manifest.denoisers[0]
    network = NetworkConfig(**manifest.network)
    most = max(layer.activations for layer in layers(network, manifest.card.data.size))
    rows = min(denoiser.batch or 1, asked.samples * len(asked.slices))
    last = read_case(asked.case, last=NUM_SOURCES).sessions[-1]
    voxels = last.images[MODALITIES[0]].data.size
    maps = 2 if asked.samples > 1 else 1  # the mean, its deviation
    differences = asked.scenarios - len(asked.days)
    volumes = asked.scenarios * (maps * len(MODALITIES) + 1) + differences * maps
    graphs = manifest.conditioner.bytes + denoiser.bytes
    return float(graphs + FLOAT * (rows * most + volumes * voxels)) / MB


def bucket_of(asked: Asked) -> int:
    """Rows of a call of the network."""
    return open_bundle(asked.engine).manifest.denoisers[0].batch or 1


def axes(start: Asked) -> dict[str, dict[int, Asked]]:
    """Name -> number -> request, each from `start` with one slice and a full bucket of samples."""
    first, bucket = start.slices[0], bucket_of(start)
    start = replace(start, samples=bucket)
    plans = {
        1: start,
        2: replace(start, treatments=("TMZ", "none")),
        4: replace(start, treatments=("TMZ", "none"), days=("+60", "+90")),
    }
    return {
        "slices": {
            n: replace(start, slices=tuple(range(first, first + n))) for n in (1, 2, 4, 8, 12)
        },
        # Full buckets: those that are not have rows of their own, "last batch".
        "samples": {n: replace(start, samples=n) for n in (bucket, 2 * bucket, 4 * bucket)},
        SCENARIOS: plans,
        "steps": {n: replace(start, steps=n) for n in (2, 8, 20)},
    }


def predict_row(case: str, asked: Asked) -> Row:
    """Of one request; the page is another contestant."""
    contestant = "predict --report" if set(REPORT) <= set(asked.more) else "predict"
    return {"case": f"{QUESTION}/{case}", "contestant": contestant, **measured(asked)}


def axis_rows(name: str, points: dict[int, Asked]) -> list[Row]:
    """A row a point, and the line through them."""
    rows = [predict_row(f"{name}/{number}", asked) for number, asked in points.items()]
    peaks_mb = [row["peak_mb"] for row in rows]
    return [*rows, line_row(name, dict(zip(points, peaks_mb, strict=True)))]


def line_row(name: str, peaks_mb: dict[int, float]) -> Row:
    """The line through the peaks, and whether that counts as constant."""
    line = Line.through(list(peaks_mb), list(peaks_mb.values()))
    largest = max(peaks_mb)
    growth = line.slope * largest / peaks_mb[largest]
    entry: Row = {
        "case": f"{QUESTION}/{name}",
        "contestant": "line",
        **line.columns("mb"),
        "growth": round(growth, 4),
        "constant": abs(growth) < CONSTANT,
        "no_floor": "of a row each",
        "quality": f"slope x {largest} as a share of the peak there; below {CONSTANT}: constant",
    }
    if name == SCENARIOS:
        entry["quality"] += "; grows by design, the result holds the volumes of every scenario"
    return entry


def before(start: Asked) -> list[Row]:
    """Without a forecast: libraries and a bundle; then the case, too."""
    tadiff = command(Path(sys.executable))
    processes = {
        "info": [*tadiff, "info", str(start.engine)],
        "predict --check": [*tadiff, "predict", *start.words(), "--check"],
    }
    with tempfile.TemporaryDirectory() as folder:
        peaks_mb = {name: peak_of(words, Path(folder))[0] for name, words in processes.items()}
    same = {"no_floor": NO_FLOOR, "quality": "exit code 0"}
    case = f"{QUESTION}/before"
    return [
        {"case": case, "contestant": name, "peak_mb": round(peak_mb, 1), **same}
        for name, peak_mb in peaks_mb.items()
    ]


def last_batch(start: Asked) -> list[Row]:
    """Buckets that are not full: their rows run in a graph of their own."""
    requests = [
        replace(start, samples=samples)
        for samples in range(bucket_of(start) + 1, bucket_of(start) + 4)
    ]
    return [predict_row(f"last batch/{asked.samples}", asked) for asked in requests]


def page(start: Asked) -> list[Row]:
    """With --report, of one scenario and of four; without it, see the axis of scenarios."""
    requests = [replace(asked, more=REPORT) for asked in (start, axes(start)[SCENARIOS][4])]
    return [predict_row(f"page/{asked.scenarios}", asked) for asked in requests]


def large(start: Asked) -> list[Row]:
    """A made-up patient of 192 x 192 x 155 voxels of 1 mm, on the grid of the model and back."""
    with tempfile.TemporaryDirectory() as folder:
        case = write_case(Path(folder), size=192, depth=155)
        # Far apart: the page shows all that lies between.
        asked = replace(start, case=case, slices=(8, 9, 68, 69), samples=2, more=("--resample",))
        paged = replace(asked, more=(*asked.more, *REPORT))
        several = replace(paged, treatments=("TMZ", "none"), days=("+60", "+90"))
        return [predict_row(f"large/{one.scenarios}", one) for one in (asked, paged, several)]


def rows(names: Sequence[str] = (), start: Asked | None = None) -> list[Row]:
    """Of the parts named, or all.

    Args:
        start: the request from which one number at a time changes; of the bundled case.
    """
    start = start or Asked(DATA / "demo.tadiff", DATA / "demo_case" / "sub-demo", (36,))
    parts = {name: partial(axis_rows, name, points) for name, points in axes(start).items()}
    for part in (before, last_batch, page, large):
        parts[part.__name__] = partial(part, start)
    return [row for name in names or parts for row in parts[name]()]


def main(parts: Sequence[str] = ()) -> None:
    """Writes the rows of `parts`, or all."""
    save(QUESTION, rows(parts))


if __name__ == "__main__":
    main(sys.argv[1:])
