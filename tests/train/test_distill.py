"""Distillation: its targets are those of the exact flow, and a student reaches them."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from tadiff_rt.card import ModelCard, SamplerCard
from tadiff_rt.certify.distilled import UNTRAINED
from tadiff_rt.errors import NumericsError, UsageError
from tadiff_rt.preprocess import DataContract
from tadiff_rt.solvers import make_plan, noised, solve
from tadiff_train.data import CachedCase
from tadiff_train.data.windows import Windows, collate
from tadiff_train.distill import (
    DistillConfig,
    Trajectory,
    course,
    distill,
    held_out,
    implied_x0,
    measure,
    require_teachable,
    student_card,
    trajectory,
)
from tadiff_train.distill.loop import backward, clipped, run_of
from tadiff_train.distill.measure import OTHER_NOISE
from tests.rt.analytic import MEAN, SCHEDULE, flow, flow_x0, gaussian, lam, level
from tests.train.linear_net import STD, LinearNet, perfect_student

START = -2.25
SHA = "ab" * 32
CARD = ModelCard(
    name="exact",
    trained_on="Gaussians",
    data=DataContract(size=4, spacing_mm=2.0),
    start_lam=START,
)
CONFIG = DistillConfig(steps=3, batch_size=2, warmup_steps=1)


def patient(seed: int) -> CachedCase:
    """Three slices of 4 x 4, images in 0.3 to 0.7."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0.3, 0.7, (3, 4, 3, 4, 4)).astype(np.float16)
    masks = rng.random((3, 4, 4, 4)) < 0.5
    return CachedCase(f"sub-{seed}", (0, 40, 80, 120), (0, 0, 1, 2), images, masks)


CASES = [patient(seed) for seed in range(4)]


def some_windows(count=3, seed=5):
    source = Windows(CASES, seed=seed, num_timesteps=1, slots="future")
    return collate([source[i] for i in range(count)])


# The levels.


@pytest.mark.parametrize("start", [START, None])
@pytest.mark.parametrize(("evaluations", "substeps"), [(4, 5), (2, 10), (1, 3)])
def test_the_student_has_every_substeps_th_level_of_the_teacher(start, evaluations, substeps):
    path = course(SCHEDULE, start, evaluations, substeps)
    teacher = make_plan(SCHEDULE, "dpmpp_2m", evaluations * substeps + 1, "logsnr", start)
    np.testing.assert_array_equal(path.teacher.table, teacher.table)
    assert path.student.num_steps == evaluations
    assert (path.student.solver, path.student.history) == ("ddim", 0)
    np.testing.assert_array_equal(path.student.t, teacher.t[list(path.shared)])
    assert list(path.shared) == [i * substeps for i in range(evaluations)]
    # Even in log-SNR, with the level at t = 1 left to the teacher.
    first = lam(1000.0) if start is None else start
    ends = [first + i * (lam(1.0) - first) / evaluations for i in range(evaluations)]
    assert [lam(t) for t in path.student.t] == pytest.approx(ends, abs=1e-6)


def test_masks_are_those_of_the_last_evaluation():
    for start, evaluations in itertools.product((START, None), (2, 3, 4)):
        weights = course(SCHEDULE, start, evaluations, 5).student.mask_weight
        assert weights.tolist() == pytest.approx([0.0] * (evaluations - 1) + [1.0], abs=1e-12)


# The target.


@pytest.mark.parametrize("std", [0.05, 0.3])
def test_the_target_on_the_exact_flow_is_that_of_the_formula(std):
    plan, z = course(SCHEDULE, START, 4, 5).student, np.array([-2.0, 0.3, 1.7])
    for row in range(4):
        (a, s), x = level(plan.t[row]), flow(plan.t[row], std, z)
        (a2, s2), end = (1.0, 0.0), MEAN + std * z
        if row < 3:
            (a2, s2), end = level(plan.t[row + 1]), flow(plan.t[row + 1], std, z)
        expected = (end - s2 / s * x) / (a2 - s2 / s * a)
        target = implied_x0(x, end, plan, row)
        np.testing.assert_allclose(target, expected, rtol=0, atol=1e-12)
        # One DDIM step, written as noise: x' = a' x0 + s' eps.
        eps = (x - a * target) / s
        np.testing.assert_allclose(a2 * target + s2 * eps, end, rtol=0, atol=1e-12)


