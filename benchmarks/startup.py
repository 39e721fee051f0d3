"""How long is it from the start of a process to its result, and what must be installed for it?

    python -m benchmarks.startup [REPEATS [processes]]

Whole fresh processes in turns, from their start to their exit: an interpreter that does nothing
(the floor of all others), `import tadiff_rt`, and `tadiff-rt --version`, `info` and `predict` of
one slice, with the default preset and with --fast. Files are in the page cache, and Python's
compiled modules are read, not made, as after an installation; but "no bytecode" compiles every
module anew, Python's own too. Nothing is timed unless the process ended with 0; `info` must name
the bundle; the volumes of all runs of a forecast must be the same bytes, and their tumour
probability that of a forecast inside this process.

The installation is `benchmarks.installation`; `processes` leaves it out.
"""

import json
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

import tadiff_rt
from benchmarks.harness import row, run_in_turns, save
from benchmarks.installation import called, command, install_row
from tadiff_rt.bundle import open_bundle

QUESTION = "startup"
REPEATS = 3
PROCESS = "startup/process"
NOTHING, NO_BYTECODE = "python -c pass", "tadiff-rt info, no bytecode"
PARTS = "startup/parts"
INSIDE = """
import json, sys, time
times = [time.perf_counter()]
from tadiff_rt import Forecaster, read_case
engine, case, day, treatment, options = sys.argv[1:]
times.append(time.perf_counter())
forecaster = Forecaster.load(engine)
times.append(time.perf_counter())
result = forecaster.predict(read_case(case), day=day, treatment=treatment, **json.loads(options))
times.append(time.perf_counter())
assert result.tumour_probability.shape
print(json.dumps([b - a for a, b in zip(times, times[1:])]))
"""
STAGES = ("import the package", "load and verify the engine", "a first forecast, --fast")
TARGETS_MS = {"tadiff-rt info": 500, "tadiff-rt predict": 6000, "tadiff-rt predict --fast": 6000}
DATA = Path(tadiff_rt.__file__).parent / "data"


@dataclass(frozen=True)
class Asked:
    """The forecast: of which case, by which bundle, and how much of it."""

    engine: Path = DATA / "demo.tadiff"
    case: Path = DATA / "demo_case" / "sub-demo"
    day: str = "+90"
    treatment: str = "TMZ"
    options: Mapping[str, str] = field(default_factory=lambda: {"slices": "42", "samples": "5"})
    """Of `Forecaster.predict`, and by the same names of `tadiff-rt predict`."""

    def words(self) -> list[str]:
        """Arguments of `tadiff-rt predict`."""
        options = [word for name, value in self.options.items() for word in (f"--{name}", value)]
        wanted = ["--day", self.day, "--treatment", self.treatment, *options, "--quiet"]
        return ["--engine", str(self.engine), "--case", str(self.case), *wanted]

    def probability(self, preset: str) -> Any:
        """(x, y, z) tumour probability, forecast in this process."""
        case, forecaster = tadiff_rt.read_case(self.case), tadiff_rt.Forecaster.load(self.engine)
        options: Any = {**self.options, "preset": preset}
        forecast = forecaster.predict(case, day=self.day, treatment=self.treatment, **options)
        return forecast.tumour_probability


@dataclass
class Contestant:
    """A command line, run in fresh processes, and what these printed and took."""

    words: Sequence[str]
    work: Path
    """Keeps the caches and results of the runs."""
    quality: str
    new_caches: bool = False
    """Every run compiles all modules."""
    results: bool = False
    """Every run writes into a new folder, `folders`."""
    folders: list[Path] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        """One process, which must end with 0."""
        words, caches = list(self.words), self.work / "bytecode"
        if self.new_caches:
            caches = Path(tempfile.mkdtemp(dir=self.work))
        if self.results:
            self.folders.append(Path(tempfile.mkdtemp(dir=self.work)) / "out")
            words += ["--out", str(self.folders[-1])]
        before = _cpu_seconds()
        self.printed.append(called(words, environment(self.work, caches), self.work))
        self.cpu_seconds.append(_cpu_seconds() - before)


