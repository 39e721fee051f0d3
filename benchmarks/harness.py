"""Timing in turns, and rows with the hardware they were measured on.

A question of `benchmarks.all` keeps its last run, whole, in results/QUESTION.jsonl (`save`); the
older files of several questions are added to (`append`).
"""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
FLOOR = ("floor_ms", "floor_kind", "roofline_fraction")
NO_FLOOR = "no_floor"
QUALITY = "quality"
PACKAGES = ("diffusers", "numpy", "onnxruntime", "openvino", "torch", "triton")
GPU_FIELDS = {
    "name": "name",
    "driver": "driver_version",
    "sm_mhz": "clocks.sm",
    "max_sm_mhz": "clocks.max.sm",
    "memory_mhz": "clocks.mem",
    "power_w": "power.draw",
    "celsius": "temperature.gpu",
}
"""Of a row -> of nvidia-smi; clocks as they are when the row is written, right after its runs."""


def run_in_turns(
    contestants: dict[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of `repeats` runs of each contestant, A B C A B C, after one warm-up of each.

    In turns, so that a drifting clock or a noisy neighbour meets all of them alike.
    """
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def matmul_rate(threads: int, size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of a float32 matrix product by numpy: the floor's rate on this machine, now."""
    a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    best = statistics.median(run_in_turns({"product": lambda: a @ a}, repeats)["product"])
    return 2 * size**3 / best


def hardware() -> dict[str, object]:
    """Where a row was measured."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":")[1] for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0].strip() if names else cpu
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "gpu": gpu()}


def gpu() -> dict[str, str] | None:
    """The first GPU as nvidia-smi describes it now; None where there is none."""
    fields = ",".join(GPU_FIELDS.values())
    asked = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(GPU_FIELDS, said.splitlines()[0].split(", "), strict=True))


def versions() -> dict[str, str]:
    """Versions of what was measured, and the commit (COMMIT where there is no repository)."""
    commit = os.environ.get("COMMIT", "")
    with suppress(OSError):  # no git
        asked = ["git", "describe", "--always", "--dirty"]
        commit = commit or subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    installed = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # not every row needs every contestant
            installed[name] = version(name)
    return {"commit": commit, "python": platform.python_version(), **installed}


def row(case: str, contestant: str, seconds: list[float], **extra: object) -> dict[str, object]:
    """One line of results: median and 20th and 80th percentile, in milliseconds."""
    p20, p50, p80 = (1000 * float(v) for v in np.percentile(seconds, [20, 50, 80]))
    timing = {"ms": round(p50, 5), "p20": round(p20, 5), "p80": round(p80, 5), "n": len(seconds)}
    return {"case": case, "contestant": contestant, **timing, **extra}


def append(file: str, rows: list[dict[str, object]], folder: Path = RESULTS) -> None:
    """Adds rows to FILE.jsonl in `folder` with hardware and versions, and prints them."""
    folder.mkdir(parents=True, exist_ok=True)
    origin = {"hardware": hardware(), "versions": versions()}
    with (folder / f"{file}.jsonl").open("a") as out:
        for entry in rows:
            out.write(json.dumps({**entry, **origin}) + "\n")
            print(json.dumps(entry))  # noqa: T201


def save(question: str, rows: list[dict[str, object]], folder: Path = RESULTS) -> None:
    """Makes `rows` the run of a question: QUESTION.jsonl in `folder`, in place of the last run.

    Every row names its `case` and `contestant`, holds the columns FLOOR or says in NO_FLOOR why
    there is none, and says in QUALITY what its result is worth: columns, or words such as "the
    same bytes as one worker".

    Raises:
        ValueError: a row lacks one of these, or two rows are of one contestant and case.
    """
    names = [(entry.get("case"), entry.get("contestant")) for entry in rows]
    if len(set(names)) < len(names):
        raise ValueError(f"rows of one case and contestant: {names}")
    for entry in rows:
        floor = NO_FLOOR in entry or all(key in entry for key in FLOOR)
        if not (entry.get("case") and entry.get("contestant") and floor and entry.get(QUALITY)):
            raise ValueError(f"a row needs case, contestant, a floor and quality: {entry}")
    origin = {"hardware": hardware(), "versions": versions(), "measured": today()}
    text = "".join(json.dumps({**entry, **origin}) + "\n" for entry in rows)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{question}.jsonl"
    part.write_text(text)
    part.replace(folder / f"{question}.jsonl")
    for entry in rows:
        print(json.dumps(entry), flush=True)  # noqa: T201


def today() -> str:
    """The date, of UTC."""
    return datetime.now(UTC).date().isoformat()


def load(question: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The rows of the last run of a question; none where it has not been run."""
    path = folder / f"{question}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
