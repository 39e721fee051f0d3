"""What does the runtime compute itself, beside the network, and how near is it to its floor?

    python -m benchmarks.kernels [ROWS SIZE]

On a CPU, a bucket of 5 images of 192 x 192: a step of each family of solvers, normal noise, the
weighted sum of mask logits, and the statistics of a sample, each beside the same formula spelled
out in numpy and in torch. numpy takes one thread, torch all. Results are compared before anything
is timed.

The floor is the bytes that must be read and written, at the rate of a copy that moves as many: it
takes turns with the contestants, by numpy and by torch, and the faster counts. A large copy runs
from memory and would be no floor here, because these arrays stay in cache. Beside it stands the
share of a whole evaluation of configuration A on the same images, which takes at least its
arithmetic at the rate of a matrix product: the share of a real one is smaller still.

The Triton kernels are compiled ahead of time for every GPU that is supported: registers of a
thread, bytes it spills, bytes of shared memory of a program. Their times are those of
`benchmarks.gpu_kernels`, on a GPU.
"""

import os
import statistics
import sys
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.array_problems import Problem, problems
from benchmarks.floor import Roofline, Row, timed_row
from benchmarks.harness import run_in_turns, save
from benchmarks.network_cost import layers, works
from tadiff_kernels.ahead import Variant, compile_variants
from tadiff_train.network import NetworkConfig

ROWS, SIZE = 5, 192
REPEATS = 15
MACHINE = "kernels/this machine"
COPIES = ("copy, numpy", "copy, torch")


def copies(bytes_moved: float) -> dict[str, Callable[[], object]]:
    """Reads half of so many bytes and writes as many."""
    image = np.ones(int(bytes_moved) // 8, np.float32)
    copied = np.empty_like(image)
    tensors = [torch.from_numpy(v) for v in (copied, image)]
    ways = (lambda: np.copyto(copied, image), lambda: tensors[0].copy_(tensors[1]))
    return dict(zip(COPIES, ways, strict=True))


def rows_of(problem: Problem, evaluation_ms: float, repeats: int) -> list[Row]:
    """One a contestant, of a unit of the work.

    Args:
        evaluation_ms: least time of an evaluation of one image.

    Raises:
        ValueError: a contestant computes something else.
    """
    errors = {name: problem.check(name, way.run()) for name, way in problem.ways.items()}
    runs = {name: way.run for name, way in problem.ways.items()}
    seconds = run_in_turns({**copies(problem.work.bytes), **runs}, repeats)
    fastest = min(COPIES, key=lambda name: statistics.median(seconds[name]))
    rate = problem.work.bytes / statistics.median(seconds[fastest])
    roofline = Roofline(rate, {"fp32": np.inf})
    found = []
    for name, way in problem.ways.items():
        each = [second / problem.units for second in seconds[name]]
        entry = timed_row(problem.case, name, each, [problem.work], roofline, quality=way.quality)
        entry |= {
            "per": problem.per,
            "error": float(f"{errors[name]:.3g}"),
            "floor_of": f"{fastest}, of as many bytes",
            "copy_bytes_per_s": float(f"{rate:.4g}"),
            "share_of_evaluation": float(f"{entry['ms'] / (problem.images * evaluation_ms):.3g}"),
        }
        found.append(entry)
    return found


def evaluation_floor_ms(roofline: Roofline, batch: int, size: int) -> float:
    """Least time of an evaluation of configuration A, an image of a batch."""
    every = layers(NetworkConfig(), size)
    return roofline.floor(works(every, batch, "fp32"))[0] / batch


def main_variants() -> dict[str, list[Variant]]:
    """The kernels as configuration A launches them in fp16, by what they compute."""
    # Written once, with the tests that hold what they need to a record.
    from tests.kernels import (
        test_attention,
        test_conditioning,
        test_ensemble_step,
        test_group_norm_silu,
        test_solver_step,
    )

    norms = [v for v in test_group_norm_silu.variants("fp16") if "channels_last with" in v.name]
    embed, project = test_conditioning.EMBED, test_conditioning.PROJECT
    width, shifts = NetworkConfig().model_channels, 1856
    return {
        "solver step": [
            test_solver_step.step_variant("fp16", 1, noisy, True) for noisy in (False, True)
        ],
        "initial noise": [test_solver_step.start_variant("constexpr")],
        "statistics": [v for v in test_ensemble_step.variants() if v.name == "aligned"],
        "norm": norms,
        "attention": [
            test_attention.variant((b, 2304, 4, 24), test_attention.HALF) for b in (1, 40)
        ],
        "conditioning": [
            test_conditioning.variant(
                "_embed", "A", embed, test_conditioning.embed_constants(width), 3
            ),
            test_conditioning.variant(
                "_project",
                "A",
                project,
                test_conditioning.project_constants(width, shifts),
                test_conditioning.PROJECT_STAGES,
            ),
        ],
    }


def compiled_rows(variants: dict[str, list[Variant]]) -> list[Row]:
    """One a kernel and GPU."""
    absent = not torch.cuda.is_available()
    why = "no GPU was available" if absent else "see benchmarks.gpu_kernels"
    return [
        {
            "case": f"kernels/Triton {resources.variant}",
            "contestant": f"compiled for sm_{resources.arch}",
            "computes": what,
            "registers": resources.registers,
            "spilled_bytes": resources.spilled,
            "shared_bytes": resources.shared,
            "not_measured": why,
            "no_floor": "compiled, not run",
            "quality": "compared with float64 in tests/kernels",
        }
        for what, some in variants.items()
        for resources in compile_variants(some)
    ]


def rows(count: int, size: int, roofline: Roofline, repeats: int = REPEATS) -> list[Row]:
    """The array work of a bucket of `count` images."""
    least = evaluation_floor_ms(roofline, count, size)
    return [row for problem in problems(count, size) for row in rows_of(problem, least, repeats)]


def main(count: str = str(ROWS), size: str = str(SIZE)) -> None:
    """Writes results/kernels.jsonl."""
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    roofline = Roofline.of_this_cpu(threads)
    measured = rows(int(count), int(size), roofline)
    save("kernels", [roofline.as_row(MACHINE), *measured, *compiled_rows(main_variants())])


if __name__ == "__main__":
    main(*sys.argv[1:])
