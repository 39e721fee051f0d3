"""What one evaluation of the network must compute and move, layer by layer."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.floor import DTYPES, Roofline, Row, Work, timed_row
from tadiff_train.network import AttentionBlock, GroupNorm32, NetworkConfig, TaDiffNet, Upsample


@dataclass(frozen=True)
class Layer:
    """One layer at one image size, for one image."""

    name: str
    kind: str
    """"convolution", "attention" or "norm"."""
    weights: int
    activations: int
    """Numbers read and written, each once."""
    flops: float
    """2 for a multiplication and the addition after it; of norms none."""

    def work(self, batch: int, dtype: str) -> Work:
        """Of `batch` images, weights and activations in `dtype`."""
        moved = self.weights + batch * self.activations
        return Work(moved * DTYPES[dtype].itemsize, batch * self.flops, dtype)


def layers(config: NetworkConfig, size: int) -> tuple[Layer, ...]:
    """Convolutions, attention (both products as one layer) and norms, in running order.

    A convolution after an upsampling reads the small image: doubling moves nothing by itself.
    """
    net = TaDiffNet(config).to("meta").eval()
    found: list[Layer] = []
    upsampled = {layer.conv for layer in net.modules() if isinstance(layer, Upsample)}

    def note(name: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        read, written = x.numel(), y.numel()
        match module:
            case nn.Conv1d() | nn.Conv2d():
                weights = module.weight.numel()
                flops = 2 * written * weights / module.out_channels
                read = read // 4 if module in upsampled else read
                found.append(Layer(name, "convolution", weights, read + written, flops))
            case GroupNorm32():
                found.append(Layer(name, "norm", 0, read + written, 0))
            case AttentionBlock():
                positions = x.shape[2] * x.shape[3]
                products = 4 * positions**2 * x.shape[1]
                found.append(Layer(f"{name}.attend", "attention", 0, 4 * read, products))

    for name, module in net.named_modules():
        module.register_forward_hook(lambda m, args, y, name=name: note(name, m, args[0], y))
    x = torch.empty(1, 12, size, size, device="meta")
    net.unet(x, [x.new_empty(1, block.channels_out) for block in net.residual_blocks()])
    return tuple(found)


def works(
    every: Iterable[Layer], batch: int, dtype: str, *, separate_norms: bool = False
) -> list[Work]:
    """Of an evaluation of `batch` images that runs layer by layer.

    Norms, activations and sums are free: they can be part of the convolutions beside them, and
    statistics are of what the convolution before has in hand. With `separate_norms`, a norm reads
    its input and writes its output, once.
    """
    return [layer.work(batch, dtype) for layer in every if separate_norms or layer.kind != "norm"]


def network_row(
    case: str,
    contestant: str,
    seconds: list[float],
    every: Iterable[Layer],
    batch: int,
    dtype: str,
    roofline: Roofline,
    *,
    calls: float = 1.0,
    **columns: object,
) -> Row:
    """A row of `calls` evaluations, with both floors; see `works`."""
    strict, separate = (
        [work.times(calls) for work in works(every, batch, dtype, separate_norms=s)]
        for s in (False, True)
    )
    entry = timed_row(case, contestant, seconds, strict, roofline, **columns)
    floor = roofline.columns(entry["ms"], separate)
    return {
        **entry,
        "floor_separate_norms_ms": floor["floor_ms"],
        "fraction_separate_norms": floor["roofline_fraction"],
    }
