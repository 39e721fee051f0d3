"""The whole loss: its options against loops in float64, its presets, precision and devices."""

import dataclasses
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import tadiff_train.diffusion as diffusion
from tadiff_rt.errors import UsageError
from tadiff_rt.schedule import NoiseSchedule
from tadiff_train.diffusion import (
    LOSSES,
    Batch,
    LossConfig,
    loss_terms,
    omega,
    validation_terms,
)
from tests.train.test_diffusion import FixedNet, H, W, random_batch, slow_dice, slow_omega

SCHEDULE = NoiseSchedule.linear()
ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
PUBLISHED, UNBIASED = LOSSES["published"], LOSSES["unbiased"]


def slow_loss(
    batch: Batch, t: list[int], noise: torch.Tensor, y: torch.Tensor, config: LossConfig
) -> dict[str, float]:
    """Every term from the definitions, item by item, slot by slot, in float64."""
    y, noise = y.detach().double().numpy(), noise.double().numpy()
    terms = dict.fromkeys(("noise", "noise_mse", "dice", "bce"), 0.0)
    b = len(t)
    for i in range(b):
        a = ALPHAS_CUMPROD[t[i] - 1]
        slot = int(batch.target[i]) % 4
        alone = float(batch.days[i, 2]) == float(batch.days[i, 3])
        masks = batch.masks[i].double().numpy().copy()
        if alone:
            masks[[s for s in range(4) if s != slot]] = 0
        counted = {"all": [0, 1, 2, 3], "sources": [s for s in range(4) if s != slot], "none": []}
        weight = slow_omega(masks[counted[config.omega_masks]], config.omega_gain)
        squared = (y[i, 4:] - noise[i]) ** 2
        terms["noise_mse"] += squared.mean() / b
        level = {"noise": 1.0, "velocity": min(1 / a, 100.0)}[config.levels]
        terms["noise"] += level * (weight * squared).mean() / b
        slots = [slot] if alone else [0, 1, 2, 3]
        for s in slots:
            share = (math.sqrt(a) if s == slot else 1.0) / b
            share /= {"entries": 4, "shown": len(slots)}[config.mask_mean]
            terms["dice"] += share * slow_dice(y[i, s], masks[s])
            p = 1 / (1 + np.exp(-y[i, s]))
            entropy = -(masks[s] * np.log(p) + (1 - masks[s]) * np.log(1 - p))
            terms["bce"] += share * entropy.mean()
    parts = config.dice_weight * terms["dice"] + config.bce_weight * terms["bce"]
    if not config.bce_weight:
        del terms["bce"]
    return {"loss": terms["noise"] + parts, **terms}


CASES = {
    "target last": ([3, 3, 3], [500, 1, 1000], None),
    "every slot": ([0, 1, 2, 3, -2], [7, 250, 600, 666, 999], None),
    "hidden sources": (
        [3, 0, 2],
        [40, 600, 2],
        [[0.0, 30.0, 75.0, 75.0], [0.0, 9.0, 9.0, 9.0], [0.0, 1.0, 2.0, 3.0]],
    ),
    "batch of one": ([2], [123], None),
}
OPTIONS = LOSSES | {
    "mean kernel": LossConfig(omega_gain=1 / 121),
    "no omega": LossConfig(omega_masks="none"),
    "velocity, no omega": LossConfig(omega_masks="none", levels="velocity"),
    "published, shown": dataclasses.replace(PUBLISHED, mask_mean="shown"),
    "unbiased, without cross-entropy": LossConfig(bce_weight=0.0),
}


