"""What a run shows of itself: held-out loss, best weights, curves, sample pictures."""

import dataclasses
import importlib.util
import json
import math

import numpy as np
import pytest
import torch

from tadiff_rt.schedule import NoiseSchedule
from tadiff_train.checkpoint import load_checkpoint
from tadiff_train.data.windows import Windows, collate
from tadiff_train.diffusion import LOSSES, loss_terms
from tadiff_train.fit import FitConfig, Machine, Processes, learning_rate_at
from tadiff_train.fit.curves import CURVES, Curves, cut_back
from tadiff_train.fit.heldout import HeldOut, windows_of
from tadiff_train.fit.sample import forecast, sample_picture, window_to_draw
from tadiff_train.fit.trainer import Trainer
from tests.train.toy_runs import CARD, NETWORK, SHORT, discs, same_weights, train

CPU = Processes(torch.device("cpu"))


def trainer_of(**changes) -> Trainer:
    config = dataclasses.replace(SHORT, start="pass_through", **changes)
    return Trainer(NETWORK, config, CARD.schedule.build(), CPU)


def lines_of(out):
    return [json.loads(line) for line in (out / CURVES).read_text().splitlines()]


def test_held_out_loss_is_the_mean_over_fixed_windows_and_levels(cases):
    """Written out: 4 windows a patient, 8 middles of equal parts of 1 ... 400, noise by seed."""
    trainer = trainer_of()
    schedule = CARD.schedule.build()
    held_out = HeldOut([*cases, discs(2, 1)], schedule, 400, batch_size=3)
    assert held_out.sizes == [3, 3, 2]
    total, number = 0.0, 0
    for k, batch in enumerate(held_out.batches):
        rng = torch.Generator().manual_seed(k)
        for part in range(8):
            t = torch.full((len(batch.t),), 50 * part + 25 + 1)
            noise = torch.randn(len(batch.t), 3, 16, 16, generator=rng)
            with torch.no_grad():
                terms = loss_terms(
                    trainer.averaged, batch.batch, t, noise, schedule, LOSSES["unbiased"]
                )
            total += float(terms["loss"]) * len(batch.t)
            number += len(batch.t)
    assert number == 64
    assert held_out.terms(trainer)["loss"] == pytest.approx(total / number, rel=1e-5)
    assert held_out.terms(trainer) == held_out.terms(trainer)
    assert HeldOut([], schedule, 400, 3).terms(trainer) == {}


def test_held_out_windows_are_those_of_forecasts():
    case = discs(3)
    for window in windows_of(case, 1000, 12):
        sessions = (window.days / 40).long().tolist()
        assert int(window.target) == 3
        assert sessions[:3] == [max(sessions[3] - k, 0) for k in (3, 2, 1)]
        assert any(
            np.array_equal(window.images.numpy(), case.images[at][sessions]) for at in range(3)
        )


def test_curves_say_what_happened(cases, tmp_path):
    told = {}
    net = train(
        cases, tmp_path, steps=6, save_every=4, log_every=3, learning_rate=1e-2,
        validation=[discs(8)], report=lambda step, terms: told.update({step: dict(terms)}),
    )  # fmt: skip
    lines = {line["step"]: line for line in lines_of(tmp_path)}
    assert list(lines) == [3, 4, 6]
    config = FitConfig(steps=6, warmup_steps=2)
    for step, line in lines.items():
        assert {name: line[name] for name in told[step]} == told[step]
        assert line["learning_rate"] == pytest.approx(1e-2 * learning_rate_at(step - 1, config))
        assert line["gradient_norm"] > 0
        assert ("val_loss" in line) == (step in (4, 6))
    rate = 2 * (6 - 4) / (lines[6]["seconds"] - lines[4]["seconds"])
    assert lines[6]["windows_per_second"] == pytest.approx(rate, rel=1e-6)
    # The last held-out loss is that of the weights that were saved.
    trainer = trainer_of()
    trainer.ema.module.load_state_dict(net.state_dict())
    held_out = HeldOut([discs(8)], CARD.schedule.build(), 1000, 2)
    assert held_out.terms(trainer)["loss"] == pytest.approx(lines[6]["val_loss"], rel=1e-6)


def test_best_holds_the_save_with_the_least_held_out_loss(cases, tmp_path, monkeypatch):
    losses = iter([0.5, 0.3, 0.4])
    monkeypatch.setattr(HeldOut, "terms", lambda self, trainer: {"loss": next(losses)})
    train(cases, tmp_path, steps=6, save_every=2, learning_rate=1e-2, validation=[discs(8)])
    best, sidecar = load_checkpoint(tmp_path / "best")
    assert sidecar.training["step"] == 4
    assert sidecar.training["best_val_loss"] == 0.3
    last, sidecar = load_checkpoint(tmp_path)
    assert (sidecar.training["step"], sidecar.training["best_val_loss"]) == (6, 0.3)
    assert not same_weights(best, last)
    monkeypatch.undo()
    train(cases, tmp_path / "none", steps=2)
    assert not (tmp_path / "none" / "best").exists()


