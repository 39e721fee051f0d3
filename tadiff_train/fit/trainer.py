"""The parts of a run that learn, one optimiser step, and their state as tensors."""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from tadiff_rt.errors import NumericsError, UsageError
from tadiff_rt.schedule import NoiseSchedule
from tadiff_train.data.windows import Window
from tadiff_train.diffusion import LOSSES, loss_terms
from tadiff_train.fit.average import warmed_up_average
from tadiff_train.fit.config import FitConfig
from tadiff_train.fit.processes import Processes
from tadiff_train.network import NetworkConfig, TaDiffNet
from tadiff_train.start import pass_noise_through

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def learning_rate_at(step: int, config: FitConfig) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine to zero."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    left = max(config.steps - config.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min((step - config.warmup_steps) / left, 1.0)))


class Trainer:
    """Network, moving average, optimiser and loss scale on one device."""

    def __init__(
        self,
        network: NetworkConfig,
        config: FitConfig,
        schedule: NoiseSchedule,
        processes: Processes,
    ) -> None:
        """Draws the initial weights from `config.seed`.

        Raises:
            UsageError: TD3082, fp16 is asked for without a CUDA device.
        """
        device = processes.device
        if config.precision == "fp16" and device.type != "cuda":
            what = f"precision fp16 needs a CUDA device, and this is {device.type}"
            raise UsageError("TD3082", what, fix="pass --precision bf16 or fp32")
        torch.manual_seed(config.seed)
        net = TaDiffNet(network).to(memory_format=torch.channels_last)  # what convolutions like
        if config.start == "pass_through":
            pass_noise_through(net)
        self.net = net.to(device)
        self.config = config
        self.schedule = schedule
        self.processes = processes
        self.ema = AveragedModel(self.net, multi_avg_fn=warmed_up_average(config.ema_decay))
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True if device.type == "cuda" else None,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        ids = [device] if device.type == "cuda" else None
        self.model: Any = DistributedDataParallel(self.net, ids) if processes.count > 1 else net

    @property
    def averaged(self) -> TaDiffNet:
        """The network to save: the moving average."""
        net = self.ema.module
        assert isinstance(net, TaDiffNet)
        return net

    def autocast(self) -> torch.autocast:
        """The precision of the run."""
        return torch.autocast(
            self.processes.device.type,
            DTYPES[self.config.precision],
            enabled=self.config.precision != "fp32",
        )

    def step(self, number: int, windows: Iterator[Window]) -> tuple[dict[str, float], float]:
        """Optimiser step `number`, from 1, on the next `accumulate` batches.

        Returns:
            The loss terms, means over the whole batch and all processes, and the norm of the
            gradient before it was clipped.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * learning_rate_at(number - 1, self.config)
        self.optimiser.zero_grad(set_to_none=True)
        passes = self.config.accumulate
        total: dict[str, Tensor] = {}
        for k, window in enumerate(islice(windows, passes), start=1):
            with self._gradients_stay_here(k < passes):
                terms = self._terms(window.to(self.processes.device))
                self.scaler.scale(terms["loss"] / passes).backward()
            for name, value in terms.items():
                total[name] = total.get(name, 0) + value.detach() / passes
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.ema.update_parameters(self.net)
        # One copy from the device for all numbers: each would wait for it.
        values = self.processes.mean(torch.stack([*total.values(), norm.detach()])).tolist()
        return dict(zip(total, values[:-1], strict=True)), values[-1]

    def require_finite(self, norm: float, number: int) -> None:
        """Refuses weights that a step has spoiled, before they replace the last save.

        Raises:
            NumericsError: TD6003, the gradient was not finite, and no loss scale skipped the step.
        """
        if not (math.isfinite(norm) or self.scaler.is_enabled()):
            raise NumericsError(
                "TD6003",
                f"the gradient of the loss is {norm} at step {number}",
                fix="lower --learning-rate, pass --precision fp32, or look for broken images with "
                "the training data",
            )

    def _terms(self, window: Window) -> dict[str, Tensor]:
        with self.autocast():
            return loss_terms(
                self.model,
                window.batch,
                window.t,
                window.noise,
                self.schedule,
                LOSSES[self.config.loss],
            )

    def _gradients_stay_here(self, stay: bool) -> AbstractContextManager[None]:
        """Until the last pass: processes exchange the sum of gradients once."""
        if stay and self.processes.count > 1:
            context: AbstractContextManager[None] = self.model.no_sync()
            return context
        return nullcontext()

    def tensors(self) -> dict[str, Tensor]:
        """Weights, their average, and the optimiser's moments."""
        moments = self.optimiser.state_dict()["state"]
        return {
            **{f"net.{name}": value for name, value in self.net.state_dict().items()},
            **{f"ema.{name}": value for name, value in self.ema.state_dict().items()},
            **{
                f"optimiser.{i}.{name}": value
                for i, values in moments.items()
                for name, value in values.items()
            },
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what `tensors` gave."""
        self.net.load_state_dict(_below(tensors, "net."))
        self.ema.load_state_dict(_below(tensors, "ema."))
        state = self.optimiser.state_dict()
        for i, parameter in enumerate(self.net.parameters()):
            values = _below(tensors, f"optimiser.{i}.")
            # In the parameter's own layout: another one is summed in another order.
            state["state"][i] = {
                name: torch.empty_like(parameter).copy_(value) if value.ndim else value
                for name, value in values.items()
            }
        self.optimiser.load_state_dict(state)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
