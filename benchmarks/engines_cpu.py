"""One evaluation of the network on a CPU: PyTorch, compiled, onnxruntime, openvino.

`python -m benchmarks.engines_cpu [THREADS [SIZE ...]]`. Configuration A (32 channels, 2 residual
blocks, 4 heads), batch 1 and 5, random weights: time does not depend on them. All
contestants run in one process, in turns, on the same inputs; none is timed before its outputs
agree with eager PyTorch. "onnxruntime" is the graph of a bundle; beside it what it would be with
the group norm that ONNX defines, and with attention not in blocks. Takes about eight minutes on
two cores, half of it torch.compile. Needs `pip install 'tadiff[bench]'`.
"""

import io
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from benchmarks.harness import append, matmul_rate, row, run_in_turns
from tadiff_export.norms import lower_group_norms
from tadiff_export.onnx import denoiser_to_onnx
from tadiff_export.split import Denoiser, split
from tadiff_rt.backends.ort import BATCH, denoiser_options
from tadiff_train.network import AttentionBlock, NetworkConfig, TaDiffNet

CONV_GFLOP, ATTENTION_GFLOP = 34.14, 11.21
"""Of one evaluation of configuration A at 192 x 192, counted as 2 x MAC."""
QUERY_CHUNK = 256
"""Rows of the score matrix held at a time by the tuned eager network."""
ALLOWED = 1e-3
"""Largest difference from eager PyTorch, relative to its maximum; rounding is a hundredth."""
REPEATS = 5

Arrays = list[NDArray[np.float32]]
Run = Callable[[], Arrays]


def network() -> Denoiser:
    """Configuration A with random weights."""
    torch.manual_seed(0)
    net = TaDiffNet(NetworkConfig())
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return split(net)[1]


def gflop(size: int) -> float:
    """Of one image: convolutions grow with its area, attention with its square."""
    area = (size / 192) ** 2
    return CONV_GFLOP * area + ATTENTION_GFLOP * area**2


def inputs(denoiser: Denoiser, batch: int, size: int) -> Arrays:
    """Sources, noisy image and shifts."""
    rng = np.random.default_rng(0)
    shapes = [(batch, 9, size, size), (batch, 3, size, size), (1, sum(denoiser.widths))]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def in_blocks(denoiser: Denoiser, chunk: int | None) -> None:
    """Attention over `chunk` rows of the score matrix at a time."""
    for module in denoiser.modules():
        if isinstance(module, AttentionBlock):
            module.query_chunk = chunk


def eager(denoiser: Denoiser, feed: Arrays, chunk: int | None) -> Run:
    """PyTorch as it is; with `chunk` attention in blocks that stay in cache."""
    tensors = [torch.from_numpy(a) for a in feed]

    def run() -> Arrays:
        in_blocks(denoiser, chunk)
        with torch.inference_mode():
            return [y.numpy() for y in denoiser(*tensors)]

    return run


def compiled(denoiser: Denoiser, feed: Arrays) -> Run:
    """torch.compile with frozen weights; compiles in the warm-up."""
    tensors = [torch.from_numpy(a) for a in feed]
    program = compiled_program(denoiser)

    def run() -> Arrays:
        with torch.no_grad():
            return [y.numpy() for y in program(*tensors)]

    return run


def compiled_program(denoiser: Denoiser) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Compiles at its first call, under `no_grad`; weights are constants of it."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    return torch.compile(denoiser, dynamic=False)


def onnxruntime(model: bytes, feed: Arrays, threads: int) -> Run:
    """As the runtime loads a bundle."""
    options = denoiser_options(threads)
    options.add_free_dimension_override_by_name(BATCH, len(feed[0]))
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    named = dict(zip(("sources", "x_t", "shifts"), feed, strict=True))
    return lambda: list(session.run(["eps", "mask_logits"], named))


def openvino(model: bytes, feed: Arrays, threads: int) -> Run:
    """The same graph with static shapes, in fp32."""
    request = openvino_request(model, feed, threads)
    return lambda: request(feed)


def openvino_request(
    model: bytes, feed: Arrays, threads: int, precision: str = "f32"
) -> Callable[[Arrays], Arrays]:
    """Inputs of the shapes of `feed` -> noise estimate and logits; precision "f32" or "bf16"."""
    import openvino as ov

    core = ov.Core()
    graph = core.read_model(io.BytesIO(model))
    graph.reshape({v.any_name: list(a.shape) for v, a in zip(graph.inputs, feed, strict=True)})
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = core.compile_model(graph, "CPU", settings).create_infer_request()

    def run(inputs: Arrays) -> Arrays:
        result = request.infer(inputs)
        return [np.array(result[name]) for name in ("eps", "mask_logits")]

    return run


def check(name: str, got: Arrays, expected: Arrays) -> float:
    """Largest relative difference; a wrong contestant is not timed."""
    error = max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, expected, strict=True)
    )
    if not error <= ALLOWED:
        raise SystemExit(f"{name} differs from eager PyTorch by {error:.1e}")
    return error


def main(threads: int, sizes: Sequence[int]) -> None:
    """Writes rows to results/cpu.jsonl."""
    torch.set_num_threads(threads)
    for size in sizes:
        denoiser = network()
        start = time.perf_counter()
        defined = denoiser_to_onnx(denoiser, size)
        model = lower_group_norms(defined).SerializeToString()
        export_seconds = time.perf_counter() - start
        whole = denoiser_to_onnx(denoiser, size, query_chunk=None)
        for batch in (1, 5):
            feed = inputs(denoiser, batch, size)
            start = time.perf_counter()
            session = onnxruntime(model, feed, threads)
            load_seconds = time.perf_counter() - start
            contestants = {
                "eager": eager(denoiser, feed, None),
                "eager, chunked attention": eager(denoiser, feed, QUERY_CHUNK),
                "compiled": compiled(network(), feed),
                "onnxruntime": session,
                "onnxruntime, norms by definition": onnxruntime(
                    defined.SerializeToString(), feed, threads
                ),
                "onnxruntime, attention in one piece": onnxruntime(
                    lower_group_norms(whole).SerializeToString(), feed, threads
                ),
                "openvino": openvino(model, feed, threads),
            }
            expected = contestants["eager"]()
            errors = {name: check(name, run(), expected) for name, run in contestants.items()}
            rate = matmul_rate(threads)
            floor_ms = gflop(size) * 1e12 / rate
            rows = []
            for name, seconds in run_in_turns(contestants, REPEATS).items():
                entry = row(
                    f"engines/A/{size}/batch {batch}",
                    name,
                    [s / batch for s in seconds],
                    threads=threads,
                    floor_ms=round(floor_ms, 1),
                    difference_from_eager=float(f"{errors[name]:.1e}"),
                )
                rows.append({**entry, "of_floor": round(floor_ms / entry["ms"], 3)})
            rows.append(row(f"engines/A/{size}/batch {batch}", "onnxruntime load", [load_seconds]))
            append("cpu", rows)
        append("cpu", [row(f"engines/A/{size}", "onnx export", [export_seconds])])


if __name__ == "__main__":
    threads, *sizes = [int(word) for word in sys.argv[1:]] or [2]
    main(threads, sizes or (96, 192))
