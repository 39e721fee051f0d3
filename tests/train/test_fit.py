"""Training on a toy cohort: it learns, repeats itself, and leaves a checkpoint that exports."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from tadiff_rt.card import ModelCard
from tadiff_rt.errors import NumericsError, OutputError, UsageError
from tadiff_rt.preprocess import DataContract
from tadiff_train.checkpoint import SIDECAR, WEIGHTS, load_checkpoint
from tadiff_train.data.windows import Windows, collate
from tadiff_train.diffusion import LOSSES, loss_terms, validation_terms
from tadiff_train.fit import FitConfig, config_of, learning_rate_at, num_timesteps, require_new_run
from tadiff_train.fit.run import STATE
from tadiff_train.network import TaDiffNet
from tests.train.toy_runs import CARD, NETWORK, discs, same_weights, train


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


NAMED = (
    "loss", "target_slots", "sources", "augmentation", "precision", "timesteps", "start",
)  # fmt: skip


@pytest.mark.parametrize("field", NAMED)
def test_unknown_values_are_refused(field):
    with pytest.raises(UsageError, match=f"TD3034: {field} must be one of .*, got 'dice'"):
        FitConfig(**{field: "dice"})


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(UsageError, match=r"TD3080: start pass_through needs .* got published"):
        FitConfig(target_slots="published")
    with pytest.raises(UsageError, match="TD3039: a batch of 8 cannot be added up in 3 passes"):
        FitConfig(accumulate=3)


def test_presets():
    """The published choices, as the specification of the published code lists them."""
    published = config_of("published", {"steps": 7, "learning_rate": None})
    assert (published.learning_rate, published.warmup_steps, published.ema_decay) == (
        2.5e-4, 1000, 0.0,
    )  # fmt: skip
    assert (published.weight_decay, published.clip_norm) == (3e-5, 1.5)
    assert (published.loss, published.target_slots, published.sources) == ("published",) * 3
    assert (published.augmentation, published.timesteps) == ("none", "all")
    assert (published.start, published.precision, published.steps) == ("published", "fp32", 7)
    assert config_of("published", {"learning_rate": 5e-3}).learning_rate == 5e-3
    assert config_of("default", {}) == FitConfig()
    with pytest.raises(UsageError, match="TD3034: preset must be one of default, published"):
        config_of("paper", {})


@pytest.mark.parametrize("file", [SIDECAR, STATE])
def test_a_folder_with_a_run_is_refused(tmp_path, file):
    require_new_run(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / file).write_text("{}")
    with pytest.raises(OutputError, match="TD8001"):
        require_new_run(tmp_path)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError):
            require_new_run(out)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_loss_falls(cases, tmp_path, loss):
    told = []
    net = train(
        cases,
        tmp_path,
        steps=60,
        loss=loss,
        learning_rate=3e-3,
        report=lambda step, terms: told.append((step, dict(terms))),
    )
    assert [step for step, _ in told] == list(range(1, 61))
    # An untrained network answers 0: its noise error is the noise's own square, 1 on average.
    assert told[0][1]["noise_mse"] == pytest.approx(1, abs=0.12)
    assert ("bce" in told[-1][1]) == (loss != "published")
    # Measured apart: the terms of a step depend on its timesteps more than on what was learned.
    batch = collate([windows_of(cases)[k] for k in range(16)]).batch
    untrained = TaDiffNet(NETWORK)
    before, after = (
        validation_terms(n, batch, CARD.schedule.build(), LOSSES[loss]) for n in (untrained, net)
    )
    assert after["loss"] < 0.8 * before["loss"]


def windows_of(cases, **options) -> Windows:
    return Windows(cases, **{"seed": 0, "num_timesteps": 1000, **options})


@pytest.mark.slow
def test_published_loss_learns_to_denoise(cases, tmp_path):
    net = train(
        cases, tmp_path, steps=400, batch_size=4, learning_rate=2e-3, warmup_steps=20,
        loss="published",
    )  # fmt: skip
    # Measured apart from training: noise the network has not seen, at all levels.
    windows = windows_of(cases, seed=77)
    w = collate([windows[k] for k in range(160)])
    with torch.no_grad():
        terms = loss_terms(net, w.batch, w.t, w.noise, CARD.schedule.build(), LOSSES["published"])
    # Answering 0 gives 1.00, with a deviation of 0.01.
    assert float(terms["noise_mse"]) < 0.5


@pytest.mark.slow
def test_four_patients_are_learned_by_heart(tmp_path):
    """Noise error below 0.1 and Dice of the target's mask above 0.9 on the training patients."""
    four = [discs(k) for k in range(4)]
    net = train(
        four, tmp_path, steps=250, batch_size=4, learning_rate=4e-3, warmup_steps=20,
        loss="unbiased", ema_decay=0.95, start="pass_through",
    )  # fmt: skip
    windows = windows_of(four, seed=99)
    w = collate([windows[k] for k in range(200)])
    schedule = CARD.schedule.build()
    with torch.no_grad():
        terms = loss_terms(net, w.batch, w.t, w.noise, schedule, LOSSES["unbiased"])
        assert float(terms["noise_mse"]) < 0.1
        low = torch.full_like(w.t, 20)  # where the target can be seen: segmentation proper
        a = torch.tensor(schedule.alphas_cumprod)[low - 1, None, None, None].float()
        images = w.images.clone()
        images[:, 3] = a.sqrt() * images[:, 3] + (1 - a).sqrt() * w.noise
        y = net(images.flatten(1, 2), low.float(), w.days, w.treatments, w.target)
    drawn, truth = y[:, 3] > 0, w.masks[:, 3] > 0.5
    dice = 2 * (drawn & truth).sum((1, 2)) / (drawn.sum((1, 2)) + truth.sum((1, 2)))
    assert float(dice.mean()) > 0.9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_arithmetic_of_a_run(cases, tmp_path, precision):
    """Written out once more, to the bit: what one run computes, another release must, too."""
    got = train(
        cases, tmp_path, precision=precision, start="pass_through", target_slots="future",
        loss="calibrated", learning_rate=1e-2, ema_decay=0.5, seed=3,
    )  # fmt: skip
    from tadiff_train.start import pass_noise_through

    torch.manual_seed(3)
    net = TaDiffNet(NETWORK).to(memory_format=torch.channels_last)
    pass_noise_through(net)
    average = [p.detach().clone() for p in net.parameters()]
    adam = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=3e-5)
    windows = windows_of(cases, seed=3)
    for step, factor in enumerate([0.5, 1.0, 1.0, 0.5]):
        adam.param_groups[0]["lr"] = 1e-2 * factor
        w = collate([windows[2 * step], windows[2 * step + 1]])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            terms = loss_terms(
                net, w.batch, w.t, w.noise, CARD.schedule.build(), LOSSES["calibrated"]
            )
        adam.zero_grad()
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.5)
        adam.step()
        keep = 0.0 if step == 0 else min(0.5, (1 + step) / (10 + step))
        for a, p in zip(average, net.parameters(), strict=True):
            a.lerp_(p.detach(), 1 - keep)
    for p, a in zip(got.parameters(), average, strict=True):
        assert torch.equal(p, a)


