"""One evaluation of a network with made-up weights, on images of several sizes."""

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
import torch

from benchmarks.floor import Roofline, Row, timed_row
from benchmarks.gpu_bundle import network
from benchmarks.harness import run_in_turns
from benchmarks.network_cost import layers, works
from tadiff_export.norms import lower_group_norms
from tadiff_export.onnx import denoiser_to_onnx
from tadiff_export.split import split
from tadiff_rt.backends.ort import BATCH, OUTPUTS, PROVIDER, denoiser_options
from tadiff_train.network import NetworkConfig

AGREES = 1e-4
"""Largest difference to PyTorch, as a share of the largest output."""


class Evaluation:
    """A network with made-up weights in onnxruntime at one size."""

    def __init__(self, config: NetworkConfig, size: int, threads: int) -> None:
        self.layers, self.apart = layers(config, size), float("inf")
        self._denoiser = split(network(config))[1]
        graph = lower_group_norms(denoiser_to_onnx(self._denoiser, size)).SerializeToString()
        options = denoiser_options(threads)
        options.add_free_dimension_override_by_name(BATCH, 1)
        self._session = ort.InferenceSession(graph, options, providers=[PROVIDER])
        rng = np.random.default_rng(0)
        self._feed = {
            value.name: rng.standard_normal(
                [n if isinstance(n, int) else 1 for n in value.shape], dtype=np.float32
            )
            for value in self._session.get_inputs()
        }

    def run(self) -> list[np.ndarray]:
        """One evaluation."""
        return list(self._session.run(OUTPUTS, self._feed))

    def check(self) -> None:
        """Compares with PyTorch.

        Raises:
            SystemExit: an output differs by more than AGREES of its largest.
        """
        with torch.no_grad():
            wanted = self._denoiser(*map(torch.from_numpy, self._feed.values()))
        pairs = list(zip(self.run(), (y.numpy() for y in wanted), strict=True))
        self.apart = float(max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs))
        if not self.apart <= AGREES:
            raise SystemExit(f"{self.apart:.2g} of the largest output from PyTorch")

    def gflop(self) -> dict[str, float]:
        """Arithmetic of all layers, and of convolutions and attention."""
        kinds = {"convolution_gflop": "convolution", "attention_gflop": "attention", "gflop": ""}
        return {
            name: sum(layer.flops for layer in self.layers if kind in layer.kind) / 1e9
            for name, kind in kinds.items()
        }


def size_rows(
    case: str,
    config: NetworkConfig,
    sizes: Sequence[int],
    threads: int,
    roofline: Roofline,
    repeats: int,
) -> list[Row]:
    """A row a size, timed in turns, with the arithmetic in GFLOP.

    Raises:
        SystemExit: a network does not agree with PyTorch.
    """
    made = {str(size): Evaluation(config, size, threads) for size in sizes}
    for one in made.values():
        one.check()
    seconds = run_in_turns({name: one.run for name, one in made.items()}, repeats)
    rows = []
    for name, one in made.items():
        quality = {"largest_difference_to_pytorch": float(f"{one.apart:.2g}")}
        every = works(one.layers, 1, "fp32")
        entry = timed_row(case, name, seconds[name], every, roofline, quality=quality)
        gflop = one.gflop()
        entry |= {name: round(value, 3) for name, value in gflop.items()}
        rows.append({**entry, "ms_per_gflop": round(entry["ms"] / gflop["gflop"], 3)})
    return rows
