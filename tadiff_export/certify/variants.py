"""Wrong ways to compute the network, as edits of a copy: what exporters and engines have done."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tadiff_train.network import (
    NORM_GROUPS,
    AttentionBlock,
    Downsample,
    GroupNorm32,
    ResBlock,
    ShiftQueue,
    TaDiffNet,
    Upsample,
    softmax_one,
)

Edit = Callable[[TaDiffNet], None]


@dataclass(frozen=True)
class Variant:
    """A network that is not the checkpoint's."""

    name: str
    """What is wrong with it; completes "the artefact computes what the checkpoint does with"."""
    edit: Edit
    """Changes a copy in place."""


class OtherAttention(nn.Module):
    """`AttentionBlock` with another softmax, layout, number of heads or scale."""

    def __init__(
        self,
        block: AttentionBlock,
        *,
        weigh: Callable[[Tensor], Tensor] = softmax_one,
        num_heads: int | None = None,
        layout: str = "head q k v",
        scale_power: float = 0.5,
    ) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj_out = block.norm, block.qkv, block.proj_out
        self._weigh = weigh
        self._heads = num_heads or block.num_heads
        self._layout, self._power = layout, scale_power

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        flat, heads = x.reshape(b, c, h * w), self._heads
        qkv = self.qkv(self.norm(flat))
        if self._layout == "q k v head":
            qkv = qkv.reshape(b, 3, heads, -1, h * w).transpose(1, 2)
        elif self._layout == "head width q k v":
            qkv = qkv.reshape(b, heads, -1, 3, h * w).transpose(2, 3)
        q, k, v = qkv.reshape(b * heads, 3, -1, h * w).unbind(1)
        if self._layout == "head k q v":
            q, k = k, q
        scores = q.transpose(1, 2) @ k * q.shape[1] ** -self._power
        out = (self._weigh(scores) @ v.transpose(1, 2)).transpose(1, 2).reshape(b, c, h * w)
        return (flat + self.proj_out(out)).reshape(b, c, h, w)


def softmax1(scores: Tensor) -> Tensor:
    """Miller 2023: exp(x) / (1 + sum exp(x)), with the maximum subtracted from the 1, too."""
    highest = scores.amax(-1, keepdim=True).clamp(min=0)
    e = torch.exp(scores - highest)
    return e / (torch.exp(-highest) + e.sum(-1, keepdim=True))


class HalfNorm(nn.Module):
    """Group norm in half precision throughout.

    From |x| = 256 squares overflow: the group becomes the norm's bias, or NaN.
    """

    def __init__(self, norm: GroupNorm32, dtype: torch.dtype, *, two_pass: bool) -> None:
        """
        Args:
            two_pass: variance as E[(x - E x)^2], else as E[x^2] - (E x)^2.
        """
        super().__init__()
        self._norm, self._dtype, self._two_pass = norm, dtype, two_pass

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.to(self._dtype).reshape(len(x), NORM_GROUPS, -1)
        mean = self._mean(grouped)
        if self._two_pass:
            variance = self._mean((grouped - mean) * (grouped - mean))
        else:
            variance = self._mean(grouped * grouped) - mean * mean
        normal = ((grouped - mean) / torch.sqrt(variance + self._norm.eps)).reshape(x.shape)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        weight, bias = (p.reshape(shape) for p in (self._norm.weight, self._norm.bias))
        return normal.float() * weight + bias

    def _mean(self, values: Tensor) -> Tensor:
        return values.float().mean(-1, keepdim=True).to(self._dtype)


class OtherUpsample(nn.Module):
    """`Upsample` with another interpolation."""

    def __init__(self, block: Upsample, *, align_corners: bool) -> None:
        super().__init__()
        self.conv, self._align = block.conv, align_corners

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(
            F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=self._align)
        )