def test_a_student_with_these_targets_lands_on_every_level_of_the_flow():
    path, z, std = course(SCHEDULE, START, 3, 4), np.array([-1.0, 0.5]), 0.2
    ends = [flow(t, std, z) for t in path.student.t] + [MEAN + std * z]
    passed = []

    def perfect(x, t, row):
        passed.append(x * 1.0)
        x0 = implied_x0(x, ends[row + 1], path.student, row)
        return (x - path.student.alpha[row] * x0) / path.student.sigma[row], None

    image, _ = solve(perfect, ends[0], path.student)
    np.testing.assert_allclose([*passed, image], ends, rtol=0, atol=1e-12)


def test_the_states_of_a_fine_teacher_are_those_of_the_flow():
    """Second order: ten times the steps, a hundredth of the distance."""
    z, std, far = np.array([-1.3, 0.4]), 0.2, []
    for substeps in (10, 100):
        path = course(SCHEDULE, START, 4, substeps)
        start = flow(path.teacher.t[0], std, z)
        run = trajectory(gaussian(MEAN, std), start, path.teacher, path.shared)
        assert len(run.states) == 5
        exact = [flow(t, std, z) for t in path.student.t] + [flow_x0(1.0, std, z)]
        far.append(np.abs(np.array(run.states) - exact).max())
    assert far[1] < 2e-5
    assert far[0] / far[1] > 40


# The teacher's run.


def test_the_network_is_conditioned_as_in_forecasts():
    net, window = LinearNet(), some_windows()
    path = course(SCHEDULE, START, 2, 2)
    run = run_of(net, window, path, CARD)
    assert len(net.seen) == 5
    for (images, t, days, treatments, target), expected in zip(
        net.seen, path.teacher.t, strict=True
    ):
        np.testing.assert_allclose(t, [expected], rtol=1e-6)
        assert torch.equal(images[:, :9], window.images[:, :3].flatten(1, 2))
        assert torch.equal(days, window.days)
        assert torch.equal(treatments, window.treatments)
        assert target.tolist() == [3, 3, 3]
    starts = [images[:, 9:] for images, *_ in net.seen]
    for state, i in zip(run.states, (0, 2), strict=False):
        torch.testing.assert_close(state, starts[i], rtol=0, atol=0)
    # Not the truth of the target, which no forecast has.
    a, s = level(path.teacher.t[0])
    begin = a * window.images[:, 2] + s * window.noise
    torch.testing.assert_close(starts[0], begin, rtol=0, atol=1e-6)


def test_the_run_ends_as_a_forecast_does():
    net, window = LinearNet(), some_windows()
    for start in (START, None):
        card = CARD.model_copy(update={"start_lam": start, "x0_range": (0.45, 0.55)})
        path = course(SCHEDULE, start, 3, 3)
        run = run_of(net, window, path, card)
        x = window.noise
        if start is not None:
            x = noised(window.images[:, 2], window.noise, path.teacher)

        def denoise(x, t, row):
            images = torch.cat([window.images[:, :3].flatten(1, 2), x], 1)
            y = net(images, torch.tensor([t]), window.days, window.treatments, torch.tensor([3]))
            return y[:, 4:], y[:, :4]

        with torch.no_grad():
            image, logits = solve(denoise, x, path.teacher, x0_range=(0.45, 0.55))
        torch.testing.assert_close(run.states[-1], image, rtol=0, atol=1e-6)
        torch.testing.assert_close(run.logits, logits, rtol=0, atol=1e-4)
        assert len(run.states) == 4


# The loss.


