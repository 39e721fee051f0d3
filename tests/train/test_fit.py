"""Training on a toy cohort: it learns, repeats itself, and leaves a checkpoint that exports."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch

from tadiff_rt.card import ModelCard
from tadiff_rt.errors import NumericsError, OutputError, UsageError
from tadiff_rt.preprocess import DataContract
from tadiff_train.checkpoint import SIDECAR, WEIGHTS, load_checkpoint
from tadiff_train.data import CachedCase, batches
from tadiff_train.diffusion import LOSSES, loss_terms
from tadiff_train.fit import FitConfig, fit, learning_rate_at, require_new_run
from tadiff_train.network import NetworkConfig, TaDiffNet

NETWORK = NetworkConfig(num_res_blocks=1, num_heads=1, channel_mult=(1,), attention_strides=())
CARD = ModelCard(name="toy", trained_on="discs", data=DataContract(size=16, spacing_mm=2.0))
SHORT = FitConfig(steps=4, batch_size=2, warmup_steps=2)


def discs(seed: int, sessions: int = 4) -> CachedCase:
    """Three slices of 16 x 16 with a disc of tumour that grows from session to session."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16]
    radius = np.arange(sessions)[:, None, None] + rng.uniform(2, 3, (3, 1, 1, 1))
    masks = (y - 8) ** 2 + (x - rng.uniform(6, 10)) ** 2 < radius**2
    level = np.array([0.3, 0.5, 0.4])[:, None, None]
    images = level + masks[:, :, None] * np.array([0.1, 0.4, 0.3])[:, None, None]
    days = tuple(40 * s for s in range(sessions))
    return CachedCase(f"sub-{seed}", days, (0, 0, 1, 1)[:sessions], np.float16(images), masks)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The result is a function of the seed for one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cases() -> list[CachedCase]:
    return [discs(0), discs(1, 3)]


def train(cases, out, *, report=None, card=CARD, **changes) -> TaDiffNet:
    return fit(cases, NETWORK, card, dataclasses.replace(SHORT, **changes), out, report)


def same_weights(a: TaDiffNet, b: TaDiffNet) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[key]) for key, value in a.state_dict().items())


def test_learning_rate_at_its_corners():
    config = FitConfig(steps=1100, warmup_steps=100)
    # Step s of the schedule scales the (s + 1)-th update; the first one already moves.
    for step, expected in [
        (0, 0.01),
        (49, 0.5),
        (99, 1.0),
        (100, 1.0),
        (350, 0.5 * (1 + math.sqrt(0.5))),
        (600, 0.5),
        (1100, 0.0),
        (5000, 0.0),
    ]:
        assert learning_rate_at(step, config) == pytest.approx(expected, abs=1e-12)
    assert learning_rate_at(0, FitConfig(steps=10, warmup_steps=0)) == 1.0
    assert learning_rate_at(5, FitConfig(steps=10, warmup_steps=100)) == pytest.approx(0.06)


@pytest.mark.parametrize("field", ["loss", "target_slots"])
def test_unknown_presets_are_refused(field):
    with pytest.raises(UsageError, match=f"TD3034: {field} must be one of published, .* 'dice'"):
        FitConfig(**{field: "dice"})


def test_a_folder_with_a_run_is_refused(tmp_path):
    require_new_run(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / SIDECAR).write_text("{}")
    with pytest.raises(OutputError, match="TD8001"):
        require_new_run(tmp_path)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError):
            require_new_run(out)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_loss_falls(cases, tmp_path, loss):
    told = []
    train(
        cases,
        tmp_path,
        steps=60,
        loss=loss,
        learning_rate=3e-3,
        report=lambda step, terms: told.append((step, dict(terms))),
    )
    assert [step for step, _ in told] == list(range(1, 61))
    first, last = told[0][1], told[-1][1]
    # An untrained network answers 0: its noise error is the noise's own square, 1 on average.
    assert first["noise_mse"] == pytest.approx(1, abs=0.12)
    assert last["loss"] < 0.8 * first["loss"]
    assert ("bce" in last) == (loss == "calibrated")


@pytest.mark.slow
def test_published_loss_learns_to_denoise(cases, tmp_path):
    net = train(cases, tmp_path, steps=400, batch_size=4, learning_rate=2e-3, warmup_steps=20)
    # Measured apart from training: noise the network has not seen, at all levels.
    rng = torch.Generator().manual_seed(99)
    errors = []
    for batch in itertools.islice(batches(cases, 8, seed=77), 20):
        t = torch.randint(1, 1001, (8,), generator=rng)
        noise = torch.randn(8, 3, 16, 16, generator=rng)
        with torch.no_grad():
            terms = loss_terms(net, batch, t, noise, CARD.schedule.build(), LOSSES["published"])
        errors.append(float(terms["noise_mse"]))
    # Answering 0 gives 1.00, with a deviation of 0.01.
    assert np.mean(errors) < 0.5


def test_same_seed_same_weights(cases, tmp_path):
    first = train(cases, tmp_path / "a", seed=3)
    torch.rand(5)  # what ran before must not matter
    again = train(cases, tmp_path / "b", seed=3)
    other = train(cases, tmp_path / "c", seed=4)
    assert same_weights(first, again)
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    assert not same_weights(first, other)


def test_batches_timesteps_and_noise_follow_the_seed(cases, tmp_path):
    """The first loss of an untrained network depends on nothing but the noise and the batch."""
    told = {}
    for seed in (0, 0, 1):
        train(
            cases,
            tmp_path / f"{len(told)}",
            steps=1,
            seed=seed,
            report=lambda step, terms: told.setdefault(len(told), dict(terms)),
        )
    assert told[0] == told[1]
    assert told[0]["noise_mse"] != told[2]["noise_mse"]


