"""Timing in turns, and rows with the hardware they were measured on."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "onnxruntime", "openvino", "torch")


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
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "gpu": None}


def versions() -> dict[str, str]:
    """Versions of what was measured, and the commit."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    installed = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # not every row needs every contestant
            installed[name] = version(name)
    return {"commit": commit.stdout.strip(), "python": platform.python_version(), **installed}


def row(case: str, contestant: str, seconds: list[float], **extra: object) -> dict[str, object]:
    """One line of results: median and 20th and 80th percentile, in milliseconds."""
    p20, p50, p80 = (1000 * float(v) for v in np.percentile(seconds, [20, 50, 80]))
    timing = {"ms": round(p50, 3), "p20": round(p20, 3), "p80": round(p80, 3), "n": len(seconds)}
    return {"case": case, "contestant": contestant, **timing, **extra}


def append(file: str, rows: list[dict[str, object]]) -> None:
    """Adds rows to results/FILE.jsonl with hardware and versions, and prints them."""
    RESULTS.mkdir(exist_ok=True)
    origin = {"hardware": hardware(), "versions": versions()}
    with (RESULTS / f"{file}.jsonl").open("a") as out:
        for entry in rows:
            out.write(json.dumps({**entry, **origin}) + "\n")
            print(json.dumps(entry))  # noqa: T201