def hand_made_terms(net, window, path, goal, card, mask_weight):
    """The docstring of `backward`, written out: the terms, and a scalar with their gradient."""
    plan, x = path.student, goal.states[0]
    p = torch.sigmoid(goal.logits)
    landing = masks = slope = 0.0
    for row in range(plan.num_steps):
        a, s = level(plan.t[row])
        a2, s2 = level(plan.t[row + 1]) if row + 1 < plan.num_steps else (1.0, 0.0)
        images = torch.cat([window.images[:, :3].flatten(1, 2), x.detach()], 1)
        time = torch.tensor([float(plan.t[row])])
        y = net(images, time, window.days, window.treatments, torch.tensor([3]))
        x0 = (x.detach() - s * y[:, 4:]) / a
        goal_x0 = (goal.states[row + 1] - s2 / s * x.detach()) / (a2 - a * s2 / s)
        goal_x0 = clipped(goal_x0, card)
        missed = (clipped(x0, card) - goal_x0).detach()
        gain = (a2 - a * s2 / s) ** 2
        landing = landing + gain * (missed**2).mean() / plan.num_steps
        # The clip lets gradients through: d landing / d x0 is 2 gain missed everywhere.
        slope = slope + 2 * gain * (missed * x0).mean() / plan.num_steps
        q = torch.sigmoid(y[:, :4])
        divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        masks = masks + plan.mask_weight[row] * divergence.mean()
        x = s2 / s * x + (a2 - a * s2 / s) * clipped(x0, card)
    return slope + mask_weight * masks, landing, masks


@pytest.mark.parametrize("x0_range", [(0.0, 1.0), (0.4, 0.55), None])
def test_the_loss_and_its_gradient_are_those_of_the_docstring(x0_range):
    card = CARD.model_copy(update={"x0_range": x0_range})
    window, path = some_windows(), course(SCHEDULE, START, 3, 3)
    student, twin = LinearNet(), LinearNet()
    for net in (student, twin):
        rng = torch.Generator().manual_seed(3)
        net.delta.data = 0.05 * torch.randn(net.delta.shape, generator=rng)
    goal = run_of(LinearNet(), window, path, card)
    terms = backward(student, window, path, goal, card, 0.3)
    slope, landing, masks = hand_made_terms(twin, window, path, goal, card, 0.3)
    slope.backward()
    total = landing.item() + 0.3 * masks.item()
    expected = {"loss": total, "landing": landing.item(), "mask": masks.item()}
    assert terms == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(student.delta.grad, twin.delta.grad, rtol=2e-3, atol=1e-7)
    assert (student.delta.grad != 0).any(1).sum() == 3  # every level learns


