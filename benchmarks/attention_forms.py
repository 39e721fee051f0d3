"""In which form should the exported graph compute softmax_one attention on a CPU?

`python -m benchmarks.attention_forms [THREADS]`. The whole denoiser 32/2/4, whose attention over
48 x 48 positions holds most scores, in onnxruntime; `error` is to float64, over its maximum.
Predicted before the first run: rows of queries at a time spare the scores' way to memory, 1.35x of
attention and 1.09x of the network at 192 x 192, nothing at 96 x 96, where they fit the cache.
"""

import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

import tadiff_train.network as network
from benchmarks.harness import append, row, run_in_turns
from tadiff_export.certify.exact import exact_outputs
from tadiff_export.certify.probes import Probe, make_probes
from tadiff_export.onnx import conditioner_to_onnx, denoiser_to_onnx
from tadiff_export.split import split
from tadiff_kernels.accuracy import relative_error
from tadiff_rt.schedule import NoiseSchedule

CHUNKS = (96, 144, 192, 288, 576)
REPEATS = 7


def maximum_as_a_key(q: Tensor, k: Tensor, v: Tensor, query_chunk: int | None = None) -> Tensor:
    """softmax over the scores and, once more, their maximum: softmax_one, with no row factor."""
    scale = q.shape[1] ** -0.25
    vt = torch.cat([v, 0 * v[:, :, :1]], dim=2).transpose(1, 2)
    scores = (q * scale).transpose(1, 2) @ (k * scale)
    p = torch.softmax(torch.cat([scores, scores.amax(-1, keepdim=True)], dim=-1), dim=-1)
    return (p @ vt).transpose(1, 2)


def values_first(q: Tensor, k: Tensor, v: Tensor, query_chunk: int | None = None) -> Tensor:
    """v p^T: the result needs no transposition, the weights do."""
    scale = q.shape[1] ** -0.25
    p = torch.softmax((q * scale).transpose(1, 2) @ (k * scale), dim=-1)
    return (v @ p.transpose(1, 2)) / (1 + p.amax(-1)[:, None])


def unscaled(q: Tensor, k: Tensor, v: Tensor, query_chunk: int | None = None) -> Tensor:
    """For `qkv` layers that already hold the scale of the scores."""
    p = torch.softmax(q.transpose(1, 2) @ k, dim=-1)
    return ((p @ v.transpose(1, 2)) / (1 + p.amax(-1, keepdim=True))).transpose(1, 2)


def with_folded_scale(net: network.TaDiffNet) -> network.TaDiffNet:
    """A copy whose rows of q and k carry d^(-1/4)."""
    folded = copy.deepcopy(net)
    for block in folded.modules():
        if isinstance(block, network.AttentionBlock):
            for p in (block.qkv.weight, block.qkv.bias):
                heads = p.data.view(block.num_heads, 3, -1)
                d = p.shape[0] // block.num_heads // 3
                heads[:, :2] *= d**-0.25
    return folded


@contextmanager
def attention(form: Callable[..., Tensor]) -> Iterator[None]:
    """The network with another form of attention."""
    before = network.attend
    network.attend = form
    try:
        yield
    finally:
        network.attend = before


def graphs(net: network.TaDiffNet, size: int) -> dict[str, bytes]:
    """Name of a form -> the denoiser in it."""
    models = {"all rows": denoiser_to_onnx(split(net)[1], size, query_chunk=None)}
    for rows in CHUNKS:
        models[f"{rows} rows"] = denoiser_to_onnx(split(net)[1], size, query_chunk=rows)
    others = {
        "maximum as a key": (maximum_as_a_key, net),
        "values first": (values_first, net),
        "scale in the weights": (unscaled, with_folded_scale(net)),
    }
    for name, (form, weights) in others.items():
        with attention(form):
            models[name] = denoiser_to_onnx(split(weights)[1], size, query_chunk=None)
    return {name: model.SerializeToString() for name, model in models.items()}


def load(graph: bytes, batch: int, threads: int) -> ort.InferenceSession:
    """The denoiser for `batch` rows."""
    options = ort.SessionOptions()
    options.add_free_dimension_override_by_name("batch", batch)
    options.intra_op_num_threads = threads
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def probe_of(rows: int, size: int) -> Probe:
    """Images in the later half of the schedule."""
    return make_probes(NoiseSchedule.linear(1000), rows, size)[2]


def feed_of(net: network.TaDiffNet, probe: Probe) -> dict[str, NDArray[np.float32]]:
    """Inputs of the denoiser for a probe of the certificate."""
    graph = conditioner_to_onnx(split(net)[0]).SerializeToString()
    request = {"t": [probe.t], "days": [probe.days], "treatments": [probe.treatments]}
    shifts = ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(
        None, {name: np.array(value, np.float32) for name, value in request.items()}
    )[0]
    return {"sources": probe.sources, "x_t": probe.x, "shifts": shifts}


def main(threads: int) -> None:
    """Writes rows to results/cpu.jsonl."""
    torch.manual_seed(0)
    net = network.TaDiffNet(network.NetworkConfig())
    for p in net.parameters():
        torch.nn.init.normal_(p, std=max(p[0].numel(), 16) ** -0.5 if p.ndim > 1 else 0.1)
    for size in (96, 192):
        forms = graphs(net, size)
        probe = probe_of(1, size)
        exact, feed = torch.from_numpy(exact_outputs(net, probe)["eps"]), feed_of(net, probe)
        errors = {
            name: relative_error(
                torch.from_numpy(load(g, 1, threads).run(["eps"], feed)[0]), exact
            )
            for name, g in forms.items()
        }
        for batch in (1, 4):
            rows = timed(forms, probe_of(batch, size), feed["shifts"], threads)
            append("cpu", [entry | {"error": errors[entry["contestant"]]} for entry in rows])


def timed(
    forms: dict[str, bytes], probe: Probe, shifts: NDArray[np.float32], threads: int
) -> list[dict[str, object]]:
    """One row a form; `gain` is how many times as fast as all rows at once."""
    batch, _, size, _ = probe.x.shape
    feed = {"sources": probe.sources, "x_t": probe.x, "shifts": shifts}
    sessions = {name: load(graph, batch, threads) for name, graph in forms.items()}
    runs = {name: lambda s=s: s.run(None, feed) for name, s in sessions.items()}
    seconds = run_in_turns(runs, REPEATS)
    today = float(np.median(seconds["all rows"]))
    return [
        row(
            f"attention form/32/2/4/{size}/batch {batch}",
            name,
            times,
            threads=threads,
            gain=round(today / float(np.median(times)), 3),
        )
        for name, times in seconds.items()
    ]


if __name__ == "__main__":
    start = time.perf_counter()
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    print(f"{time.perf_counter() - start:.0f} s")  # noqa: T201
