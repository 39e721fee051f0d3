"""Every question, one after the other, and the pages that show the answers.

`python -m benchmarks.all [QUESTION ...]`. Each question runs in a process of its own and replaces
its rows in results/; then README.md and docs/performance.md are written from all rows there are.
A question that fails keeps its old rows, and the exit code is 1. Nothing else should run on the
machine. `bash benchmarks/gpu_session.sh` is the same for a GPU.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import performance
from benchmarks.harness import RESULTS, row, save, versions

QUESTIONS = {
    "startup": "What does it take to install and to start?",
    "network": "What does one evaluation of the network cost, by every engine there is?",
    "one_slice": "What does one slice with five samples cost, by every way to get it?",
    "sampler": "What does a sampler's result gain by more evaluations?",
    "end_to_end": "Where does the time go from files to files?",
    "memory": "How much memory does a forecast take, and is it what the estimate says?",
    "scaling": "How does time grow with slices, samples, steps, size, threads and workers?",
    "kernels": "What does the runtime's own arithmetic cost beside the network's?",
    "export_time": "What does an export take?",
}
"""What each answers, in the order they run."""
ALL = "all"
COMMIT = str(versions()["commit"])


def run(question: str, work: Path) -> tuple[float, int]:
    """Seconds and exit code of a question."""
    start = time.perf_counter()
    # Made bundles are shared, and choices that a user's machine has cached are not.
    environment = {
        **os.environ,
        "WORK": str(work),
        "TADIFF_CACHE": str(work / "cache"),
        "COMMIT": COMMIT,  # before rows are written, which are files of the repository
    }
    command = [sys.executable, "-m", f"benchmarks.{question}"]
    code = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode
    return time.perf_counter() - start, code


def main(asked: Sequence[str]) -> int:
    """Runs questions, then writes the pages; exit code 1 if one failed, 2 for an unknown one."""
    if unknown := [name for name in asked if name not in QUESTIONS]:
        print(f"no question {unknown[0]!r}; there are {', '.join(QUESTIONS)}", file=sys.stderr)  # noqa: T201
        return 2
    seconds, failed = {}, []
    with tempfile.TemporaryDirectory() as work:
        for name in asked or QUESTIONS:
            seconds[name], code = run(name, Path(work))
            failed += [name] if code else []
            print(f"{name}: {seconds[name]:.0f} s, exit code {code}", flush=True)  # noqa: T201
    if not asked and not failed:
        save(
            ALL,
            [
                _spent(name, spent)
                for name, spent in {**seconds, ALL: sum(seconds.values())}.items()
            ],
        )
    performance.write(RESULTS)
    return 1 if failed else 0


def _spent(name: str, seconds: float) -> dict[str, object]:
    return {
        **row("all", name, [seconds]),
        "no_floor": "it is a list of questions",
        "quality": "each row of a question has its own",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
