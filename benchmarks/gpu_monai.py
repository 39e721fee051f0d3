"""What does MONAI's helper for TensorRT make of the network?  `python -m benchmarks.gpu_monai OUT`

`monai.networks.trt_compile` wraps a module and builds an engine of it when it is first called.
One evaluation of configuration A at batch 1 and 8 in fp16, beside our compiled graph in the same
turns. Needs monai, tensorrt, polygraphy and a GPU; where one is missing the row says which, under
`not_measured`, and ours is timed alone: another project's program is no fault of ours.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.device import Bench, Run
from benchmarks.floor import Row
from benchmarks.gpu_bundle import config_and_size, network
from benchmarks.gpu_network import Graphed, eager
from benchmarks.network_cost import layers, network_row
from benchmarks.network_quality import Denoise, Inputs
from tadiff_export.fuse import fuse
from tadiff_export.split import Denoiser, split
from tadiff_train.network import NetworkConfig

BATCHES = (1, 8)
MONAI, OURS = "MONAI trt_compile fp16", "our compiled graph fp16"
ALLOWED = 0.05
"""Largest error of the noise estimate, relative to its largest value: in half precision."""


def monai_engine(denoiser: Denoiser, folder: Path) -> nn.Module:
    """The helper's wrapper; it exports and builds at the first call.

    Raises:
        ImportError: MONAI is not installed. What TensorRT lacks it says at the first call.
    """
    from monai.networks import trt_compile

    arguments = {"precision": "fp16", "output_names": ["eps", "mask_logits"], "fallback": False}
    return trt_compile(denoiser, str(folder / "denoiser"), args=arguments)


def checked(run: Run, expected: torch.Tensor) -> dict[str, float]:
    """Quality of a contestant.

    Raises:
        ArithmeticError: it computes something else than `expected`.
    """
    eps, _ = _pair(run())
    error = float((eps.float() - expected).abs().max() / expected.abs().max())
    if not error <= ALLOWED:
        raise ArithmeticError(f"its noise estimate is off by {error:.3g} of the largest value")
    return {"estimate_differs": float(f"{error:.1e}")}


def contestants(
    bench: Bench, config: NetworkConfig, inputs: Inputs, folder: Path
) -> tuple[dict[str, Run], dict[str, dict[str, float]]]:
    """Calls without arguments, and the quality of each, by name; MONAI's only where it runs.

    Returns:
        Both; where MONAI does not run, its quality is {"not_measured": why}.
    """
    net, held = network(config), inputs.held()
    expected, _ = eager(net, "fp32", torch.contiguous_format).to(bench.device)(*held)
    compiled: Denoise = bench.compiled(fuse(net, torch.float16).to(bench.device))
    ours = Graphed(compiled, held)

    def our_outputs() -> Any:
        ours.replay()
        return ours.replay.result

    runs: dict[str, Run] = {OURS: ours.replay}
    quality: dict[str, Any] = {OURS: checked(our_outputs, expected)}
    try:
        engine = monai_engine(split(net)[1].to(bench.device), folder)
        quality[MONAI] = checked(lambda: engine(*held), expected)
        runs[MONAI] = lambda: engine(*held)
    except Exception as e:  # theirs share no base class
        said = " ".join(str(e).split())[:300]
        quality[MONAI] = {"not_measured": f"{type(e).__name__}: {said}"}
    return runs, quality


def _pair(outputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The helper returns what the module does, or a dictionary by output name."""
    if isinstance(outputs, dict):
        return outputs["eps"], outputs["mask_logits"]
    eps, logits = outputs
    return eps, logits


def rows_of(bench: Bench, batch: int) -> list[Row]:
    """Both at one batch, or why not."""
    config, size = config_and_size(bench.quick)
    case = f"monai/{size}/batch {batch}"
    if not bench.on_gpu:
        return [{"case": case, "contestant": MONAI, "not_measured": "no GPU was available"}]
    inputs = Inputs(bench, network(config), batch, size)
    roofline, every = bench.roofline(), layers(config, size)
    with tempfile.TemporaryDirectory() as folder:
        runs, quality = contestants(bench, config, inputs, Path(folder))
        seconds = bench.seconds(runs, cold=False)
    rows = [
        network_row(case, n, found, every, batch, "fp16", roofline, quality=quality[n])
        for n, found in seconds.items()
    ]
    if MONAI not in runs:
        rows.append({"case": case, "contestant": MONAI, **quality[MONAI]})
    return rows


def main(out: str) -> None:
    """Appends rows to OUT/gpu.jsonl."""
    bench = Bench.start(out)
    with torch.no_grad():
        for batch in BATCHES:
            bench.append(rows_of(bench, batch))


if __name__ == "__main__":
    main(sys.argv[1])