def inputs(case: str) -> tuple[Batch, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Batch, t, noise and a prediction; the first two slots of the first item have no tumour."""
    target, t, days = CASES[case]
    batch = random_batch(target, days)
    batch.masks[0, :2] = 0
    rng = torch.Generator().manual_seed(3)
    y = torch.randn(len(t), 7, H, W, generator=rng)
    return batch, torch.tensor(t), torch.randn(len(t), 3, H, W, generator=rng), y


def numbers(terms: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in terms.items()}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("case", CASES)
def test_loss_is_its_definition(case, option):
    batch, t, noise, y = inputs(case)
    got = loss_terms(FixedNet(y), batch, t, noise, SCHEDULE, OPTIONS[option])
    expected = slow_loss(batch, t.tolist(), noise, y, OPTIONS[option])
    assert numbers(got) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_rounded_on_the_way(case):
    """In float64 the table of noise levels, x_t and every term agree to float64."""
    batch, t, noise, y = inputs(case)
    batch = dataclasses.replace(batch, images=batch.images.double(), masks=batch.masks.double())
    net = FixedNet(y.double())
    got = loss_terms(net, batch, t, noise.double(), SCHEDULE, UNBIASED)
    expected = slow_loss(batch, t.tolist(), noise, y, UNBIASED)
    assert numbers(got) == pytest.approx(expected, rel=1e-12)
    for i, a in enumerate(ALPHAS_CUMPROD[t.numpy() - 1]):
        slot = int(batch.target[i]) % 4
        x_t = math.sqrt(a) * batch.images[i, slot] + math.sqrt(1 - a) * noise[i].double()
        torch.testing.assert_close(net.x[i].unflatten(0, (4, 3))[slot], x_t, rtol=0, atol=1e-14)


def test_presets_are_what_they_are_called():
    """The paper's lambda is 0.01; the weights of the other presets are this project's own."""
    published = (0.01, 0.0, "all", 0.1, "entries", "noise")
    assert dataclasses.astuple(LOSSES["published"]) == published
    assert dataclasses.astuple(LOSSES["calibrated"]) == (0.02, 0.1, "all", 0.1, "entries", "noise")
    assert LossConfig() == LOSSES["unbiased"]
    assert LossConfig(levels="velocity") == LOSSES["velocity"]


@pytest.mark.parametrize("field", ["omega_masks", "mask_mean", "levels"])
def test_unknown_options_are_refused(field):
    with pytest.raises(UsageError, match=f"TD3034: {field} must be one of .*, got 'half'"):
        LossConfig(**{field: "half"})


@pytest.mark.parametrize(
    ("t", "alpha_bar"), [(1, "0.9999"), (600, "0.025879"), (666, "0.011133"), (1000, "4.0358e-05")]
)
def test_noise_levels_are_the_published_ones(t, alpha_bar):
    """An image of 1 without noise shows sqrt(alpha_bar)."""
    batch = random_batch([3])
    batch = dataclasses.replace(batch, images=torch.ones(1, 4, 3, H, W, dtype=torch.float64))
    net = FixedNet(torch.zeros(1, 7, H, W))
    noise = torch.zeros(1, 3, H, W, dtype=torch.float64)
    loss_terms(net, batch, torch.tensor([t]), noise, SCHEDULE, UNBIASED)
    assert f"{net.x[0, 9, 0, 0].item() ** 2:.5g}" == alpha_bar


@pytest.mark.parametrize("t", [0, 1001])
def test_timesteps_beyond_the_schedule_are_refused(t):
    batch, _, noise, y = inputs("batch of one")
    with pytest.raises(IndexError):
        loss_terms(FixedNet(y), batch, torch.tensor([t]), noise, SCHEDULE, PUBLISHED)


@pytest.mark.parametrize("preset", LOSSES)
def test_the_exact_noise_has_no_noise_error(preset):
    batch, t, noise, y = inputs("every slot")
    y[:, 4:] = noise
    got = loss_terms(FixedNet(y), batch, t, noise, SCHEDULE, LOSSES[preset])
    assert float(got["noise"]) == float(got["noise_mse"]) == 0
    assert float(got["loss"]) > 0


def gradient_on_empty_masks(config: LossConfig, slot: int) -> torch.Tensor:
    batch = dataclasses.replace(random_batch([3]), masks=torch.zeros(1, 4, H, W))
    y = torch.full((1, 7, H, W), 2.0, requires_grad=True)
    noise = torch.zeros(1, 3, H, W)
    loss_terms(FixedNet(y), batch, torch.tensor([300]), noise, SCHEDULE, config)["loss"].backward()
    return y.grad[0, slot]


@pytest.mark.parametrize("slot", range(4))
@pytest.mark.parametrize("preset", ["calibrated", "unbiased"])
def test_tumour_drawn_on_healthy_tissue_is_penalised(preset, slot):
    assert not gradient_on_empty_masks(PUBLISHED, slot).any()
    got = gradient_on_empty_masks(LOSSES[preset], slot)
    # d BCE / d logit = p - g; mean over the voxels, four slots and one item.
    weight = math.sqrt(ALPHAS_CUMPROD[299]) if slot == 3 else 1.0
    expected = 0.1 * weight / (1 + math.exp(-2)) / (4 * H * W)
    torch.testing.assert_close(got, torch.full((H, W), expected), rtol=1e-5, atol=0)


def best_answer(preset: str) -> torch.Tensor:
    """(h, w): what to predict where tumour comes with 1/4, seen through one and the same x_t.

    Noise 1 with tumour and 0 without: the squared error is least where its gradient, which is
    linear in the answer, is 0.
    """
    side = 15
    masks = torch.zeros(4, 4, side, side)
    masks[0, 3] = 1  # one of four futures of a patient without tumour
    batch = Batch(
        images=torch.zeros(4, 4, 3, side, side),
        masks=masks,
        days=torch.tensor([[0.0, 30.0, 75.0, 160.0]] * 4),
        treatments=torch.zeros(4, 4),
        target=torch.full((4,), 3),
    )
    noise = torch.zeros(4, 3, side, side)
    noise[0] = 1
    slopes = []
    for answer in (0.0, 1.0):
        y = torch.full((7, side, side), answer, requires_grad=True)
        net, t = FixedNet(y.expand(4, -1, -1, -1)), torch.full((4,), 1000)
        loss_terms(net, batch, t, noise, SCHEDULE, LOSSES[preset])["noise"].backward()
        slopes.append(y.grad[4])
    return -slopes[0] / (slopes[1] - slopes[0])


def test_only_weights_of_the_sources_leave_the_mean_noise_the_best_answer():
    torch.testing.assert_close(best_answer("unbiased"), torch.full((15, 15), 0.25))
    weight = omega(torch.ones(1, 1, 15, 15))[0, 0]
    tilted = 0.25 * weight / (0.25 * weight + 0.75)
    torch.testing.assert_close(best_answer("published"), tilted)
    # Odds of 1 to 3 have become 5.45 to 3.
    assert best_answer("published")[7, 7].item() == pytest.approx(5.4513 / 8.4513, abs=1e-4)


@pytest.mark.parametrize("t", [1, 300, 640])
def test_velocity_weights_are_those_of_the_velocity(t):
    """v = alpha eps - sigma x0 (Salimans and Ho 2022): an error of eps at fixed x_t is alpha times
    that of v, so that 1 / alpha_bar of the one is the whole of the other."""
    batch, _, noise, y = inputs("target last")
    times = torch.full((3,), t)
    config = LossConfig(omega_masks="none", levels="velocity")
    got = loss_terms(FixedNet(y), batch, times, noise, SCHEDULE, config)["noise"]
    a = ALPHAS_CUMPROD[t - 1]
    alpha, sigma = math.sqrt(a), math.sqrt(1 - a)
    x0 = batch.images[:, 3].double()
    x_t, eps = alpha * x0 + sigma * noise.double(), y[:, 4:].double()
    error = (alpha * eps - sigma * (x_t - sigma * eps) / alpha) - (alpha * noise - sigma * x0)
    assert float(got) == pytest.approx(float((error**2).mean()), rel=1e-5)


@pytest.mark.parametrize("preset", LOSSES)
def test_processes_add_up_to_the_whole_batch(preset):
    """Windows with hidden sources in one half: a mean over slots of a batch would differ."""
    days = [[0.0, 1.0, 2.0, 3.0]] * 2 + [[0.0, 1.0, 2.0, 2.0]] * 2
    batch = random_batch([3, 1, 3, 0], days)
    rng = torch.Generator().manual_seed(5)
    y, noise = torch.randn(4, 7, H, W, generator=rng), torch.randn(4, 3, H, W, generator=rng)
    t = torch.tensor([10, 700, 20, 400])

    def at(rows: slice) -> dict[str, float]:
        part = Batch(*(value[rows] for value in vars(batch).values()))
        net = FixedNet(y[rows])
        return numbers(loss_terms(net, part, t[rows], noise[rows], SCHEDULE, LOSSES[preset]))

    first, second = at(slice(0, 2)), at(slice(2, 4))
    halves = {name: (first[name] + second[name]) / 2 for name in first}
    assert at(slice(0, 4)) == pytest.approx(halves, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("preset", ["published", "unbiased"])
def test_a_prediction_in_low_precision_is_judged_in_fp32(preset, dtype):
    batch, t, noise, y = inputs("hidden sources")
    y = y.to(dtype)
    seen = []

    def net(*args: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return y

    with torch.autocast("cpu", dtype):
        got = loss_terms(net, batch, t, noise, SCHEDULE, LOSSES[preset])
    assert seen == [True]
    assert all(value.dtype == torch.float32 for value in got.values())
    expected = slow_loss(batch, t.tolist(), noise, y, LOSSES[preset])
    assert numbers(got) == pytest.approx(expected, rel=2e-5)


def test_gradients_reach_a_prediction_in_low_precision():
    batch, t, noise, y = inputs("every slot")
    y = y.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss_terms(FixedNet(y), batch, t, noise, SCHEDULE, UNBIASED)["loss"].backward()
    exact = y.detach().float().requires_grad_()
    loss_terms(FixedNet(exact), batch, t, noise, SCHEDULE, UNBIASED)["loss"].backward()
    assert torch.equal(y.grad, exact.grad.bfloat16())


@pytest.mark.parametrize("preset", LOSSES)
def test_nothing_is_read_back_from_the_device(preset, monkeypatch):
    """Tensors on "meta" have no values to read, and refuse to meet tensors on the CPU."""
    monkeypatch.setattr(diffusion, "without_autocast", lambda device: nullcontext())
    batch, t, noise, y = inputs("hidden sources")
    far = Batch(*(value.to("meta") for value in vars(batch).values()))
    net = FixedNet(y.to("meta"))
    got = loss_terms(net, far, t.to("meta"), noise.to("meta"), SCHEDULE, LOSSES[preset])
    assert {value.device.type for value in got.values()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.parametrize("preset", LOSSES)
def test_a_gpu_gives_the_same_loss_without_waiting(preset):
    batch, t, noise, y = inputs("hidden sources")
    far = Batch(*(value.cuda() for value in vars(batch).values()))
    args = (FixedNet(y.cuda()), far, t.cuda(), noise.cuda(), SCHEDULE, LOSSES[preset])
    loss_terms(*args)  # moves the table of noise levels
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = loss_terms(*args)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = slow_loss(batch, t.tolist(), noise, y, LOSSES[preset])
    assert numbers(got) == pytest.approx(expected, rel=2e-5)


def test_validation_is_a_function_of_the_weights():
    """The same timesteps and noise whatever ran before; a mean of `loss_terms` at each time."""
    batch, _, _, y = inputs("every slot")

    class Seen(FixedNet):
        calls: list[tuple[torch.Tensor, ...]] = []  # noqa: RUF012

        def __call__(self, *args: torch.Tensor) -> torch.Tensor:
            self.calls.append(args)
            return self.prediction

    first = validation_terms(Seen(y), batch, SCHEDULE, UNBIASED, num_times=4)
    torch.rand(3)
    again = validation_terms(FixedNet(y), batch, SCHEDULE, UNBIASED, num_times=4)
    other = validation_terms(FixedNet(y), batch, SCHEDULE, UNBIASED, num_times=4, seed=1)
    assert numbers(first) == numbers(again)
    assert numbers(first) != numbers(other)
    assert [args[1].tolist() for args in Seen.calls] == [[m] * 5 for m in (126, 376, 626, 876)]
    total: dict[str, float] = {}
    for x, t, *_ in Seen.calls:
        a = torch.tensor(ALPHAS_CUMPROD)[t.long() - 1]
        rows = torch.arange(5)
        x_t = x.unflatten(1, (4, 3))[rows, batch.target].double()
        clean = batch.images[rows, batch.target].double()
        scale = [v.sqrt()[:, None, None, None] for v in (a, 1 - a)]
        noise = (x_t - scale[0] * clean) / scale[1]
        for name, value in slow_loss(batch, t.long().tolist(), noise, y, UNBIASED).items():
            total[name] = total.get(name, 0.0) + value / 4
    assert numbers(first) == pytest.approx(total, rel=1e-4)


def test_validation_over_every_timestep_visits_each_once():
    schedule = NoiseSchedule.linear(10)
    batch, _, _, y = inputs("batch of one")
    seen = []

    def net(*args: torch.Tensor) -> torch.Tensor:
        seen.append(args[1].item())
        return y

    validation_terms(net, batch, schedule, UNBIASED, num_times=10)
    assert seen == list(range(1, 11))