def test_cut_back_keeps_whole_lines_up_to_a_step(tmp_path):
    path = tmp_path / CURVES
    cut_back(path, 3)
    assert not path.exists()
    kept = '{"step": 1}\n{"step": 3}\n'
    path.write_text(kept + '{"step": 4}\nnot json\n{"no": 1}\n{"step": 2')
    cut_back(path, 3)
    assert path.read_text() == kept


def test_without_tensorboard_it_says_so_once(cases, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "tensorboard" else find(name)
    )
    train(cases, tmp_path / "a", log_every=1, machine=Machine(device="cpu"))
    assert capsys.readouterr().err.count("pip install tensorboard") == 1
    train(cases, tmp_path / "b", machine=Machine(device="cpu", quiet=True))
    assert capsys.readouterr().err == ""
    assert len(lines_of(tmp_path / "a")) == 4


def test_what_is_not_finite_is_null(tmp_path):
    curves = Curves(tmp_path, 0, quiet=True)
    curves.line(1, {"gradient_norm": math.inf, "loss": 0.5})
    curves.close()
    assert lines_of(tmp_path) == [{"step": 1, "gradient_norm": None, "loss": 0.5}]


class Exact(torch.nn.Module):
    """Knows the target: eps = (x_t - sqrt(alpha_bar) x_0) / sqrt(1 - alpha_bar)."""

    def __init__(self, window, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.window, self.schedule, self.seen = window, schedule, []

    def forward(self, x, t, days, treatments, target):
        assert torch.equal(x[:, :9], self.window.images[None, :3].flatten(1, 2))
        assert torch.equal(days[0], self.window.days)
        self.seen.append(x[0, 9:].clone())
        a = self.schedule.alpha_bar(float(t[0]))
        eps = (x[:, 9:] - a**0.5 * self.window.images[3]) / (1 - a) ** 0.5
        logits = torch.stack([torch.full((16, 16), float(s) - 1.5) for s in range(4)])
        return torch.cat([logits[None], eps], dim=1)


@pytest.mark.parametrize("start_lam", [None, -2.25])
def test_a_sample_with_the_exact_noise_is_the_truth(start_lam):
    card = CARD.model_copy(update={"start_lam": start_lam})
    window = window_to_draw([discs(0, 1), discs(4)], 1000)
    net = Exact(window, card.schedule.build())
    image, mask = forecast(net, window, card)
    torch.testing.assert_close(image, window.images[3], rtol=0, atol=2e-3)
    torch.testing.assert_close(mask[:, 0, 0], torch.sigmoid(torch.arange(4) - 1.5))
    assert len(net.seen) == 10
    if start_lam is None:
        assert torch.equal(net.seen[0], window.noise)
    else:  # the noised last source, at this half log-SNR
        a = 1 / (1 + math.exp(-2 * start_lam))
        expected = a**0.5 * window.images[2] + (1 - a) ** 0.5 * window.noise
        torch.testing.assert_close(net.seen[0], expected, rtol=1e-4, atol=1e-4)


def test_the_window_drawn_has_the_largest_tumour():
    case = discs(4)
    drawn = window_to_draw([case], 1000)
    sizes = [int(w.masks[3].sum()) for w in windows_of(case, 1000, 8)]
    assert int(drawn.masks[3].sum()) == max(sizes) > min(sizes)


def test_pictures(cases, tmp_path):
    train(cases, tmp_path, picture_every=2, steps=4)
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [p.name for p in pictures] == ["step-0000002.png", "step-0000004.png"]
    assert pictures[0].read_bytes().startswith(b"\x89PNG")
    window = window_to_draw(cases, 1000)
    net = Exact(window, CARD.schedule.build())
    pixels = sample_picture(net, window, CARD, "title")[1]
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    # Contours: of the truth's tumour, in blue; grey and black elsewhere.
    blue = (pixels[..., 2].astype(int) - pixels[..., 0]) > 80
    assert blue.any(axis=0).sum() > 20


def test_pictures_change_no_weight(cases, tmp_path):
    a = train(cases, tmp_path / "a", picture_every=1)
    b = train(cases, tmp_path / "b", validation=[discs(9)], save_every=1)
    assert same_weights(a, b)


def test_no_average_saves_the_last_weights(cases, tmp_path):
    trainer = trainer_of(ema_decay=0.0)
    windows = Windows(cases, seed=0, num_timesteps=1000)
    stream = iter([collate([windows[2 * k], windows[2 * k + 1]]) for k in range(3)])
    for step in (1, 2, 3):
        trainer.step(step, stream)
    assert same_weights(trainer.averaged, trainer.net)
