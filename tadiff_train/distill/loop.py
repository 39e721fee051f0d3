"""Training of a student on the runs of its teacher."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from tadiff_rt.card import ModelCard
from tadiff_rt.errors import NumericsError
from tadiff_train.data import CachedCase
from tadiff_train.data.windows import Window, Windows, collate
from tadiff_train.distill.config import DistillConfig
from tadiff_train.distill.trajectory import (
    Course,
    Trajectory,
    course,
    denoiser,
    implied_x0,
    start,
    trajectory,
)
from tadiff_train.fit import FitConfig, learning_rate_at, warmed_up_average
from tadiff_train.network import TaDiffNet

Report = Callable[[int, dict[str, float]], None]
"""Called after every step with its number, from 1, and its loss terms."""


def distill(
    teacher: TaDiffNet,
    card: ModelCard,
    cases: Sequence[CachedCase],
    config: DistillConfig,
    report: Report | None = None,
) -> TaDiffNet:
    """A network that takes `config.evaluations` to where the teacher goes in its many.

    Patients give sources, days and treatments; their targets are not looked at, so that the
    student learns from the teacher alone and can be no better than it.

    Args:
        teacher: stays as it is; the student is on the same device.
        card: of the teacher.

    Returns:
        The moving average of the student, in evaluation mode.

    Raises:
        NumericsError: TD6003, the loss is not finite.
        UsageError: TD3032 no case can be used.
    """
    device = next(teacher.parameters()).device
    student = copy.deepcopy(teacher).train()
    average = AveragedModel(student, multi_avg_fn=warmed_up_average(config.ema_decay))
    optimiser = torch.optim.AdamW(
        student.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    windows = Windows(cases, seed=config.seed, num_timesteps=1, slots="future")
    path = course(card.schedule.build(), card.start_lam, config.evaluations, config.substeps)
    # The shape of the schedule alone is taken from there.
    shape = FitConfig(steps=config.steps, warmup_steps=config.warmup_steps)
    for step in range(1, config.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * learning_rate_at(step - 1, shape)
        rows = range((step - 1) * config.batch_size, step * config.batch_size)
        window = collate([windows[i] for i in rows]).to(device)
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            goal = run_of(teacher, window, path, card)
            terms = backward(student, window, path, goal, card, config.mask_weight)
        _require_finite(terms, step)
        torch.nn.utils.clip_grad_norm_(student.parameters(), config.clip_norm)
        optimiser.step()
        average.update_parameters(student)
        if report is not None:
            report(step, terms)
    return cast(TaDiffNet, average.module).eval()


@torch.no_grad()
def run_of(teacher: TaDiffNet, window: Window, path: Course, card: ModelCard) -> Trajectory:
    """The teacher's run at the student's levels."""
    x = start(window, path.teacher, informed=card.start_lam is not None)
    return trajectory(denoiser(teacher, window), x, path.teacher, path.shared, card.x0_range)


def backward(
    student: TaDiffNet,
    window: Window,
    path: Course,
    goal: Trajectory,
    card: ModelCard,
    mask_weight: float,
) -> dict[str, float]:
    """Adds the gradient of one batch to the student's parameters.

    The student walks its own way: every level starts where its own step before ended, and aims at
    the teacher's state of the same noise, so that it learns to mend what it missed. Trained on
    the teacher's states it would never see its own. No gradient passes from a level to the one
    before: the memory is that of one evaluation.

    Returns:
        "loss" and its parts: "landing", the mean squared distance from the teacher's states, and
        "mask", the divergence from the teacher's masks (cross-entropy less the teacher's
        entropy).
    """
    plan = path.student
    denoise = denoiser(student, window)
    assert goal.logits is not None
    masks, x = torch.sigmoid(goal.logits), goal.states[0]
    terms = {"loss": 0.0, "landing": 0.0, "mask": 0.0}
    for row in range(plan.num_steps):
        eps, logits = denoise(x, float(plan.t[row]), row)
        assert logits is not None
        x0 = (x - float(plan.sigma[row]) * eps) / float(plan.alpha[row])
        target = clipped(implied_x0(x, goal.states[row + 1], plan, row), card)
        # What counts is where the clipped estimate lands, as solve clips it; its gradient passes
        # the clip, or estimates out of range would never come back.
        taken = x0 + (clipped(x0, card) - x0).detach()
        missed = float(plan.coef_x0[row]) * (taken - target)
        landing = missed.square().mean() / plan.num_steps
        divergence = float(plan.mask_weight[row]) * _divergence(logits, masks)
        loss = landing + mask_weight * divergence
        loss.backward()
        for name, value in {"loss": loss, "landing": landing, "mask": divergence}.items():
            terms[name] += float(value.detach())
        x = float(plan.coef_x[row]) * x + float(plan.coef_x0[row]) * taken.detach()
    return terms


def clipped(x0: Tensor, card: ModelCard) -> Tensor:
    """As `solve` clips estimates of x0."""
    return x0 if card.x0_range is None else x0.clamp(*card.x0_range)


def _divergence(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of Bernoulli masks from the teacher's."""
    entropy = -(torch.xlogy(masks, masks) + torch.xlogy(1 - masks, 1 - masks)).mean()
    return F.binary_cross_entropy_with_logits(logits, masks) - entropy


def _require_finite(terms: dict[str, float], step: int) -> None:
    for name, value in terms.items():
        if not math.isfinite(value):
            raise NumericsError(
                "TD6003",
                f"the {name} term of the loss is {value} at step {step}",
                fix="lower --learning-rate, or look for broken images with the training data",
            )
