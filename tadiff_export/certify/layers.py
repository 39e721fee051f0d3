"""Faults of single layers of the U-Net: their parameters changed, or their shifts."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tadiff_train.network import GroupNorm32, TaDiffNet

PARTS = ("input_blocks", "middle_block", "output_blocks", "out")


@dataclass(frozen=True, eq=False)
class LayerFault:
    """A network with other parameters, or fed other shifts."""

    name: str
    """Completes "the artefact computes what the checkpoint does with"."""
    shifts: Tensor
    """(1, p)"""
    parameters: dict[str, Tensor]
    """By the checkpoint's names; all others stay."""


def layer_faults(net: TaDiffNet, shifts: Tensor) -> Iterator[LayerFault]:
    """Shifts dropped and exchanged, then biases dropped, weights transposed, norms without affine.

    Args:
        shifts: (1, p) that the checkpoint has.
    """
    yield from _shift_faults(net, shifts)
    for path, module in net.named_modules():
        if path.split(".")[0] not in PARTS or "emb_layers" in path:
            continue
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            for what, parameter, tensor in _of_convolution(module):
                name = f"the {what.format(path)}"
                yield LayerFault(name, shifts, {f"{path}.{parameter}": tensor})
        if isinstance(module, GroupNorm32):
            plain = {
                f"{path}.weight": torch.ones_like(module.weight),
                f"{path}.bias": torch.zeros_like(module.bias),
            }
            yield LayerFault(f"the weight and bias of {path} dropped", shifts, plain)


def _of_convolution(module: nn.Conv1d | nn.Conv2d) -> Iterator[tuple[str, str, Tensor]]:
    weight = module.weight
    if module.bias is not None:
        yield "bias of {} dropped", "bias", torch.zeros_like(module.bias)
    if module.in_channels == module.out_channels:
        yield "weight of {} transposed", "weight", weight.transpose(0, 1)
    if module.kernel_size[-1] > 1:
        yield "kernels of {} flipped", "weight", weight.flip(2, 3)
        yield "kernels of {} transposed", "weight", weight.transpose(2, 3)


def _shift_faults(net: TaDiffNet, shifts: Tensor) -> Iterator[LayerFault]:
    parts = list(shifts.split([block.channels_out for block in net.residual_blocks()], dim=1))
    yield LayerFault("every shift dropped", 0 * shifts, {})
    for k, part in enumerate(parts):
        dropped = torch.cat([*parts[:k], 0 * part, *parts[k + 1 :]], dim=1)
        yield LayerFault(f"the shift of residual block {k} dropped", dropped, {})
        for j in range(k):
            if parts[j].shape == part.shape:
                other = [*parts]
                other[j], other[k] = part, parts[j]
                name = f"the shifts of residual blocks {j} and {k} exchanged"
                yield LayerFault(name, torch.cat(other, dim=1), {})
