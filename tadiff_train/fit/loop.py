"""Training loop: AdamW, warm-up and cosine decay, clipping, moving average of the weights."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from tadiff_rt.atomic import output_error
from tadiff_rt.card import ModelCard
from tadiff_rt.errors import NumericsError, OutputError, UsageError
from tadiff_train.checkpoint import SIDECAR, save_checkpoint
from tadiff_train.data import CachedCase, TargetSlots, batches
from tadiff_train.diffusion import LOSSES, loss_terms
from tadiff_train.network import NetworkConfig, TaDiffNet


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train. Defaults follow the published settings where those are known."""

    steps: int = 5000
    batch_size: int = 8
    learning_rate: float = 2.5e-4
    warmup_steps: int = 100
    weight_decay: float = 3e-5
    clip_norm: float = 1.5
    ema_decay: float = 0.999
    loss: str = "published"
    """A key of `tadiff_train.diffusion.LOSSES`."""
    target_slots: TargetSlots | str = "published"
    seed: int = 0
    save_every: int = 500

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("loss", self.loss, tuple(LOSSES)),
            ("target_slots", self.target_slots, get_args(TargetSlots)),
        ):
            if value not in allowed:
                raise UsageError(
                    "TD3034", f"{name} must be one of {', '.join(allowed)}, got {value!r}"
                )


def require_new_run(out: Path) -> None:
    """Makes the folder, or refuses one that holds a run: hours of training are not overwritten.

    Raises:
        OutputError: TD8001 there is a checkpoint, TD80xx the folder cannot be made.
    """
    if (out / SIDECAR).exists():
        raise OutputError(
            "TD8001", "the folder holds a run already", where=str(out), fix="choose another folder"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(error, out) from error


def learning_rate_at(step: int, config: FitConfig) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine to zero."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    left = max(config.steps - config.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min((step - config.warmup_steps) / left, 1.0)))


Average = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]


def warmed_up_average(decay: float) -> Average:
    """Moving average of weights whose decay at update n is min(decay, (1 + n) / (10 + n)).

    With the full decay from the start, the initial weights keep a share of decay^n: after 3,000
    steps of 0.999 still 5 %, and since the last layer starts at zero, every noise estimate is 5 %
    too small, which a sampler cannot mend.
    """

    @torch.no_grad()
    def update(average: Sequence[Tensor], weights: Sequence[Tensor], number: Tensor | int) -> None:
        n = float(number)
        keep = min(decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(average), list(weights), 1 - keep)

    return update


Report = Callable[[int, dict[str, float]], None]
"""Called after every step with its number, from 1, and smoothed loss terms."""
LOSS_PREFIX = "smooth_"
"""Before the loss terms in a sidecar: "loss" itself is the preset's name there."""


def fit(
    cases: Sequence[CachedCase],
    network: NetworkConfig,
    card: ModelCard,
    config: FitConfig,
    out: Path,
    report: Report | None = None,
) -> TaDiffNet:
    """Trains a network on the CPU and saves the moving average of its weights.

    The whole run is a function of `config.seed` on one machine with one number of threads.

    Returns:
        The network that was saved last.

    Raises:
        NumericsError: the loss is not finite.
    """
    torch.manual_seed(config.seed)
    schedule = card.schedule.build()
    net = TaDiffNet(network).to(memory_format=torch.channels_last)  # what CPU convolutions like
    ema = AveragedModel(net, multi_avg_fn=warmed_up_average(config.ema_decay))
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: learning_rate_at(s, config))
    rng = torch.Generator().manual_seed(config.seed + 1)
    stream = batches(cases, config.batch_size, config.seed, config.target_slots)
    smooth: dict[str, float] = {}
    start = time.monotonic()
    for step in range(1, config.steps + 1):
        batch = next(stream)
        t = torch.randint(1, schedule.num_train_timesteps + 1, (config.batch_size,), generator=rng)
        b, _, m, h, w = batch.images.shape
        noise = torch.randn(b, m, h, w, generator=rng)
        terms = loss_terms(net, batch, t, noise, schedule, LOSSES[config.loss])
        optimiser.zero_grad(set_to_none=True)
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm)
        optimiser.step()
        rate.step()
        ema.update_parameters(net)
        _smooth(smooth, terms, step)
        if report is not None:
            report(step, smooth)
        if step % config.save_every == 0 or step == config.steps:
            training = {**asdict(config), "step": step, "seconds": time.monotonic() - start}
            training |= {LOSS_PREFIX + name: value for name, value in smooth.items()}
            save_checkpoint(out, ema.module, card, training)
    return ema.module


def _smooth(smooth: dict[str, float], terms: dict[str, Tensor], step: int) -> None:
    """Moving averages of the loss terms over about a hundred steps, in place."""
    weight = max(1 / step, 0.01)
    for name, value in terms.items():
        number = float(value.detach())
        if not math.isfinite(number):
            raise NumericsError(
                "TD6003",
                f"the {name} term of the loss is {number} at step {step}",
                fix="lower --learning-rate, or look for broken images with the training data",
            )
        smooth[name] = smooth.get(name, number) * (1 - weight) + number * weight