def test_bf16_stays_near_fp32(cases, tmp_path):
    """Eight bits of mantissa: a per cent or so of a loss, but not the same."""
    told = {"fp32": {}, "bf16": {}}
    for precision, terms in told.items():
        train(
            cases, tmp_path / precision, precision=precision, steps=8,
            report=lambda step, smooth, terms=terms: terms.update(smooth),
        )  # fmt: skip
    assert told["bf16"] != told["fp32"]
    for name, value in told["fp32"].items():
        assert told["bf16"][name] == pytest.approx(value, rel=0.03)


def test_fp16_needs_a_gpu(cases, tmp_path):
    with pytest.raises(UsageError, match="TD3082: precision fp16 needs a CUDA device"):
        train(cases, tmp_path, precision="fp16")
    assert not list(tmp_path.iterdir())


def test_forecasts_are_trained_for_the_levels_they_pass():
    """start_lam = log(alpha / sigma) of timestep 600: no noisier one is drawn."""
    schedule = CARD.schedule.build()
    lam = 0.5 * math.log(schedule.alphas_cumprod[599] / (1 - schedule.alphas_cumprod[599]))
    card = CARD.model_copy(update={"start_lam": lam + 1e-9})
    assert num_timesteps(card, FitConfig(timesteps="forecast")) == 600
    assert num_timesteps(card, FitConfig(timesteps="all")) == 1000
    assert num_timesteps(CARD, FitConfig(timesteps="forecast")) == 1000


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
    assert not [p for p in tmp_path.iterdir() if p.name in (SIDECAR, WEIGHTS, STATE)]


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
    left = {p.name for p in tmp_path.iterdir()} - {"tensorboard"}
    assert left == {SIDECAR, WEIGHTS, STATE, "run.json"}


def test_smoothed_terms_average_the_steps(cases, tmp_path, monkeypatch):
    """Over fewer than a hundred steps the moving average is the plain mean."""
    import tadiff_train.fit.trainer as module

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


@pytest.mark.slow
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
