"""The largest resident memory of a process, counted by the system."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

MB = 1e6

LAUNCH = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(child, 0)
print("\\n", used.ru_maxrss * (1 if sys.platform == "darwin" else 1024), sep="")
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""
"""A small process between: on Linux a child counts from the peak of the process that starts it."""


def peak_of(words: Sequence[str], folder: Path) -> tuple[float, str]:
    """The peak of resident memory of a process in MB, and what it printed.

    Raises:
        SystemExit: it did not end with 0.
    """
    ended = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCH, *words],
        env={**os.environ, "TADIFF_CACHE": str(folder / "cache")},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise SystemExit(f"{words} failed:\n{ended.stdout}{ended.stderr}")
    *printed, peak = ended.stdout.splitlines()
    return int(peak) / MB, "\n".join(printed)
