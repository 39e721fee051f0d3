"""The network in two parts: what depends on the request alone, and what runs at every step."""

import torch
from torch import Tensor, nn

from tadiff_train.network import NUM_MODALITIES, NUM_SESSIONS, TaDiffNet

TARGET_SLOT = NUM_SESSIONS - 1
"""Sources fill slots 0 ... 2 in time order, the forecast is slot 3."""


class Conditioner(nn.Module):
    """(timesteps, days, treatments) -> one row of shifts for every solver step.

    A row holds the embedding projections of all residual blocks, one after the other.
    """

    def __init__(self, net: TaDiffNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, days: Tensor, treatments: Tensor) -> Tensor:
        """(n,) one-based timesteps, (1, 4) days, (1, 4) treatment codes -> (n, p) float32."""
        n = t.shape[0]
        target = torch.full((1,), TARGET_SLOT, dtype=torch.int64).expand(n)
        around, middle = self.net.embed(t, days.expand(n, -1), treatments.expand(n, -1), target)
        return torch.cat(self.net.project(around, middle), dim=1)


class Denoiser(nn.Module):
    """(clean sources, noisy target, one row of shifts) -> (noise estimate, mask logits)."""

    def __init__(self, net: TaDiffNet) -> None:
        super().__init__()
        self.net = net
        self.widths = [block.channels_out for block in net.residual_blocks()]

    def forward(self, sources: Tensor, x_t: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 9, h, w), (b, 3, h, w), (1, p) -> (b, 3, h, w) and (b, 4, h, w)."""
        x = torch.cat([sources, x_t], dim=1)
        y = self.net.unet(x, shifts.split(self.widths, dim=1))
        return y[:, -NUM_MODALITIES:], y[:, :NUM_SESSIONS]


def split(net: TaDiffNet) -> tuple[Conditioner, Denoiser]:
    """Both parts share the parameters of `net`; together they equal it to fp32 rounding."""
    return Conditioner(net).eval(), Denoiser(net).eval()
