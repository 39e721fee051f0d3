"""The denoiser with fused operators: what the torch backend runs, derived from the network.

The arithmetic is the network's; what changes is where numbers are rounded and how often they pass
through memory. Activations are channels_last (NHWC in memory, what tensor cores read) in one type.
In fp32, whatever that type is: statistics of norms, attention scores, softmax and its row factor,
and shifts. The outputs are of the last convolution, cast to fp32: in half precision they are
rounded to it unless `ends_fp32`.

    residual block       norm + SiLU of both halves of a skip concatenation, read where they lie;
                         bias of the first convolution, shift, norm and SiLU in one operator;
                         1 x 1 skip convolution as a matrix product a half, which adds the biases
    attention block      exact `softmax_one` from the published head layout, no scores in memory
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tadiff_kernels.operators  # noqa: F401  registers torch.ops.tadiff
from tadiff_kernels.conditioning import pack
from tadiff_train.network import (
    NORM_GROUPS,
    NUM_MODALITIES,
    NUM_SESSIONS,
    AttentionBlock,
    Block,
    Downsample,
    GroupNorm32,
    ResBlock,
    TaDiffNet,
    Upsample,
)

CHANNEL_MULTIPLE = 8
"""Channels of half-precision convolutions are padded to it: 16 bytes, a load of a tensor core."""


def fuse(net: TaDiffNet, dtype: torch.dtype, *, ends_fp32: bool = False) -> "FusedDenoiser":
    """The denoiser of `net` with fused operators; `net` is not modified.

    Args:
        dtype: of activations and of the weights of convolutions: float32, float16 or bfloat16.
        ends_fp32: the first and the last convolution stay in fp32. Rounding the inputs costs at
            every step, and rounding the outputs adds to the noise estimate directly.
    """
    return FusedDenoiser(net, dtype, ends_fp32=ends_fp32).eval()


def fuse_conditioner(net: TaDiffNet) -> "FusedConditioner":
    """All conditioning of a request in one operator, in fp32."""
    return FusedConditioner(net).eval()


class FusedConditioner(nn.Module):
    """(timesteps, days, treatments) -> shifts, like `split.Conditioner`."""

    def __init__(self, net: TaDiffNet) -> None:
        super().__init__()
        fourier, *treatment = net.treats_embed
        linear = [
            [net.time_embed[0], net.time_embed[-1]],
            [net.days_embed[0], net.days_embed[-1]],
            [treatment[0], treatment[-1]],
        ]
        packed = pack(
            fourier.weight,
            [[p for layer in mlp for p in (layer.weight, layer.bias)] for mlp in linear],
            [(b.emb_layers[-1].weight, b.emb_layers[-1].bias) for b in net.residual_blocks()],
        )
        self.weights = nn.ParameterList([_kept(w) for w in packed])

    def forward(self, t: Tensor, days: Tensor, treatments: Tensor) -> Tensor:
        """(n,) one-based timesteps, (1, 4) days, (1, 4) treatment codes -> (n, p) float32."""
        return torch.ops.tadiff.conditioning(t, days, treatments, list(self.weights))


class FusedDenoiser(nn.Module):
    """(sources, x_t, shifts) -> (noise estimate, mask logits), like `split.Denoiser`."""

    def __init__(self, net: TaDiffNet, dtype: torch.dtype, *, ends_fp32: bool) -> None:
        super().__init__()
        self.dtype = dtype
        self.widths = [block.channels_out for block in net.residual_blocks()]
        biases = [block.in_layers[-1].bias.detach() for block in net.residual_blocks()]
        self.biases = _kept(torch.cat(biases)[None])
        ends = torch.float32 if ends_fp32 else dtype
        first, *encoder = net.input_blocks
        self.first = FusedConv(first[0], ends)
        width = first[0].out_channels
        skips = [width]
        self.encoder = nn.ModuleList()
        for block in encoder:
            self.encoder.append(FusedBlock(block, dtype, width))
            width = self.encoder[-1].channels_out
            skips.append(width)
        self.middle = FusedBlock(net.middle_block, dtype, width)
        self.decoder = nn.ModuleList()
        for block in net.output_blocks:
            self.decoder.append(FusedBlock(block, dtype, width))
            width = self.decoder[-1].channels_out
        self.norm = FusedNorm(net.out[0])
        self.last = FusedConv(net.out[-1], ends)

    def forward(self, sources: Tensor, x_t: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 9, h, w), (b, 3, h, w), (1, p) -> (b, 3, h, w) and (b, 4, h, w); all fp32."""
        queue = iter((shifts + self.biases).split(self.widths, dim=1))
        x = self.first(torch.cat([sources, x_t], dim=1)).to(self.dtype)
        skips = [x]
        for block in self.encoder:
            x = block(x, None, queue)
            skips.append(x)
        x = self.middle(x, None, queue)
        for block in self.decoder:
            x = block(x, skips.pop(), queue)
        y = self.last(self.norm(x)).float()
        masks, eps = y[:, :NUM_SESSIONS], y[:, NUM_SESSIONS : NUM_SESSIONS + NUM_MODALITIES]
        return eps, masks


