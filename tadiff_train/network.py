"""The diffusion U-Net of TaDiff (Liu et al., IEEE TMI 2025), with its published names.

This is the only definition of the network. Every faster form (ONNX, TensorRT, fused kernels) is
derived from it by a function in `tadiff_export` and compared with it.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

NUM_SESSIONS = 4
NUM_MODALITIES = 3
NORM_GROUPS = 32


class NetworkConfig(BaseModel):
    """Shape of the network; a property of the weights, never of a command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_channels: int = 32
    """Channels at full resolution, and the width of every embedding (mc)."""
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    """Channels of each level as multiples of `model_channels`; each level halves the image."""
    num_res_blocks: int = 2
    """Residual blocks of an encoder level; a decoder level has one more."""
    num_heads: int = 4
    """Attention heads. Not recoverable from the weights: it changes no shape."""
    attention_strides: tuple[int, ...] = (4, 8)
    """Downsampling factors at which residual blocks are followed by attention."""

    @model_validator(mode="after")
    def _check(self) -> "NetworkConfig":
        if self.model_channels < 1 or self.model_channels % NORM_GROUPS:
            raise ValueError(
                f"model_channels must be a multiple of the {NORM_GROUPS} norm groups, "
                f"got {self.model_channels}"
            )
        if not self.channel_mult or min(self.channel_mult) < 1 or self.num_res_blocks < 1:
            raise ValueError(
                "channel_mult needs at least one level of at least 1, and num_res_blocks at least "
                f"1; got {self.channel_mult} and {self.num_res_blocks}"
            )
        for level, mult in enumerate(self.channel_mult):
            width = self.model_channels * mult
            attends = 2**level in self.attention_strides or level == len(self.channel_mult) - 1
            if self.num_heads < 1 or (attends and width % self.num_heads):
                raise ValueError(
                    f"num_heads={self.num_heads} does not divide "
                    f"the {width} channels of level {level}"
                )
        return self

    @property
    def stride(self) -> int:
        """Height and width of an image must be multiples of this."""
        return int(2 ** (len(self.channel_mult) - 1))


def sinusoid(values: Tensor, width: int) -> Tensor:
    """(n,) or (n, s) -> (..., width): [cos(v f_k), sin(v f_k)], f_k = 10000^(-k / half), in fp32.

    Vaswani et al. 2017, section 3.5, cosines first. In half precision day 1061 is not day 1061.
    """
    half = width // 2
    k = torch.arange(half, dtype=torch.float32, device=values.device)
    angle = values.float()[..., None] * torch.exp(-math.log(10000) / half * k)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precision becomes fp32; float64, in which the network is checked, stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def softmax_one(scores: Tensor) -> Tensor:
    """softmax(scores) S / (1 + S), S = sum exp(scores - max): what the published weights expect.

    Not "softmax1" (Miller 2023), which adds 1 before the maximum is subtracted and so depends on
    the scores' offset. Here a row sums to between 1/2 and l / (l + 1) whatever the offset.
    """
    e = torch.exp(scores - scores.amax(-1, keepdim=True))
    return e / (1 + e.sum(-1, keepdim=True))


def attend(q: Tensor, k: Tensor, v: Tensor, query_chunk: int | None = None) -> Tensor:
    """(n, d, l) queries, keys and values -> (n, d, l), weighted by `softmax_one` in fp32.

    softmax_one(x) = p / (1 + max p) with p = softmax(x), because max p = 1 / S. So the library's
    softmax is used and the row factor is applied to the d-wide result, not to the l-wide scores.

    Args:
        query_chunk: rows of the score matrix held at a time; None holds all l x l of them. With
            a fixed chunk the memory grows as l, and the result is the same: rows are independent.
    """
    scale = q.shape[1] ** -0.25
    q, k = (q * scale).transpose(1, 2), k * scale
    vt = v.transpose(1, 2)
    out = []
    for rows in [q] if query_chunk is None else q.split(query_chunk, dim=1):
        p = torch.softmax(at_least_fp32(rows @ k), dim=-1)
        out.append((p.to(v.dtype) @ vt) / (1 + p.amax(-1, keepdim=True)).to(v.dtype))
    return (out[0] if query_chunk is None else torch.cat(out, dim=1)).transpose(1, 2)


