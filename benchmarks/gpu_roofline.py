"""What can this GPU do at most, today?  `python -m benchmarks.gpu_roofline OUT`

A large copy, large matrix products on random numbers, and what a launch costs. Every other GPU
benchmark divides by these rows, which are measured in the same session.
"""

import sys

import torch

from benchmarks.device import Bench, Replay
from benchmarks.floor import DTYPES, Row
from benchmarks.harness import row

COPY_BYTES = 2 << 30
PRODUCT_SIZE = {"fp32": 4096, "fp16": 8192, "bf16": 8192}
LAUNCHES = 1000
"""Tiny kernels in a row: time over their number is what one of them costs."""


def copy_row(bench: Bench) -> Row:
    """Bytes read plus bytes written, a second."""
    size = COPY_BYTES if bench.on_gpu else 1 << 24
    a = bench.normal(size // 4)
    b = torch.empty_like(a)
    seconds = bench.seconds({"copy": lambda: b.copy_(a)}, cold=True)["copy"]
    entry = row("roofline", "copy", seconds)
    return {**entry, "bytes_per_s": 2e3 * size / entry["ms"]}


def product_row(bench: Bench, name: str) -> Row:
    """FLOP/s of a square matrix product; fp32 without TF32."""
    size = PRODUCT_SIZE[name] if bench.on_gpu else 256
    a, b = (bench.normal(size, size, dtype=DTYPES[name], seed=seed) for seed in (0, 1))
    seconds = bench.seconds({"product": lambda: a @ b}, cold=True)["product"]
    entry = row("roofline", f"product {name}", seconds)
    return {**entry, "flops_per_s": 2e3 * size**3 / entry["ms"]}


def launch_rows(bench: Bench) -> list[Row]:
    """What one small kernel costs: launched by Python, inside a graph, and alone in a graph.

    The last is in every row of `benchmarks.gpu_kernels`, which times replays of single calls.
    """
    x = bench.normal(32)

    def many() -> None:
        for _ in range(LAUNCHES):
            x.add_(1.0)

    def one() -> None:
        x.add_(1.0)

    seconds = bench.seconds({"launch": many}, cold=False)
    if bench.on_gpu:
        seconds |= bench.seconds({"launch in a graph": Replay(many)}, cold=False)
    each = {name: [s / LAUNCHES for s in values] for name, values in seconds.items()}
    if bench.on_gpu:
        each |= bench.seconds({"replay of one launch": Replay(one)}, cold=True)
    return [row("roofline", name, values) for name, values in each.items()]


def main(out: str) -> None:
    """Appends rows to OUT/gpu.jsonl."""
    bench = Bench.start(out)
    bench.append([copy_row(bench), *(product_row(bench, name) for name in DTYPES)])
    bench.append(launch_rows(bench))


if __name__ == "__main__":
    main(sys.argv[1])
