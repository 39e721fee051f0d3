"""What a form of the network does to its outputs and to a small ensemble of the same noise."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from benchmarks.device import Bench
from benchmarks.floor import Row
from tadiff_export.split import TARGET_SLOT, split
from tadiff_rt.canary import canary_inputs
from tadiff_rt.case import TREATMENTS
from tadiff_rt.certify.network import Drawn, distance
from tadiff_rt.ensemble import SliceStatistics
from tadiff_rt.noise import INITIAL, normal
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import make_plan, solve
from tadiff_train.network import TaDiffNet

SAMPLES, STEPS = 5, 20
X0_RANGE = (0.0, 1.0)

Denoise = Callable[..., tuple[Tensor, Tensor]]
"""(b, 9, h, w), (b, 3, h, w), (1, p), fp32 -> noise estimate and mask logits."""


class Inputs:
    """A textured head, noise of every row, and shifts of every step."""

    def __init__(self, bench: Bench, net: TaDiffNet, batch: int, size: int) -> None:
        canary = canary_inputs(size, tuple(map(float, TREATMENTS.values())))
        self.samples, steps = (2, 3) if bench.quick else (SAMPLES, STEPS)
        self.plan = make_plan(NoiseSchedule.linear(1000), num_steps=steps)
        t = torch.tensor(self.plan.t).float()
        days, treatments = torch.tensor([canary.days]), torch.tensor([canary.treatments])
        with torch.no_grad():
            shifts = split(net)[0](t, days, treatments)
        rows = -(-self.samples // batch) * batch
        noise = [
            [normal(seed, k, 0, INITIAL, (3, size, size)) for k in range(rows)] for seed in (0, 1)
        ]
        self.head = canary.sources[:, :3].max(axis=1) > 0
        self.shifts = shifts.to(bench.device)
        self.sources = torch.from_numpy(canary.sources).to(bench.device).repeat(batch, 1, 1, 1)
        self.noise, self.other = torch.from_numpy(np.array(noise)).to(bench.device)
        self.batch = batch

    def held(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of one evaluation, in the middle of the plan."""
        return self.sources, self.noise[: self.batch], self.shifts[len(self.shifts) // 2][None]


def ensemble(denoise: Denoise, inputs: Inputs, noise: Tensor) -> Drawn:
    """The first samples of one slice, statistics in float64."""
    size = noise.shape[-1]
    statistics = SliceStatistics((3, size, size), (size, size))
    for first in range(0, inputs.samples, inputs.batch):
        x = noise[first : first + inputs.batch]

        def step(x: Tensor, t: float, i: int) -> tuple[Tensor, Tensor]:
            eps, logits = denoise(inputs.sources, x, inputs.shifts[i][None])
            return eps.float(), logits.float()

        images, logits = solve(step, x, inputs.plan, x0_range=X0_RANGE)
        assert logits is not None
        for k in range(min(inputs.batch, inputs.samples - first)):
            statistics.add(images[k].cpu().numpy(), logits[k, TARGET_SLOT].cpu().numpy())
    assert statistics.std is not None
    return Drawn(
        statistics.mean[:, None].astype(np.float32),
        statistics.std[:, None].astype(np.float32),
        statistics.tumour_probability[None].astype(np.float32),
        np.array(statistics.areas),
        inputs.head,
    )


def quality(denoise: Denoise, baseline: Denoise, inputs: Inputs, expected: Drawn) -> Row:
    """Errors of the noise estimate and distances of the ensemble, both from the first rung's."""
    eps, right = (f(*inputs.held())[0].double() for f in (denoise, baseline))
    return {
        "eps_max_error": float(f"{float((eps - right).abs().max()):.3g}"),
        "eps_rms_error": float(f"{float((eps - right).square().mean().sqrt()):.3g}"),
        **apart(ensemble(denoise, inputs, inputs.noise), expected),
    }


def apart(one: Drawn, other: Drawn) -> Row:
    """Columns of a distance."""
    fields = asdict(distance(one, other))
    return {f"ensemble_{name}": float(f"{value:.5g}") for name, value in fields.items()}