class FusedBlock(nn.Module):
    """An input, middle or output block of the network."""

    def __init__(self, block: Block, dtype: torch.dtype, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for layer in block:
            self.layers.append(_fused(layer, dtype, channels))
            channels = getattr(layer, "channels_out", channels)
        self.channels_out = channels

    def forward(self, x: Tensor, skip: Tensor | None, shifts: Iterator[Tensor]) -> Tensor:
        """Residual blocks take the next of `shifts`; the first layer also takes `skip`."""
        for layer in self.layers:
            if isinstance(layer, FusedResBlock):
                x, skip = layer(x, skip, next(shifts)), None
            else:
                x = layer(x)
        return x


def _fused(layer: nn.Module, dtype: torch.dtype, channels: int) -> nn.Module:
    """The fused form of a layer whose first input has so many channels."""
    match layer:
        case ResBlock():
            return FusedResBlock(layer, dtype, channels)
        case AttentionBlock():
            return FusedAttention(layer, dtype)
        case Downsample():
            return FusedConv(layer.op, dtype)
        case Upsample():
            return FusedUpsample(layer, dtype)
    raise TypeError(f"no fused form of {type(layer).__name__}")


class FusedNorm(nn.Module):
    """Group norm, of a skip concatenation or a shifted activation, and SiLU."""

    def __init__(self, norm: GroupNorm32) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = _kept(norm.weight), _kept(norm.bias), norm.eps

    def forward(
        self,
        x: Tensor,
        skip: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        silu: bool = True,
    ) -> Tensor:
        """act(norm(cat([x, skip], 1) + shift)); shift (1, channels) fp32."""
        return torch.ops.tadiff.group_norm_silu(
            x, skip, shift, self.weight, self.bias, NORM_GROUPS, self.eps, silu
        )


class FusedConv(nn.Module):
    """A convolution in one type, in half precision with padded channels at both ends."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, *, bias: bool = True) -> None:
        super().__init__()
        self.stride, self.padding = conv.stride, conv.padding
        multiple = 1 if dtype == torch.float32 else CHANNEL_MULTIPLE
        self.missing = -conv.in_channels % multiple
        outputs = -conv.out_channels % multiple
        weight = F.pad(conv.weight.detach(), (0, 0, 0, 0, 0, self.missing, 0, outputs))
        self.weight = _kept(weight.to(dtype).contiguous(memory_format=torch.channels_last))
        self.bias = _kept(F.pad(conv.bias.detach(), (0, outputs)).to(dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Any type and layout -> the type of the weights, channels_last."""
        x = x.to(self.weight.dtype)
        if self.missing:
            x = F.pad(x, (0, 0, 0, 0, 0, self.missing))
        x = x.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class FusedUpsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, layer: Upsample, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv = FusedConv(layer.conv, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class FusedResBlock(nn.Module):
    """A residual block on both halves of a concatenation, whose shift holds the first bias."""

    def __init__(self, block: ResBlock, dtype: torch.dtype, channels: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = FusedNorm(block.in_layers[0]), FusedNorm(block.out_layers[0])
        self.conv_in = FusedConv(block.in_layers[-1], dtype, bias=False)
        last, skip = block.out_layers[-1], block.skip_connection
        self.conv_out = FusedConv(last, dtype, bias=False)
        bias = last.bias.detach()
        self.weight_x: Tensor | None = None
        self.weight_skip: Tensor | None = None
        if isinstance(skip, nn.Conv2d):
            bias = bias + skip.bias.detach()
            weight = skip.weight.detach()[:, :, 0, 0].to(dtype)
            self.weight_x = _kept(weight[:, :channels].contiguous())
            if weight.shape[1] > channels:
                self.weight_skip = _kept(weight[:, channels:].t().contiguous())
        self.bias = _kept(bias.to(dtype))

    def forward(self, x: Tensor, skip: Tensor | None, shift: Tensor) -> Tensor:
        h = self.conv_in(self.norm_in(x, skip))
        h = self.conv_out(self.norm_out(h, shift=shift))
        if self.weight_x is None:
            return x + (h + self.bias[:, None, None])
        around = F.linear(_rows(x), self.weight_x, self.bias)
        if skip is not None:
            around = torch.addmm(around, _rows(skip), self.weight_skip)
        return _image(around, h) + h


class FusedAttention(nn.Module):
    """x + proj(attention(qkv(norm(x))))."""

    def __init__(self, block: AttentionBlock, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.num_heads = FusedNorm(block.norm), block.num_heads
        self.qkv, self.qkv_bias = _matrix(block.qkv, dtype)
        self.proj, self.proj_bias = _matrix(block.proj_out, dtype)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = F.linear(_rows(self.norm(x, silu=False)), self.qkv, self.qkv_bias)
        out = torch.ops.tadiff.attention(qkv.reshape(b, h * w, 3 * c), self.num_heads)
        return x + _image(F.linear(out.reshape(b * h * w, c), self.proj, self.proj_bias), x)


def _kept(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x.detach().clone(memory_format=torch.preserve_format), False)


def _matrix(conv: nn.Conv1d, dtype: torch.dtype) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias of a 1 x 1 convolution."""
    return _kept(conv.weight.detach()[:, :, 0].to(dtype)), _kept(conv.bias.detach().to(dtype))


def _rows(x: Tensor) -> Tensor:
    """(b, c, h, w) channels_last -> (b h w, c), a view."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _image(rows: Tensor, like: Tensor) -> Tensor:
    """(b h w, c) -> (b, c, h, w) channels_last, a view; batch, height and width of `like`."""
    b, _, h, w = like.shape
    return rows.reshape(b, h, w, -1).permute(0, 3, 1, 2)