class GroupNorm32(nn.GroupNorm):
    """Group norm of 32 groups with statistics in fp32, whatever the dtype of the activation."""

    def __init__(self, channels: int) -> None:
        super().__init__(NORM_GROUPS, channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(at_least_fp32(x)).to(x.dtype)


class FourierFeatures(nn.Module):
    """(..., 1) -> (..., mc): [cos f, sin f], f = 2 pi z W^T with trained frequencies W."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width // 2, 1) * 0.2)

    def forward(self, z: Tensor) -> Tensor:
        f = (2 * math.pi * z) @ self.weight.float().T
        return torch.cat([f.cos(), f.sin()], dim=-1)


class ResBlock(nn.Module):
    """y = skip(x) + out(in(x) + shift): conditioning is added to every channel, not scaled."""

    def __init__(self, channels_in: int, channels_out: int, emb_width: int) -> None:
        super().__init__()
        self.channels_out = channels_out
        self.in_layers = nn.Sequential(
            GroupNorm32(channels_in), nn.SiLU(), nn.Conv2d(channels_in, channels_out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_width, channels_out))
        self.out_layers = nn.Sequential(
            GroupNorm32(channels_out),
            nn.SiLU(),
            nn.Dropout(0.0),
            zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1)),
        )
        same = channels_in == channels_out
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """`shift` (b or 1, channels_out): this block's projection of the embedding."""
        h = self.in_layers(x) + shift.to(x.dtype)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class AttentionBlock(nn.Module):
    """x + proj(attention(qkv(norm(x)))) over all positions, with the published head layout.

    Channels of `qkv` are ordered head by head, and inside a head q, k, v.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_chunk: int | None = None
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        flat = x.reshape(b, c, h * w)
        heads = self.qkv(self.norm(flat)).reshape(b * self.num_heads, -1, h * w)
        q, k, v = heads.chunk(3, dim=1)
        out = attend(q, k, v, self.query_chunk).reshape(b, c, h * w)
        return (flat + self.proj_out(out)).reshape(b, c, h, w)


class Downsample(nn.Module):
    """Learned halving: a 3 x 3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Block(nn.Sequential):
    """Layers run in order; residual blocks take the next shift from `shifts`."""

    def forward(self, x: Tensor, shifts: "ShiftQueue") -> Tensor:
        for layer in self:
            x = layer(x, shifts.next()) if isinstance(layer, ResBlock) else layer(x)
        return x


class ShiftQueue:
    """Hands out the shifts of the residual blocks in the order in which they run."""

    def __init__(self, shifts: Sequence[Tensor]) -> None:
        self._left = iter(shifts)

    def next(self) -> Tensor:
        """The shift of the next residual block."""
        return next(self._left)


class TaDiffNet(nn.Module):
    """Predicts the noise in the target session and the tumour of all four sessions.

    State-dict keys and shapes are the published ones. `forward` equals
    `unet(x, project(*embed(t, days, treatments, target)))`; only the first of these sees time, day
    and treatment, so it can run once for all steps of a request.

    Args:
        config: shape of the network.
        query_chunk: see `attend`; the weights do not depend on it.
    """

    def __init__(self, config: NetworkConfig, *, query_chunk: int | None = None) -> None:
        super().__init__()
        self.config = config
        mc = config.model_channels
        self.time_embed = mlp(mc)
        self.days_embed = mlp(mc)
        self.treats_embed = nn.Sequential(FourierFeatures(mc), *mlp(mc))
        self.input_blocks, skips = self._encoder()
        width = mc * config.channel_mult[-1]
        self.middle_block = Block(
            ResBlock(width, width, mc),
            AttentionBlock(width, config.num_heads),
            ResBlock(width, width, mc),
        )
        self.output_blocks = self._decoder(skips)
        first = mc * config.channel_mult[0]
        out_channels = NUM_SESSIONS + NUM_MODALITIES
        self.out = nn.Sequential(
            GroupNorm32(first), nn.SiLU(), zeroed(nn.Conv2d(first, out_channels, 3, padding=1))
        )
        for module in self.modules():
            if isinstance(module, AttentionBlock):
                module.query_chunk = query_chunk

    def _layers(self, level: int, channels_in: int) -> list[nn.Module]:
        """A residual block to the width of `level`, and attention where that level has it."""
        config = self.config
        width = config.model_channels * config.channel_mult[level]
        layers: list[nn.Module] = [ResBlock(channels_in, width, 4 * config.model_channels)]
        if 2**level in config.attention_strides:
            layers.append(AttentionBlock(width, config.num_heads))
        return layers

    def _encoder(self) -> tuple[nn.ModuleList, list[int]]:
        """Input blocks, and the channels that each of them leaves for the decoder."""
        config = self.config
        width = config.model_channels * config.channel_mult[0]
        blocks = [Block(nn.Conv2d(NUM_SESSIONS * NUM_MODALITIES, width, 3, padding=1))]
        skips = [width]
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                blocks.append(Block(*self._layers(level, width)))
                width = config.model_channels * mult
                skips.append(width)
            if level < len(config.channel_mult) - 1:
                blocks.append(Block(Downsample(width)))
                skips.append(width)
        return nn.ModuleList(blocks), skips

    def _decoder(self, skips: list[int]) -> nn.ModuleList:
        config = self.config
        width = config.model_channels * config.channel_mult[-1]
        blocks = []
        for level in reversed(range(len(config.channel_mult))):
            for i in range(config.num_res_blocks + 1):
                layers = self._layers(level, width + skips.pop())
                width = config.model_channels * config.channel_mult[level]
                if level and i == config.num_res_blocks:
                    layers.append(Upsample(width))
                blocks.append(Block(*layers))
        return nn.ModuleList(blocks)

    def residual_blocks(self) -> list[ResBlock]:
        """All residual blocks in the order in which they run."""
        parts = [*self.input_blocks, self.middle_block, *self.output_blocks]
        return [layer for part in parts for layer in part if isinstance(layer, ResBlock)]

    def embed(
        self, t: Tensor, days: Tensor, treatments: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Embeddings that condition the residual blocks, in fp32.

        Args:
            t: (b,) timesteps, one-based and possibly fractional, 1 ... T.
            days: (b, 4) days since the first session, one a slot.
            treatments: (b, 4) treatment codes.
            target: (b,) slot that is predicted, 0 ... 3, or negative from the end.

        Returns:
            (b, 4 mc) for encoder and decoder: differences of the session embeddings to the
            target's, slot by slot, with `middle` in the target's place; and (b, mc) `middle`, the
            target's session embedding plus the time embedding, for the middle block.
        """
        mc = self.config.model_channels
        with without_autocast(t.device):
            code = (treatments.float()[..., None] + 1) * 10
            sessions = self.treats_embed(code) + self.days_embed(sinusoid(days, mc))
            slots = torch.arange(NUM_SESSIONS, device=t.device)
            is_target = (slots == (target % NUM_SESSIONS)[:, None])[..., None]
            own = (sessions * is_target).sum(1)
            middle = self.time_embed(sinusoid(t, mc)) + own
            around = torch.where(is_target, middle[:, None], sessions - own[:, None])
            return around.flatten(1), middle

    def project(self, around: Tensor, middle: Tensor) -> list[Tensor]:
        """The shift (b, channels) of every residual block, in the order in which they run."""
        inside = {id(layer) for layer in self.middle_block}
        with without_autocast(around.device):
            return [
                block.emb_layers(middle if id(block) in inside else around)
                for block in self.residual_blocks()
            ]

    def unet(self, x: Tensor, shifts: Sequence[Tensor]) -> Tensor:
        """(b, 12, h, w) and shifts (b or 1, channels) -> (b, 7, h, w)."""
        queue = ShiftQueue(shifts)
        skips = []
        for block in self.input_blocks:
            x = block(x, queue)
            skips.append(x)
        x = self.middle_block(x, queue)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), queue)
        return self.out(x)

    def forward(
        self, x: Tensor, t: Tensor, days: Tensor, treatments: Tensor, target: Tensor
    ) -> Tensor:
        """Mask logits of slots 0 ... 3, then the noise in the target's T1, T1c and FLAIR.

        Args:
            x: (b, 12, h, w) images in [0, 1], session-major (channel 3 s + m); the target slot
                holds the noisy image. h and w are multiples of `config.stride`.
            t, days, treatments, target: see `embed`; `t` may have length 1.

        Returns:
            (b, 7, h, w): four mask logits, three noise channels.
        """
        return self.unet(x, self.project(*self.embed(t.expand(len(x)), days, treatments, target)))


def mlp(width: int) -> nn.Sequential:
    """Linear, SiLU, Linear through twice the width: every embedding network."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))


def zeroed(module: nn.Module) -> nn.Module:
    """`module` with all parameters zero, so that a new block starts as the identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Keeps the embeddings in fp32 inside a caller's autocast; nothing otherwise (for export)."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
