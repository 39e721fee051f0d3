"""Descriptors, threads and memory of one process over many forecasts.

    python -m tests.faults.growth 100 predict --engine B --case C ... --overwrite

The last line on stdout is JSON: of every forecast the exit code, open descriptors, threads, bytes.
"""

import json
import os
import resource
import sys
from contextlib import redirect_stdout
from io import StringIO

from tadiff_rt.cli import app
from tadiff_rt.console import run_app


def measure(runs: int, argv: list[str]) -> list[tuple[int, int, int, int]]:
    """Runs a command so many times; (exit code, descriptors, threads, resident bytes) of each."""
    found = []
    for _ in range(runs):
        with redirect_stdout(StringIO()):
            try:
                run_app(app, "tadiff-rt", list(argv))
            except SystemExit as ended:
                code = int(ended.code or 0)
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * resource.getpagesize()
        counts = [len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task")]
        found.append((code, *counts, resident))
    return found


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), sys.argv[2:])))  # noqa: T201
