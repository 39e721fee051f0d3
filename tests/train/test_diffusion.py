"""The parts of the training loss against their definitions, in loops and float64."""

import math

import numpy as np
import pytest
import torch

from tadiff_rt.schedule import NoiseSchedule
from tadiff_train.diffusion import (
    LOSSES,
    Batch,
    add_noise,
    hide_sources,
    loss_terms,
    omega,
    soft_dice_loss,
)

H, W = 6, 8
SCHEDULE = NoiseSchedule.linear()


class FixedNet:
    """Stands for the network: answers a fixed prediction and keeps what it was asked."""

    def __init__(self, prediction: torch.Tensor) -> None:
        self.prediction = prediction

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.x, self.t, self.days, self.treatments, self.target = inputs
        return self.prediction


def random_batch(target: list[int], days: list[list[float]] | None = None, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    b = len(target)
    return Batch(
        images=torch.rand(b, 4, 3, H, W, generator=rng),
        masks=(torch.rand(b, 4, H, W, generator=rng) < 0.4).float(),
        days=torch.tensor(days or [[0.0, 30.0, 75.0, 160.0]] * b),
        treatments=torch.tensor([[0.0, 0.0, 1.0, 1.0]] * b),
        target=torch.tensor(target),
    )


def slow_omega(masks: np.ndarray, gain: float = 0.1) -> np.ndarray:
    """(s, h, w) -> (h, w): the definition, one voxel and one neighbour at a time."""
    _, h, w = masks.shape
    result = np.ones((h, w))
    for y in range(h):
        for x in range(w):
            for dy in range(-5, 6):
                for dx in range(-5, 6):
                    if 0 <= y + dy < h and 0 <= x + dx < w:
                        n = masks[:, y + dy, x + dx].sum()
                        result[y, x] += gain * n * math.exp(-n)
    return result


def slow_dice(logits: np.ndarray, mask: np.ndarray) -> float:
    overlap = predicted = true = 0.0
    for z, g in zip(logits.ravel(), mask.ravel(), strict=True):
        p = 1 / (1 + math.exp(-z))
        overlap, predicted, true = overlap + p * g, predicted + p * p, true + g * g
    return 1 - 2 * overlap / (predicted + true + 1e-5)


@pytest.mark.parametrize(
    ("n", "weight"), [(0, 1.0), (1, 5.4513), (2, 4.2751), (3, 2.8073), (4, 1.8865)]
)
def test_omega_has_the_published_values_in_the_interior(n, weight):
    masks = torch.zeros(1, 4, 13, 13)
    masks[:, :n] = 1
    assert omega(masks)[0, 0, 6, 6].item() == pytest.approx(weight, abs=5e-5)


def test_a_kernel_that_is_a_mean_leaves_n_exp_minus_n_itself():
    masks = torch.ones(1, 1, 13, 13)
    assert omega(masks, 1 / 121)[0, 0, 6, 6].item() == pytest.approx(1 + math.exp(-1), abs=1e-6)


def test_omega_counts_nothing_beyond_the_border():
    masks = torch.zeros(1, 4, 13, 15)
    masks[:, 1] = 1
    got = omega(masks)[0, 0]
    # 6 x 6 of the 11 x 11 neighbours of a corner lie in the image, 6 x 11 of those of an edge.
    assert got[0, 0].item() == pytest.approx(1 + 0.1 * 36 * math.exp(-1), abs=1e-5)
    assert got[0, 7].item() == pytest.approx(1 + 0.1 * 66 * math.exp(-1), abs=1e-5)


def test_omega_is_its_definition_on_random_masks():
    masks = random_batch([3, 3]).masks
    got = omega(masks).numpy()
    assert got.shape == (2, 1, H, W)
    for item, one in zip(got[:, 0], masks.numpy(), strict=True):
        np.testing.assert_allclose(item, slow_omega(one), rtol=0, atol=1e-5)


def test_dice_is_its_formula():
    rng = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(2, 4, H, W, generator=rng)
    masks = random_batch([3, 3]).masks
    got = soft_dice_loss(logits, masks)
    expected = [
        [slow_dice(*pair) for pair in zip(*item, strict=True)]
        for item in zip(logits.numpy(), masks.numpy(), strict=True)
    ]
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-6)


