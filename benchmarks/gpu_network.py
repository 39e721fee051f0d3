"""What does each step of acceleration bring, and what does it cost in quality?

`python -m benchmarks.gpu_network OUT [BATCH ...]`. One evaluation of the network, each rung of
the ladder on top of the one before: time, its floor, memory, and how far the noise estimate and a
small ensemble of the same noise are from the first rung's. Rungs of one batch take turns.
Compiling takes most of the minutes and is in no row.
"""

import copy
import sys

import torch
from torch import Tensor

from benchmarks.device import Bench, Replay, Run, attempt
from benchmarks.floor import DTYPES, Row
from benchmarks.gpu_bundle import config_and_size, network
from benchmarks.gpu_targets import LADDER, OTHER
from benchmarks.network_cost import layers, network_row
from benchmarks.network_quality import Denoise, Inputs, apart, ensemble, quality
from tadiff_export.fuse import fuse
from tadiff_export.split import split
from tadiff_rt.certify.network import Drawn
from tadiff_train.network import GroupNorm32, NetworkConfig, TaDiffNet

BATCHES = (1, 40, 5, 8)
"""In order of what is wanted most, should time run out."""
RESERVE = 40.0
"""Seconds that a rung is not begun without: to compile it, and to time all of the batch."""
Made = dict[tuple[str, str], Denoise]


class Graphed:
    """A denoiser as a CUDA graph over static inputs."""

    def __init__(self, denoise: Denoise, held: tuple[Tensor, Tensor, Tensor]) -> None:
        self.held = [x.clone() for x in held]
        self.replay = Replay(lambda: denoise(*self.held))

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        for buffer, x in zip(self.held, inputs, strict=True):
            buffer.copy_(x)
        self.replay()
        eps, logits = self.replay.result
        return eps.clone(), logits.clone()


def eager(net: TaDiffNet, dtype: str, memory_format: torch.memory_format) -> Denoise:
    """The published network in one type, with norms in fp32."""
    denoiser = copy.deepcopy(split(net)[1])
    for module in denoiser.modules():
        if not isinstance(module, GroupNorm32):
            for p in module.parameters(recurse=False):
                layout = memory_format if p.ndim == 4 else torch.preserve_format
                p.data = p.to(DTYPES[dtype], memory_format=layout)
    return In(denoiser, DTYPES[dtype], memory_format)


class In(torch.nn.Module):
    """A denoiser whose inputs come in fp32."""

    def __init__(
        self, denoiser: torch.nn.Module, dtype: torch.dtype, memory_format: torch.memory_format
    ) -> None:
        super().__init__()
        self.denoiser, self.dtype, self.memory_format = denoiser, dtype, memory_format

    def forward(self, sources: Tensor, x_t: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        images = [x.to(self.dtype, memory_format=self.memory_format) for x in (sources, x_t)]
        return self.denoiser(*images, shifts)


def with_tf32(denoise: Denoise) -> Denoise:
    """As PyTorch runs convolutions in fp32 unless told otherwise."""

    def run(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        torch.backends.cudnn.allow_tf32 = True
        try:
            return denoise(*inputs)
        finally:
            torch.backends.cudnn.allow_tf32 = False

    return run


def searched(denoise: Denoise, inputs: Inputs) -> Graphed:
    """A graph of the algorithms that were fastest when cuDNN tried them: not the same twice."""
    torch.backends.cudnn.benchmark = True
    try:
        return Graphed(denoise, inputs.held())
    finally:
        torch.backends.cudnn.benchmark = False


def make(
    name: str, dtype: str, bench: Bench, net: TaDiffNet, inputs: Inputs, made: Made
) -> Denoise:
    """The denoiser of a rung; `made` holds those before it."""
    match name:
        case "eager":
            return eager(net, dtype, torch.contiguous_format).to(bench.device)
        case "eager, TF32":
            return with_tf32(made["eager", dtype])
        case "channels_last":
            return eager(net, dtype, torch.channels_last).to(bench.device)
        case "channels_last, compiled":
            return bench.compiled(made["channels_last", dtype])
        case "fused":
            return fuse(net, DTYPES[dtype]).to(bench.device)
        case "fused, compiled":
            return bench.compiled(made["fused", dtype])
        case "fused, compiled, graph":
            compiled = made["fused, compiled", dtype]
            return Graphed(compiled, inputs.held()) if bench.on_gpu else compiled
        case "the same, cuDNN searching":
            compiled = made["fused, compiled", dtype]
            return searched(compiled, inputs) if bench.on_gpu else compiled
    raise ValueError(f"no rung {name!r}")


def rows_of(bench: Bench, config: NetworkConfig, size: int, batch: int) -> list[Row]:
    """All rungs at one batch."""
    torch.compiler.reset()  # of the batch before: a function is compiled a few times only
    net, roofline, every = network(config), bench.roofline(), layers(config, size)
    inputs, case = Inputs(bench, net, batch, size), f"network/{size}/batch {batch}"
    made: Made = {}
    failures: list[Row] = []
    columns: dict[str, Row] = {}
    runs: dict[str, Run] = {}
    expected: Drawn | None = None
    for name, dtype in LADDER:
        label = f"{name} {dtype}"

        def prepare(name: str = name, dtype: str = dtype) -> tuple[Denoise, Run, Row]:
            nonlocal expected
            bench.require_seconds(RESERVE)
            denoise = make(name, dtype, bench, net, inputs, made)
            run = denoise.replay if isinstance(denoise, Graphed) else _call(denoise, inputs)
            run()
            baseline = made.get(LADDER[0], denoise)
            expected = expected or ensemble(baseline, inputs, inputs.noise)
            told = quality(denoise, baseline, inputs, expected)
            return denoise, run, {**told, "peak_mb": bench.peak_mb(run)}

        ready = attempt(case, label, prepare, failures)
        if ready is not None:
            made[name, dtype], runs[label], columns[label] = ready
    rows = []
    if expected is not None:
        drawn = ensemble(made[LADDER[0]], inputs, inputs.other)
        rows.append({"case": case, "contestant": OTHER, **apart(drawn, expected)})
    for label, seconds in bench.seconds(runs, cold=False).items():
        dtype = label.rpartition(" ")[2]
        entry = network_row(case, label, seconds, every, batch, dtype, roofline, **columns[label])
        rows.append({**entry, "ms_per_image": float(f"{entry['ms'] / batch:.5g}")})
    return [*rows, *failures]


def _call(denoise: Denoise, inputs: Inputs) -> Run:
    held = inputs.held()
    return lambda: denoise(*held)


def main(out: str, *batches: int) -> None:
    """Appends rows to OUT/gpu.jsonl, batch by batch."""
    bench = Bench.start(out)
    config, size = config_and_size(bench.quick)
    sound = True
    for batch in batches or ((2,) if bench.quick else BATCHES):
        with torch.no_grad():
            sound &= bench.append(rows_of(bench, config, size, batch))
    if not sound:
        raise SystemExit("some rungs failed; their rows say why")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
