"""Runs the three operators that take most of a session, for a profiler to look at.

`ncu --profile-from-start off python -m benchmarks.gpu_profile OUT`, after `gpu_kernels` wrote its
rows there. Which three: time of a call times calls in an evaluation, in our rows.
"""

import json
import sys
from pathlib import Path

import torch

from benchmarks.device import Bench
from benchmarks.gpu_kernels import PROBLEMS

HEAVIEST = 3


def heaviest(rows: Path) -> list[str]:
    """Cases in falling order of their time in an evaluation."""
    took: dict[str, float] = {}
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        if row["contestant"] == "ours" and "ms" in row and "calls" in row:
            took[row["case"]] = row["ms"] * row["calls"]
    return sorted(took, key=lambda case: -took[case])[:HEAVIEST]


def main(out: str) -> None:
    """Profiles our contestant of each, once, warm."""
    bench = Bench.start(out)
    wanted = heaviest(bench.rows)
    with torch.no_grad():
        for operator in dict.fromkeys(case.partition("/")[0] for case in wanted):
            for problem in PROBLEMS[operator](bench):
                if problem.case not in wanted:
                    continue
                print(problem.case)  # noqa: T201
                run = problem.contestants["ours"].run
                run()
                if bench.on_gpu:
                    torch.cuda.synchronize()
                    torch.cuda.profiler.start()
                    run()
                    torch.cuda.synchronize()
                    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main(sys.argv[1])
