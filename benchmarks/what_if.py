"""What does a grid of 3 days x 3 treatments cost against nine single forecasts?

    python -m benchmarks.what_if [TURNS]

The bundled model and case, whole processes from the command line to the files on disk, in turns:
nine runs of one scenario each, and one run of all nine. What is shared is the start of the
program, loading and verifying the engine, reading and checking the case, and its preparation; the
network's evaluations are not: each scenario conditions every layer in its own way. So the ratio
falls towards 1 as more slices are forecast, and both ends are measured. Every volume of the grid
is compared bit by bit with that of its single run.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import append, row
from tadiff_rt.commands import DEMO_BUNDLE, DEMO_CASE

DATA = Path(__file__).parents[1] / "tadiff_rt" / "data"
DAYS, TREATMENTS = ("+30", "+60", "+120"), ("TMZ", "CRT", "none")
WORK = {"one slice": "--slices 42", "12 slices": "--slices 36:48"}
"""Of the bundled case."""
SINGLE, GRID = "nine single runs", "one grid"


def predict(out: Path, days: tuple[str, ...], treatments: tuple[str, ...], slices: str) -> float:
    """Seconds of one process."""
    line = f"--day {' '.join(days)} --treatment {' '.join(treatments)} --samples 2 --fast -q"
    command = [sys.executable, "-c", "from tadiff_rt.cli import main; main()", "predict"]
    inputs = ["--engine", str(DATA / DEMO_BUNDLE), "--case", str(DATA / DEMO_CASE)]
    start = time.perf_counter()
    done = [*command, *inputs, *line.split(), *slices.split(), "-o", str(out)]
    subprocess.run(done, check=True, capture_output=True)
    return time.perf_counter() - start


def volumes(folder: Path) -> dict[str, bytes]:
    """Bytes of every NIfTI file but the differences, which a single run does not have."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.nii.gz")}
    return {name: path.read_bytes() for name, path in found.items() if "minus" not in name}


def turn(folder: Path, slices: str) -> dict[str, float]:
    """Seconds of both contestants, after a check that they wrote the same."""
    seconds = {SINGLE: 0.0, GRID: predict(folder / "grid", DAYS, TREATMENTS, slices)}
    alone: dict[str, bytes] = {}
    for day in DAYS:
        for treatment in TREATMENTS:
            out = folder / f"{day[1:]}{treatment}"
            seconds[SINGLE] += predict(out, (day,), (treatment,), slices)
            alone |= volumes(out)
    together = volumes(folder / "grid")
    if not alone or together != alone:
        raise AssertionError("the grid is not what nine single runs give")
    return seconds


def main(turns: int) -> None:
    """Writes rows to results/cpu.jsonl."""
    for name, slices in WORK.items():
        seconds: dict[str, list[float]] = {SINGLE: [], GRID: []}
        for _ in range(turns):
            with tempfile.TemporaryDirectory() as folder:
                for contestant, spent in turn(Path(folder), slices).items():
                    seconds[contestant].append(spent)
        ratio = float(np.median(seconds[GRID]) / np.median(seconds[SINGLE]))
        case = f"what-if/{name}"
        single = row(case, SINGLE, seconds[SINGLE])
        append("cpu", [single, row(case, GRID, seconds[GRID], ratio=round(ratio, 3))])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