def test_the_student_is_trained_on_its_own_states():
    window, path = some_windows(), course(SCHEDULE, START, 4, 5)
    student = LinearNet()
    student.delta.data += 0.1
    goal = run_of(LinearNet(), window, path, CARD)
    backward(student, window, path, goal, CARD, 0.1)
    trained_on = [images[:, 9:] for images, *_ in student.seen]
    student.seen.clear()
    run_of(student, window, dataclasses.replace(path, teacher=path.student), CARD)
    sampled = [images[:, 9:] for images, *_ in student.seen]
    assert len(trained_on) == len(sampled) == 4
    for a, b in zip(trained_on, sampled, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert (trained_on[2] - goal.states[2]).abs().max() > 0.01  # not the teacher's


def test_masks_of_the_teacher_cost_nothing():
    """The divergence is zero for the same masks; cross-entropy is not."""
    window, path = some_windows(), course(SCHEDULE, START, 1, 2)
    student = LinearNet()
    x = run_of(student, window, path, CARD).states[0]
    first = run_of(student, window, dataclasses.replace(path, teacher=path.student), CARD)
    goal = Trajectory((x, first.states[-1]), first.logits)
    terms = backward(student, window, path, goal, CARD, 1.0)
    assert terms == pytest.approx({"loss": 0, "landing": 0, "mask": 0}, abs=1e-6)


# A whole run.


@pytest.fixture(scope="module")
def learnt():
    """A teacher, and its student of three evaluations."""
    config = dataclasses.replace(
        CONFIG,
        evaluations=3,
        substeps=5,
        steps=400,
        batch_size=4,
        learning_rate=0.1,
        ema_decay=0.9,
        mask_weight=0.02,
    )
    teacher = LinearNet()
    return teacher, distill(teacher, CARD, CASES[:3], config), config


def test_a_student_becomes_the_one_of_the_closed_form(learnt):
    teacher, student, config = learnt
    plan = course(SCHEDULE, START, config.evaluations, config.substeps).student
    ideal = perfect_student(plan)
    rows = [round(t) for t in plan.t]
    # Of x0, which an error of eps enters by sigma / alpha. Fifteen steps of the teacher are near
    # the flow, not on it.
    weight = torch.from_numpy(plan.sigma / plan.alpha)[:, None]
    got = weight * student.delta[rows, :2].detach()
    expected = weight * ideal.delta[rows, :2].detach()
    torch.testing.assert_close(got, expected, rtol=0, atol=0.03)
    assert expected.abs().max() > 0.2
    assert not teacher.delta.any()  # the teacher stays as it is


def test_a_student_beats_its_teacher_in_as_few_evaluations(learnt):
    teacher, student, config = learnt
    found = measure(teacher, student, CARD, CASES[3:], config, windows=3, samples=6)
    for name, most in {"image": 0.5, "mean image": 0.5, "spread": 0.5, "probability": 1}.items():
        assert found.student[name] < most * found.untrained[name], name
    assert found.student["spread ratio"] == pytest.approx(1, abs=0.02)
    assert abs(found.untrained["spread ratio"] - 1) > 0.05


def test_the_measure_of_a_perfect_student():
    config = dataclasses.replace(CONFIG, evaluations=4, substeps=40)
    student = perfect_student(course(SCHEDULE, START, 4, 40).student)
    found = measure(LinearNet(), student, CARD, CASES, config, windows=2, samples=4)
    assert found.student["image"] < 0.002
    assert found.student["mean image"] < found.student["image"]
    assert found.student["spread ratio"] == pytest.approx(1, abs=0.01)
    assert found.student["Dice"] > 0.95
    # Two draws of N(last, STD²) are STD times the root of 2 apart; 4 samples each: by a half.
    assert found.other_noise["image"] == pytest.approx(STD * math.sqrt(2), rel=0.1)
    assert found.other_noise["mean image"] == pytest.approx(STD / math.sqrt(2), rel=0.15)
    assert 0.8 < found.other_noise["spread ratio"] < 1.2
    flat = found.flat()
    assert flat[UNTRAINED.format("image")] == found.untrained["image"]
    assert flat[OTHER_NOISE.format("spread")] == found.other_noise["spread"]
    assert flat["Dice"] == found.student["Dice"]


class Shrunk(LinearNet):
    """A network whose images differ by a factor from the last source."""

    factor = 0.3

    def forward(self, images, t, *rest):
        (time,) = t.tolist()
        y, (a, s) = super().forward(images, t, *rest), level(time)
        x, last = images[:, -3:], images[:, -6:-3]
        x0 = last + self.factor * ((x - s * y[:, 4:]) / a - last)
        logits = x0.mean(1, keepdim=True).expand(-1, 4, -1, -1) - 0.5
        return torch.cat([logits, (x - a * x0) / s], 1)


def test_a_student_without_spread_is_seen_to_have_none():
    found = measure(LinearNet(), Shrunk(), CARD, CASES, CONFIG, windows=8, samples=8)
    assert found.student["spread ratio"] < 0.5
    assert found.student["volume spread ratio"] < 0.8


def test_a_run_repeats_itself():
    one, same = (distill(LinearNet(), CARD, CASES, CONFIG) for _ in range(2))
    other = distill(LinearNet(), CARD, CASES, dataclasses.replace(CONFIG, seed=1))
    assert torch.equal(one.delta, same.delta)
    assert not torch.equal(one.delta, other.delta)
    assert not one.training


def test_the_student_is_the_moving_average():
    slow = dataclasses.replace(CONFIG, steps=40, learning_rate=0.05, warmup_steps=0)
    last = distill(LinearNet(), CARD, CASES, dataclasses.replace(slow, ema_decay=0.0))
    average = distill(LinearNet(), CARD, CASES, dataclasses.replace(slow, ema_decay=0.999))
    moved = last.delta.abs().max()
    assert (last.delta - average.delta).abs().max() > 0.002 * moved


def test_what_a_run_reports():
    told = []
    distill(LinearNet(), CARD, CASES, CONFIG, lambda step, terms: told.append((step, terms)))
    assert [step for step, _ in told] == [1, 2, 3]
    for _, terms in told:
        assert terms["loss"] == pytest.approx(
            terms["landing"] + CONFIG.mask_weight * terms["mask"], rel=1e-5
        )


def test_bfloat16_stays_near(learnt):
    half = dataclasses.replace(CONFIG, precision="bf16")
    near = (
        distill(LinearNet(), CARD, CASES, half).delta
        - distill(LinearNet(), CARD, CASES, CONFIG).delta
    )
    assert near.abs().max() < 1e-3


def test_a_loss_that_is_not_finite_ends_the_run():
    broken = LinearNet()
    broken.delta.data[:, 0] = math.nan
    with pytest.raises(NumericsError, match="TD6003: the loss term of the loss is nan at step 1"):
        distill(broken, CARD.model_copy(update={"x0_range": None}), CASES, CONFIG)


# Settings, patients and the card.


@pytest.mark.parametrize(
    "field", [{"evaluations": 0}, {"evaluations": 7}, {"substeps": 1}, {"precision": "fp16"}]
)
def test_settings_out_of_range_are_refused(field):
    with pytest.raises(UsageError, match="TD3095") as refused:
        DistillConfig(**field)
    assert refused.value.where == f"--{next(iter(field))}"


def test_patients_are_held_out_as_the_split_has_them():
    from tadiff_train.data import split_of

    many = [patient(seed) for seed in range(30)]
    learnt_on, others = held_out(many)
    assert {case.name for case in learnt_on} == {
        case.name for case in many if split_of(case.name) == "train"
    }
    assert len(learnt_on) + len(others) == 30
    assert not {case.name for case in learnt_on} & {case.name for case in others}


def test_of_few_patients_the_last_is_held_out():
    from tadiff_train.data import split_of

    alike = [case for case in (patient(s) for s in range(30)) if split_of(case.name) == "train"]
    few = sorted(alike[:3], key=lambda case: case.name)
    assert held_out(few[::-1]) == (few[:2], few[2:])


def test_one_patient_is_too_few():
    short = dataclasses.replace(patient(1), days=(0,))
    with pytest.raises(UsageError, match=r"TD3096.* got 1"):
        held_out([patient(0), short])


def test_a_student_says_what_it_is():
    config = DistillConfig(evaluations=2, substeps=6, steps=77, batch_size=3)
    made = student_card(CARD, SHA, config, {"spread ratio": 0.99})
    assert made.sampler is not None
    assert made.name == "exact-2"
    assert made.sampler.times == tuple(course(SCHEDULE, START, 2, 6).student.t)
    assert made.sampler.teacher_sha256 == SHA
    assert made.sampler.measured == {"spread ratio": 0.99}
    for word in ("DDIM", "6 of dpmpp_2m", "13 evaluations", "77 updates of 3 windows"):
        assert word in made.sampler.recipe
    # All else is the teacher's.
    assert made.model_copy(update={"name": CARD.name, "sampler": None}) == CARD
    assert student_card(CARD, SHA, config, {}, name="mine").name == "mine"
    long = CARD.model_copy(update={"name": "n" * 64})
    assert student_card(long, SHA, config, {}).name == "n" * 60 + "-2"


def test_a_student_is_no_teacher():
    own = SamplerCard(times=(100.0, 50.0), teacher_sha256=SHA, recipe="")
    with pytest.raises(UsageError, match="TD3097: exact was itself distilled, to 2"):
        require_teachable(CARD.model_copy(update={"sampler": own}))
    require_teachable(CARD)