def record_weights(monkeypatch) -> list[list[torch.Tensor]]:
    """The trained weights after every step of the optimiser."""
    seen = []
    step = torch.optim.AdamW.step

    def recording(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        seen.append([p.detach().clone() for group in self.param_groups for p in group["params"]])
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    return seen


def test_saved_weights_are_the_moving_average(cases, tmp_path, monkeypatch):
    """avg_1 = w_1, avg_(k+1) = d avg_k + (1 - d) w_(k+1), d = min(0.6, (1 + k) / (10 + k))."""
    seen = record_weights(monkeypatch)
    net = train(cases, tmp_path, steps=20, ema_decay=0.6, learning_rate=1e-2)
    assert len(seen) == 20
    average = [w.double() for w in seen[0]]
    for k, weights in enumerate(seen[1:], start=1):
        d = min(0.6, (1 + k) / (10 + k))
        average = [d * a + (1 - d) * w.double() for a, w in zip(average, weights, strict=True)]
    moved = 0.0
    for got, expected, last in zip(net.parameters(), average, seen[-1], strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-7)
        moved = max(moved, float((expected - last).abs().max()))
    assert moved > 1e-4  # the average is not the last iterate
    assert same_weights(load_checkpoint(tmp_path)[0], net)


def test_a_short_run_forgets_its_first_weights(cases, tmp_path, monkeypatch):
    """0.999 to the fourth is 0.996: without warm-up the average would be the start of training."""
    seen = record_weights(monkeypatch)
    net = train(cases, tmp_path)
    first, last = seen[0], seen[-1]
    moved = [(p, a, b) for p, a, b in zip(net.parameters(), first, last, strict=True)]
    to_last = sum((p - b).norm().item() for p, _, b in moved)
    to_first = sum((p - a).norm().item() for p, a, _ in moved)
    assert to_last < 0.5 * to_first
    assert same_weights(load_checkpoint(tmp_path)[0], net)


def test_learning_rate_follows_its_schedule(cases, tmp_path, monkeypatch):
    used = []
    step = torch.optim.AdamW.step

    def recording(self, *args, **kwargs):
        used.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    train(cases, tmp_path, steps=6, warmup_steps=2, learning_rate=0.01)
    cosine = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert used == pytest.approx([0.005, 0.01, *(0.01 * c for c in cosine)], abs=1e-12)


def test_gradients_are_clipped(cases, tmp_path, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def recording(self, *args, **kwargs):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads)))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    train(cases, tmp_path / "a", steps=2, clip_norm=1e-3)
    train(cases, tmp_path / "b", steps=2, clip_norm=1e9)
    assert norms[:2] == pytest.approx([1e-3, 1e-3], rel=1e-3)
    assert min(norms[2:]) > 1e-2


def test_a_loss_that_is_not_finite_ends_the_run(cases, tmp_path):
    broken = np.array(cases[0].images)
    broken[:, :, 1] = np.nan
    with pytest.raises(NumericsError, match=r"nan at step 1") as caught:
        train([dataclasses.replace(cases[0], images=broken)], tmp_path, save_every=1)
    assert caught.value.code == "TD6003"
    assert not list(tmp_path.iterdir())


def test_checkpoint_says_what_it_is(cases, tmp_path):
    net = train(cases, tmp_path, steps=5, loss="calibrated", save_every=2)
    loaded, sidecar = load_checkpoint(tmp_path)
    assert same_weights(loaded, net)
    assert not loaded.training
    assert sidecar.network == NETWORK
    assert sidecar.card == CARD
    written = json.loads((tmp_path / SIDECAR).read_text())["training"]
    assert written["loss"] == "calibrated"
    assert (written["step"], written["steps"], written["seed"]) == (5, 5, 0)
    assert written["seconds"] > 0
    assert {k for k in written if k.startswith("smooth_")} == {
        f"smooth_{term}" for term in ("loss", "noise", "noise_mse", "dice", "bce")
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == [SIDECAR, WEIGHTS]


def test_smoothed_terms_average_the_steps(cases, tmp_path, monkeypatch):
    """Over fewer than a hundred steps the moving average is the plain mean."""
    import tadiff_train.fit.loop as module

    each, told = [], []

    def recording(*args):
        terms = loss_terms(*args)
        each.append({k: float(v.detach()) for k, v in terms.items()})
        return terms

    monkeypatch.setattr(module, "loss_terms", recording)
    train(cases, tmp_path, steps=5, report=lambda step, terms: told.append(dict(terms)))
    for k in range(5):
        for name in ("loss", "noise", "dice"):
            mean = np.mean([terms[name] for terms in each[: k + 1]])
            assert told[k][name] == pytest.approx(mean, rel=1e-9)


def test_a_run_exports_and_predicts(cases, case_folder, tmp_path):
    from tadiff_export.certify.reference import Settings
    from tadiff_export.package import export
    from tadiff_rt.forecast import Forecaster
    from tadiff_rt.readers import read_case

    card = ModelCard(
        name="toy",
        trained_on="discs",
        data=DataContract(size=32, spacing_mm=2.0, min_slices=4),
    )
    train(cases, tmp_path / "run", card=card)
    little = Settings(samples=2, num_steps=1)
    export(tmp_path / "run", tmp_path / "toy.tadiff", settings=little)
    forecast = Forecaster.load(tmp_path / "toy.tadiff", threads=1).predict(
        read_case(case_folder), day="+90", treatment="TMZ", samples=2, steps=2, slices="5"
    )
    assert forecast.mean.shape == (3, 24, 28, 10)
    assert forecast.mean.any()
    assert forecast.report["model"]["trained_on"] == "discs"