def test_dice_of_half_a_square_is_a_half():
    """4 x 4 of tumour, of which the prediction meets 4 x 2: 1 - 2 * 8 / (16 + 16)."""
    masks, logits = torch.zeros(1, 4, H, W), torch.full((1, 4, H, W), -200.0)
    masks[:, :, 1:5, 1:5] = 1
    logits[:, :3, 1:5, 3:7] = 200  # a sigmoid of exactly 1; the last slot misses it whole
    expected = torch.tensor([[1 - 16 / (32 + 1e-5)] * 3 + [1.0]])
    torch.testing.assert_close(soft_dice_loss(logits, masks), expected, rtol=0, atol=1e-7)
    exact = soft_dice_loss(400 * masks - 200, masks)
    assert exact.max().item() == pytest.approx(1 - 32 / (32 + 1e-5), abs=1e-7)


def test_dice_of_an_empty_mask_is_one_without_gradient():
    logits = torch.tensor([-4.0, 0.5, 7.0]).expand(1, 4, 2, 3).clone().requires_grad_()
    loss = soft_dice_loss(logits, torch.zeros(1, 4, 2, 3))
    loss.sum().backward()
    assert torch.equal(loss, torch.ones(1, 4))
    assert not logits.grad.any()


def test_noise_is_mixed_into_the_target_alone():
    batch = random_batch([0, 2, 3])
    noise = torch.randn(3, 3, H, W, generator=torch.Generator().manual_seed(2))
    alpha_bar = torch.tensor([0.9999, 0.25, 4e-5])
    got = add_noise(batch.images, batch.target, noise, alpha_bar).numpy()
    for i, (slot, a) in enumerate(zip([0, 2, 3], alpha_bar.tolist(), strict=True)):
        for s in range(4):
            clean = batch.images[i, s].double().numpy()
            noisy = math.sqrt(a) * clean + math.sqrt(1 - a) * noise[i].double().numpy()
            np.testing.assert_allclose(got[i, s], noisy if s == slot else clean, atol=2e-6)


def test_sources_are_hidden_where_slots_2_and_3_share_a_day():
    days = [[0.0, 30.0, 75.0, 75.0], [0.0, 30.0, 30.0, 75.0], [0.0, 0.0, 9.0, 9.0]]
    batch = random_batch([1, 1, -1], days)
    hidden = hide_sources(batch)
    for i, kept in enumerate([{1}, {0, 1, 2, 3}, {3}]):
        for s in range(4):
            for name in ("images", "masks"):
                before, after = getattr(batch, name)[i, s], getattr(hidden, name)[i, s]
                assert torch.equal(after, before if s in kept else torch.zeros_like(before))
    assert torch.equal(hidden.days, batch.days)
    assert torch.equal(hidden.treatments, batch.treatments)
    assert torch.equal(hidden.target, batch.target)


def test_network_is_fed_x_t_at_one_based_time():
    """t = 1 is the first entry of the table: one-based, as published."""
    batch = random_batch([3, 1])
    noise = torch.ones(2, 3, H, W)
    net = FixedNet(torch.zeros(2, 7, H, W))
    loss_terms(net, batch, torch.tensor([1, 1000]), noise, SCHEDULE, LOSSES["published"])
    assert net.t.tolist() == [1.0, 1000.0]
    assert torch.equal(net.days, batch.days)
    assert torch.equal(net.treatments, batch.treatments)
    assert torch.equal(net.target, batch.target)
    for i, (slot, a) in enumerate([(3, 0.9999), (1, 4.0358e-5)]):
        for s in range(4):
            shown = net.x[i, 3 * s : 3 * s + 3]
            clean = batch.images[i, s]
            expected = math.sqrt(a) * clean + math.sqrt(1 - a) if s == slot else clean
            torch.testing.assert_close(shown, expected, rtol=0, atol=1e-6)


def test_hidden_sources_are_not_shown_to_the_network():
    batch = random_batch([3], [[0.0, 30.0, 75.0, 75.0]])
    net = FixedNet(torch.zeros(1, 7, H, W))
    noise = torch.ones(1, 3, H, W)
    loss_terms(net, batch, torch.tensor([500]), noise, SCHEDULE, LOSSES["published"])
    assert not net.x[:, :9].any()
    assert net.x[:, 9:].all()
