"""Is every fused operator worth its code?  `python -m benchmarks.gpu_kernels OUT [OPERATOR ...]`

Each operator on its main shapes in configuration A, in fp16: its plain PyTorch reference as it is
and compiled, and ours. Every contestant is compared with float64 before it is timed, and replayed
from a CUDA graph, as in the runtime, with a cold L2 cache; "replay of one launch" in the roofline
rows is what that costs by itself. An operator stays if it is at least 1.5 times as fast as the
compiled reference (`keep`). Each runs in a process of its own: one that breaks the GPU's context
leaves the others their rows.
"""

import subprocess
import sys

import torch

from benchmarks.device import Bench, attempt
from benchmarks.floor import Row, timed_row
from benchmarks.kernel_problems import Problem, attention, conditioning, group_norm_silu
from benchmarks.loop_problems import ensemble_step, solver_step
from tadiff_kernels.accuracy import relative_error

PROBLEMS = {
    f.__name__: f for f in (group_norm_silu, attention, conditioning, solver_step, ensemble_step)
}
KEEP = 1.5
"""Times as fast as torch.compile of the reference, at least."""
RESERVE = 8.0
"""Seconds that a problem is not begun without."""


def rows_of(bench: Bench, problem: Problem) -> list[Row]:
    """All contestants of one problem."""
    bench.require_seconds(RESERVE)
    failures: list[Row] = []
    runs, columns = {}, {}
    for name, contestant in problem.contestants.items():

        def prepare(contestant=contestant):
            error = relative_error(contestant.result(), problem.exact)
            if not error <= problem.allowed:
                raise ValueError(f"{error:.2e} from float64, {problem.allowed:.2e} is allowed")
            return bench.graphed(contestant.run), error

        ready = attempt(problem.case, name, prepare, failures)
        if ready is not None:
            runs[name], error = ready
            columns[name] = {"error": float(f"{error:.3g}")}
    seconds = bench.seconds(runs, cold=True)
    shared = {"calls": problem.calls, "allowed_error": float(f"{problem.allowed:.3g}")}
    rows = [
        timed_row(
            problem.case, name, s, [problem.work], bench.roofline(), **columns[name], **shared
        )
        for name, s in seconds.items()
    ]
    judge(rows)
    return [*rows, *failures]


def judge(rows: list[Row]) -> None:
    """Says of our row how many times as fast as the compiled reference it is, and the verdict."""
    ms = {row["contestant"]: row["ms"] for row in rows}
    for row in rows:
        if row["contestant"] == "ours" and "compiled" in ms:
            row["of_compiled"] = float(f"{ms['compiled'] / ms['ours']:.4g}")
            row["keep"] = row["of_compiled"] >= KEEP


def measure(out: str, operator: str) -> bool:
    """Appends the rows of one operator; whether nothing failed."""
    bench = Bench.start(out)
    failures: list[Row] = []
    sound = True
    with torch.no_grad():
        for problem in PROBLEMS[operator](bench):
            rows = attempt(problem.case, "all", lambda p=problem: rows_of(bench, p), failures)
            sound &= bench.append(rows or [])
            torch.compiler.reset()
            if bench.on_gpu:
                torch.cuda.empty_cache()
    return bench.append(failures) and sound


def main(out: str, *operators: str) -> None:
    """Appends rows to OUT/gpu.jsonl."""
    if len(operators) == 1:
        sound = measure(out, operators[0])
    else:
        command = [sys.executable, "-m", "benchmarks.gpu_kernels", out]
        codes = [subprocess.run([*command, name]).returncode for name in operators or PROBLEMS]
        sound = not any(codes)
    if not sound:
        raise SystemExit("some contestants failed; their rows say why")


if __name__ == "__main__":
    main(*sys.argv[1:])
