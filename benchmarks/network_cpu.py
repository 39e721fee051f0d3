"""One denoiser evaluation in onnxruntime: which attention form, which batch, and the floor?

`python -m benchmarks.network_cpu [THREADS]`. Random weights: time does not depend on them. Form
`five passes` is softmax_one as published; `softmax` is what we export.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

import tadiff_export.onnx as onnx_export
import tadiff_train.network as network
from benchmarks.harness import append, matmul_rate, row, run_in_turns
from tadiff_export.norms import lower_group_norms
from tadiff_export.split import split

CONFIGS = {
    "32/1/1": network.NetworkConfig(num_res_blocks=1, num_heads=1),
    "32/2/4": network.NetworkConfig(num_res_blocks=2, num_heads=4),
}
GFLOP_192 = {"32/1/1": 30.47, "32/2/4": 45.35}
"""Of one evaluation at 192 x 192, counted as 2 x MAC."""
REPEATS = 7


def five_passes(q: Tensor, k: Tensor, v: Tensor, query_chunk: int | None = None) -> Tensor:
    """Attention with softmax_one spelled out over the whole score matrix."""
    scale = q.shape[1] ** -0.25
    scores = (q * scale).transpose(1, 2) @ (k * scale)
    return (network.softmax_one(scores) @ v.transpose(1, 2)).transpose(1, 2)


@contextmanager
def attention(form: Callable[..., Tensor]) -> Iterator[None]:
    """The network with another form of attention, and the operators that form needs."""
    form_before, allowed_before = network.attend, onnx_export.ALLOWED_OPS
    network.attend, onnx_export.ALLOWED_OPS = form, {*allowed_before, "Exp"}
    try:
        yield
    finally:
        network.attend, onnx_export.ALLOWED_OPS = form_before, allowed_before


def evaluation(name: str, batch: int, size: int, threads: int) -> Callable[[], object]:
    """A call that runs one batch."""
    torch.manual_seed(0)
    net = network.TaDiffNet(CONFIGS[name])
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    model = lower_group_norms(onnx_export.denoiser_to_onnx(split(net)[1], size))
    options = ort.SessionOptions()
    options.add_free_dimension_override_by_name("batch", batch)
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    feed = {v.name: rng.standard_normal(v.shape).astype(np.float32) for v in session.get_inputs()}
    return lambda: session.run(None, feed)


def main(threads: int) -> None:
    """Writes rows to results/cpu.jsonl."""
    for name in CONFIGS:
        contestants = {"softmax": evaluation(name, 1, 192, threads)}
        with attention(five_passes):
            contestants["five passes"] = evaluation(name, 1, 192, threads)
        report(f"network/{name}/192/batch 1", name, 1, 192, contestants, threads)
    for size in (96, 192):
        contestants = {f"batch {b}": evaluation("32/1/1", b, size, threads) for b in (1, 4)}
        report(f"network/32/1/1/{size}/by batch", "32/1/1", None, size, contestants, threads)


def report(
    case: str,
    name: str,
    batch: int | None,
    size: int,
    contestants: dict[str, Callable[[], object]],
    threads: int,
) -> None:
    """Times contestants in turns; each row per image, with the fraction of the matmul rate."""
    rate = matmul_rate(threads)
    rows = []
    for contestant, seconds in run_in_turns(contestants, REPEATS).items():
        images = batch or int(contestant.split()[-1])
        per_image = [s / images for s in seconds]
        entry = row(case, contestant, per_image, threads=threads)
        if size == 192:
            floor_ms = GFLOP_192[name] * 1e12 / rate
            entry |= {"floor_ms": round(floor_ms, 1), "of_floor": round(floor_ms / entry["ms"], 3)}
        rows.append(entry)
    append("cpu", rows)


if __name__ == "__main__":
    start = time.perf_counter()
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    print(f"{time.perf_counter() - start:.0f} s")  # noqa: T201