def variants(net: TaDiffNet) -> Iterator[Variant]:
    """Faults of a kind: the same in every place of the network."""
    for name, weigh in (
        ("plain softmax instead of softmax_one", lambda s: torch.softmax(s, -1)),
        ("softmax1 of Miller 2023 instead of softmax_one", softmax1),
    ):
        yield Variant(name, attention(weigh=weigh))
    own = net.config.num_heads
    for heads in (1, 2, 4, 8, 16):
        blocks = (m for m in net.modules() if isinstance(m, AttentionBlock))
        if heads != own and all(b.proj_out.in_channels % heads == 0 for b in blocks):
            yield Variant(f"{heads} attention heads instead of {own}", attention(num_heads=heads))
    for layout in ("q k v head", "head width q k v", "head k q v"):
        name = f"head layout {layout!r} instead of 'head q k v' in the attention"
        yield Variant(name, attention(layout=layout))
    yield Variant("attention scores that are not scaled", attention(scale_power=0.0))
    yield Variant("attention scores scaled by 1/sqrt(d) twice", attention(scale_power=1.0))
    yield from _norms()
    for name, module in (("GELU", nn.GELU()), ("tanh GELU", nn.GELU("tanh")), ("ReLU", nn.ReLU())):
        yield Variant(f"SiLU replaced by {name}", replaced(nn.SiLU, lambda _, m=module: m))
    for align in (False, True):
        name = f"bilinear instead of nearest upsampling (align_corners {align})"
        yield Variant(
            name, replaced(Upsample, lambda m, a=align: OtherUpsample(m, align_corners=a))
        )
    yield Variant("skip connections concatenated before the decoder's channels", skip_first)
    yield Variant("asymmetric padding of the stride-2 convolutions", asymmetric)
    yield Variant("flipped convolution kernels", _of_convs(flip_kernels))
    yield Variant("every bias of a convolution dropped", _of_convs(drop_bias))


def _norms() -> Iterator[Variant]:
    for eps in (1e-6, 1e-4, 1e-3, 1e-2):
        yield Variant(f"group norm eps {eps:g} instead of 1e-05", _norm_setting("eps", eps))
    for groups in (1, 8, 16):
        name = f"{groups} groups instead of {NORM_GROUPS} in the group norms"
        yield Variant(name, _norm_setting("num_groups", groups))
    for dtype, two_pass in itertools.product((torch.float16, torch.bfloat16), (True, False)):
        variance = "in two passes" if two_pass else "in one pass"
        yield Variant(
            f"group norm statistics in half precision ({name_of(dtype)}, {variance})",
            replaced(GroupNorm32, lambda m, d=dtype, t=two_pass: HalfNorm(m, d, two_pass=t)),
        )
    yield Variant("group norms without weight and bias", replaced(GroupNorm32, _plain_norm))


def attention(**changes: object) -> Edit:
    """Replaces every attention block."""
    return replaced(AttentionBlock, lambda m: OtherAttention(m, **changes))


def replaced(kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> Edit:
    """Replaces every module of a kind."""

    def edit(net: TaDiffNet) -> None:
        children = [(m, *child) for m in net.modules() for child in m.named_children()]
        for parent, name, child in children:
            if isinstance(child, kind):
                setattr(parent, name, make(child))

    return edit


def skip_first(net: TaDiffNet) -> None:
    """[skip, h] in place of [h, skip] before every block of the decoder."""
    before = net.residual_blocks()[: -len(net.output_blocks)][-1].channels_out
    for block in net.output_blocks:

        def swap(
            module: nn.Module, args: tuple[Tensor, ShiftQueue], own: int = before
        ) -> tuple[Tensor, ShiftQueue]:
            x, shifts = args
            return torch.cat([x[:, own:], x[:, :own]], dim=1), shifts

        block.register_forward_pre_hook(swap)
        before = next(m for m in block if isinstance(m, ResBlock)).channels_out


def asymmetric(net: TaDiffNet) -> None:
    """Padding below and to the right only, as TensorFlow's SAME has it."""
    for module in net.modules():
        if isinstance(module, Downsample):
            module.op.padding = (0, 0)
            module.op.register_forward_pre_hook(lambda _, args: F.pad(args[0], (0, 1, 0, 1)))


def drop_bias(module: nn.Module) -> None:
    """Sets a bias to 0."""
    nn.init.zeros_(module.bias)


def flip_kernels(module: nn.Module) -> None:
    """A convolution in the mathematician's sense."""
    module.weight.data = module.weight.data.flip(tuple(range(2, module.weight.ndim)))


def name_of(dtype: torch.dtype) -> str:
    """As in "float16"."""
    return str(dtype).removeprefix("torch.")


def _plain_norm(module: nn.Module) -> nn.Module:
    return nn.GroupNorm(NORM_GROUPS, module.num_channels, eps=module.eps, affine=False)


def _norm_setting(name: str, value: float) -> Edit:
    def edit(net: TaDiffNet) -> None:
        for module in net.modules():
            if isinstance(module, GroupNorm32):
                setattr(module, name, value)

    return edit


def _of_convs(change: Callable[[nn.Module], None]) -> Edit:
    def edit(net: TaDiffNet) -> None:
        for module in net.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                change(module)

    return edit