def environment(work: Path, caches: Path) -> dict[str, str]:
    """Of this process, with caches in `work`; bytecode is written and read, whatever is set here.

    Args:
        caches: of bytecode; empty for a first run.
    """
    own = {"TADIFF_CACHE": f"{work}/cache", "PYTHONPYCACHEPREFIX": str(caches)}
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | own


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def contestants(asked: Asked, work: Path) -> dict[str, Contestant]:
    """By name, in the order in which they take turns."""
    python, tadiff, same = sys.executable, command(Path(sys.executable)), "exit code 0"
    info = [*tadiff, "info", str(asked.engine)]
    named = f"{same}; names the bundle"
    bits = f"{same}; the bits of a forecast inside another process"
    predict = [*tadiff, "predict", *asked.words()]
    return {
        NOTHING: Contestant([python, "-c", "pass"], work, same),
        "import tadiff_rt": Contestant([python, "-c", "import tadiff_rt"], work, same),
        "tadiff-rt --version": Contestant([*tadiff, "--version"], work, same),
        "tadiff-rt info": Contestant(info, work, named),
        NO_BYTECODE: Contestant(info, work, named, new_caches=True),
        "tadiff-rt predict": Contestant(predict, work, bits, results=True),
        "tadiff-rt predict --fast": Contestant([*predict, "--fast"], work, bits, results=True),
    }


def rows(repeats: int = REPEATS, asked: Asked | None = None) -> list[dict[str, Any]]:
    """A row for each of `contestants`."""
    asked = asked or Asked()
    with tempfile.TemporaryDirectory() as folder:
        runs = contestants(asked, Path(folder))
        seconds = run_in_turns({name: one.run for name, one in runs.items()}, repeats)
        require_right(runs, asked)
    measured = []
    for name, one in runs.items():
        entry: dict[str, Any] = row(PROCESS, name, seconds[name], quality=one.quality)
        cpu = statistics.median(one.cpu_seconds[1:])  # the first is the warm-up
        entry |= {"cpu_ms": round(1000 * cpu, 2), "page_cache": "warm"}
        if name in TARGETS_MS:
            entry["target_ms"] = TARGETS_MS[name]
        measured.append(entry)
    nothing, *others = measured
    nothing["no_floor"] = "it is the floor of the others"
    for entry in others:
        entry["floor_ms"], entry["floor_kind"] = nothing["ms"], "interpreter"
        entry["roofline_fraction"] = float(f"{nothing['ms'] / entry['ms']:.4g}")
    return measured


def part_rows(repeats: int = 3, asked: Asked | None = None) -> list[dict[str, Any]]:
    """Rows of what a program does that forecasts once: import, load, first result."""
    asked = asked or Asked()
    options = json.dumps(
        {**asked.options, "samples": int(asked.options["samples"]), "preset": "fast"}
    )
    words = [sys.executable, "-c", INSIDE, str(asked.engine), str(asked.case)]
    one = [*words, asked.day, asked.treatment, options]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        variables = environment(work, work / "bytecode")
        called(one, variables, work)  # compiles what it imports, measures what is measured once
        runs = [json.loads(called(one, variables, work)) for _ in range(repeats)]
    return [
        row(
            PARTS,
            stage,
            [run[i] for run in runs],
            no_floor="a part of a start",
            quality="of one process; its forecast is compared in the rows of whole processes",
        )
        for i, stage in enumerate(STAGES)
    ]


def require_right(runs: Mapping[str, Contestant], asked: Asked) -> None:
    """Checks what the processes printed and wrote.

    Raises:
        SystemExit: a bundle is not named, or a forecast is not that of this process.
    """
    title = f"{open_bundle(asked.engine).manifest.card.name}: trained on"
    for name in ("tadiff-rt info", NO_BYTECODE):
        if not all(text.startswith(title) for text in runs[name].printed):
            raise SystemExit(f"{name} does not name the bundle: {runs[name].printed}")
    for name, preset in (("tadiff-rt predict", "default"), ("tadiff-rt predict --fast", "fast")):
        first, *others = [volumes(folder) for folder in runs[name].folders]
        (path,) = runs[name].folders[0].rglob("*_probseg.nii.gz")
        written = np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj)
        here = asked.probability(preset)
        if written.dtype != here.dtype or not np.array_equal(written, here):
            raise SystemExit(f"{name}: the tumour probability is not that of this process")
        if any(volumes != first for volumes in others):
            raise SystemExit(f"{name}: the volumes are not the same in all runs")


def volumes(folder: Path) -> dict[str, bytes]:
    """The images of a result, as they lie on the disk."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.nii.gz")}


def main(arguments: Sequence[str]) -> None:
    """Measures and saves everything."""
    measured = [*rows(int(arguments[0]) if arguments else REPEATS), *part_rows()]
    if arguments[1:] != ["processes"]:
        measured.append(install_row())
    save(QUESTION, measured)


if __name__ == "__main__":
    main(sys.argv[1:])
