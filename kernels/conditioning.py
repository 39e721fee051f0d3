"""Shifts of all residual blocks for all solver steps of one request: the conditioner of TaDiff.

    u_s = treats_embed(fourier(10 (code_s + 1))) + days_embed(sinusoid(day_s)),   s = 0 … 3
    e_i = time_embed(sinusoid(t_i)) + u_3
    encoder and decoder blocks: W silu([u_0 - u_3, u_1 - u_3, u_2 - u_3, e_i]) + b
    middle blocks: W silu(e_i) + b

(Liu et al., IEEE TMI 2025, with the target in slot 3.) Each embedding is Linear, SiLU, Linear
through twice the width mc of its input. Only e_i differs between steps.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = (
    "frequencies",
    "hidden_weight",
    "hidden_bias",
    "out_weight",
    "out_bias",
    "projection",
    "projection_bias",
)
"""The `weights` of `conditioning`, in order."""

WIDEST = 4096
"""Largest embedding width mc: weights of one hidden channel lie in registers."""


@torch.no_grad()
def pack(
    fourier: Tensor, mlps: Sequence[Sequence[Tensor]], projections: Sequence[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """The `weights` of `conditioning` from the parameters of a network; all contiguous copies.

    Args:
        fourier: (mc / 2, 1) trained frequencies of the treatment code.
        mlps: weight (2 mc, mc), bias, weight (mc, 2 mc) and bias of the time, the day and the
            treatment embedding.
        projections: weight (channels, 4 mc), or (channels, mc) in the middle, and bias of every
            residual block in the order in which they run.

    Returns:
        frequencies (2, mc / 2), of sinusoids and of treatments; hidden_weight (3, mc, 2 mc),
        transposed; hidden_bias (3, 2 mc); out_weight (3, mc, 2 mc); out_bias (3, mc); projection
        (4 mc, p), transposed, p the channels of all blocks; projection_bias (p,).

    Raises:
        ValueError: a projection is neither mc nor 4 mc wide.
    """
    half = len(fourier)
    mc = 2 * half
    # Once, here: another exp on another device could round a frequency differently, and 40,000
    # days times one unit in its last place is a phase of 0.002.
    k = torch.arange(half, dtype=torch.float32)
    sinusoid = torch.exp(-math.log(10000) / half * k).to(fourier)
    hidden_weight, hidden_bias, out_weight, out_bias = map(torch.stack, zip(*mlps, strict=True))
    columns = []
    for weight, _ in projections:
        if weight.shape[1] not in (mc, 4 * mc):
            raise ValueError(
                f"a projection must be {mc} or {4 * mc} wide, got {tuple(weight.shape)}"
            )
        # A middle block does not see the sessions' differences: they meet weights of zero.
        columns.append(F.pad(weight, (4 * mc - weight.shape[1], 0)))
    return [
        torch.stack([sinusoid, fourier.flatten()]),
        hidden_weight.transpose(1, 2).contiguous(),
        hidden_bias,
        out_weight,
        out_bias,
        torch.cat(columns).T.contiguous(),
        torch.cat([bias for _, bias in projections]),
    ]


def conditioning_reference(
    t: Tensor, days: Tensor, treatments: Tensor, weights: Sequence[Tensor]
) -> Tensor:
    """What the kernel computes, in plain PyTorch: the test oracle and the CPU implementation.

    Args: as of `conditioning`; in float64 too, where angles are still rounded to float32.
    """
    frequencies, hidden_weight, hidden_bias, out_weight, out_bias, projection, bias = weights

    def embedded(values: Tensor, network: int) -> Tensor:
        # In float32 by definition; all that follows is in the dtype of the weights.
        angle = values.float()[:, None] * frequencies[network // 2].float()
        angle = angle.to(hidden_weight.dtype)
        x = torch.cat([angle.cos(), angle.sin()], dim=1)
        hidden = F.silu(x @ hidden_weight[network] + hidden_bias[network])
        return hidden @ out_weight[network].T + out_bias[network]

    code = (treatments[0].float() + 1) * 10
    sessions = embedded(2 * math.pi * code, 2) + embedded(days[0], 1)
    differences = (sessions[:3] - sessions[3]).flatten()
    middle = embedded(t, 0) + sessions[3]
    around = torch.cat([differences.expand(len(t), -1), middle], dim=1)
    return F.silu(around) @ projection + bias


@torch.library.custom_op("tadiff::conditioning", mutates_args=(), device_types="cpu")
def conditioning(t: Tensor, days: Tensor, treatments: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """One row of shifts for every solver step: (n, p) float32; see the module.

    Accurate for angles (values times frequencies) up to 2^17. On a GPU: two launches, and a row
    has the same bits whatever n is.

    Args:
        t: (n,) timesteps, one-based and possibly fractional.
        days: (1, 4) days of the sessions, the target's last; within ±2^17.
        treatments: (1, 4) treatment codes, as float32.
        weights: of `pack`, mc a multiple of 32 up to 4,096. All arguments are contiguous float32
            on one device.

    Returns:
        The blocks' shifts side by side, in the order in which they were packed.

    Raises:
        ValueError: an argument has another shape, dtype or device, or is not contiguous.
    """
    _check(t, days, treatments, weights)
    return conditioning_reference(t, days, treatments, weights)


@conditioning.register_kernel("cuda")
def on_gpu(t: Tensor, days: Tensor, treatments: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """`conditioning` by the kernels."""
    from tadiff_kernels.conditioning_triton import launch

    _check(t, days, treatments, weights)
    with torch.cuda.device(t.device):
        return launch(t, days, treatments, weights)


@conditioning.register_fake
def _(t: Tensor, days: Tensor, treatments: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return t.new_empty(t.shape[0], weights[-1].shape[0])


def _check(t: Tensor, days: Tensor, treatments: Tensor, weights: Sequence[Tensor]) -> None:
    if len(weights) != len(NAMES):
        raise ValueError(f"weights must be the {len(NAMES)} of `pack`, got {len(weights)}")
    mc, p = weights[0].numel(), weights[-1].numel()
    if mc % 32 or not 32 <= mc <= WIDEST:
        raise ValueError(
            f"the embedding width must be a multiple of 32 from 32 to {WIDEST}, got {mc}"
        )
    shapes = [(2, mc // 2), (3, mc, 2 * mc), (3, 2 * mc), (3, mc, 2 * mc), (3, mc), (4 * mc, p)]
    expected = {"t": (t, (t.numel(),)), "days": (days, (1, 4)), "treatments": (treatments, (1, 4))}
    expected |= dict(zip(NAMES, zip(weights, [*shapes, (p,)], strict=True), strict=True))
    for name, (tensor, shape) in expected.items():
        if (tensor.dtype, tensor.shape, tensor.device) != (torch.float32, shape, t.device):
            raise ValueError(
                f"{name} must be torch.float32 of shape {shape} on {t.device}, got "
                f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
            )
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous, got strides {tensor.stride()} for shape {shape}"
            )
