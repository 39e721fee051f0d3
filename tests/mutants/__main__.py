"""Deliberate faults, and the test that catches each.

    python -m tests.mutants [WORDS]     # all, or those whose name or file contains one of WORDS

The working tree is copied to a temporary folder. There each fault is applied, its test is run and
must fail, and the fault is reverted; at the start every one of these tests must pass. Ends with 1
if a fault survives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutants import (
    attention,
    backends,
    benchmarks,
    cohort,
    conditioning,
    contestants,
    corpus,
    derivatives,
    device,
    distill,
    docs,
    end_to_end,
    endings,
    ensemble_step,
    evaluation,
    fit,
    group_norm_silu,
    growth_baseline,
    html,
    input,
    layouts,
    losses,
    memory_scaling,
    metrics,
    openvino,
    performance,
    runtime,
    sampler_kernels,
    solver_step,
    startup,
    what_if,
)
from tests.mutants.mutant import Mutant

ROOT = Path(__file__).parents[2]
KINDS = (
    runtime,
    layouts,
    cohort,
    losses,
    metrics,
    growth_baseline,
    evaluation,
    fit,
    distill,
    backends,
    openvino,
    device,
    attention,
    conditioning,
    ensemble_step,
    group_norm_silu,
    solver_step,
    benchmarks,
    what_if,
    derivatives,
    html,
    input,
    docs,
    endings,
    corpus,
    startup,
    end_to_end,
    memory_scaling,
    sampler_kernels,
    contestants,
    performance,
)
MUTANTS = tuple(mutant for kind in KINDS for mutant in kind.MUTANTS)
PARTS = ("tadiff_rt", "tadiff_train", "tadiff_export", "kernels", "benchmarks", "tests", "docs")


def passes(tree: Path, *tests: str) -> bool:
    """Whether pytest passes `tests` in `tree`, whose packages come before installed ones."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "TADIFF_THOROUGH": "1",
            "PYTHONPATH": str(tree),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )
    # 2: a fault that a test file cannot be collected with; below 0: one that crashed the process.
    if result.returncode > 2:
        raise SystemExit(f"pytest ended with {result.returncode}:\n{result.stdout[-2000:]}")
    return result.returncode == 0


def survives(tree: Path, mutant: Mutant) -> bool:
    """Applies a fault, runs its test, reverts it."""
    path = tree / mutant.file
    before = path.read_text()
    if before.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.file} holds it {before.count(mutant.old)} times")
    path.write_text(before.replace(mutant.old, mutant.new))
    try:
        return passes(tree, mutant.test)
    finally:
        path.write_text(before)


def main(words: list[str]) -> int:
    """Runs the chosen mutants; 1 if any survives."""
    chosen = [m for m in MUTANTS if not words or any(word in m.name + m.file for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for part in PARTS:
            shutil.copytree(
                ROOT / part,
                tree / part,
                ignore=shutil.ignore_patterns("demo.tadiff", "demo_case", "__pycache__"),
            )
        for name in ("pyproject.toml", "mkdocs.yml", "README.md"):
            shutil.copy(ROOT / name, tree)
        (tree / "tadiff_kernels").symlink_to("kernels")  # as setuptools names it
        if not passes(tree, *sorted({m.test for m in chosen})):
            raise SystemExit("a test fails before any fault is planted")
        alive = [mutant.name for mutant in chosen if survives(tree, mutant)]
    print(f"{len(chosen) - len(alive)} of {len(chosen)} faults caught")  # noqa: T201
    for name in alive:
        print(f"survived: {name}")  # noqa: T201
    return 1 if alive else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
