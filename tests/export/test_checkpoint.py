"""Files as other programs write them -> the network; heads, schedule and card are not guessed."""

import hashlib
import json
import sys
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tadiff_export.checkpoint import Asked, load_any, read_card
from tadiff_rt.card import ModelCard, ScheduleConfig
from tadiff_rt.errors import ModelFileError, TadiffError, UsageError
from tadiff_rt.preprocess import DataContract
from tadiff_train.checkpoint import SIDECAR, WEIGHTS, load_checkpoint
from tadiff_train.network import NetworkConfig, TaDiffNet

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = NetworkConfig(num_res_blocks=1, num_heads=2, channel_mult=(1, 2), attention_strides=(2,))
HYPER = {
    "model_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "attention_resolutions": [2],
    "num_heads": 2,
    "max_T": 1000,
    "ddpm_schedule": "linear",
    "in_channels": 13,
    "diffusion_steps": 600,
}
FLAGS = Asked(num_heads=2, timesteps=1000, schedule="linear")


def filled(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """N(0, 1 / fan in) kernels, 1 + 0.1 N gains, 0.1 N biases, from the name alone."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    z = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape)
    if len(shape) > 1:
        return torch.from_numpy((z / np.sqrt(np.prod(shape[1:]))).astype(np.float32))
    return torch.from_numpy((float(name.endswith("weight")) + 0.1 * z).astype(np.float32))


def weights(config: NetworkConfig = TINY) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        net = TaDiffNet(config)
    return OrderedDict((k, filled(k, tuple(p.shape))) for k, p in net.state_dict().items())


def named(state, prefix="_model."):
    return OrderedDict((prefix + key, value) for key, value in state.items())


class DefaultMunch(dict):
    """As munch's: pickled by class name and items; the class is gone when the file is read."""

    __module__ = "munch"


def save(path: Path, root: object) -> Path:
    """torch.save with a module `munch` that exists for as long as it takes."""
    module = ModuleType("munch")
    module.DefaultMunch = DefaultMunch
    sys.modules["munch"] = module
    try:
        torch.save(root, path)
    finally:
        del sys.modules["munch"]
    return path


def lightning(state, hyper=HYPER, **more):
    return {
        "epoch": 7,
        "global_step": 900,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": named(state),
        "callbacks": {},
        "hyper_parameters": {"config": DefaultMunch(hyper)},
        **more,
    }


def same_weights(net: TaDiffNet, state) -> bool:
    got = net.state_dict()
    return got.keys() == state.keys() and all(torch.equal(got[k], state[k]) for k in got)


def refused(code: str, path: Path, asked: Asked = Asked()) -> TadiffError:
    with pytest.raises(TadiffError) as e:
        load_any(path, asked)
    assert e.value.code == code
    assert isinstance(e.value, UsageError if code.startswith("TD30") else ModelFileError)
    return e.value


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("ckpt") / "tadiff_811.ckpt", lightning(weights()))


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("bare") / "unet.pt", weights())


def test_a_lightning_file_states_everything(ckpt):
    loaded = load_any(ckpt, Asked())
    assert same_weights(loaded.net, weights())
    assert loaded.config == loaded.net.config == TINY
    assert not loaded.net.training
    assert loaded.source == "PyTorch Lightning 2.1.0 checkpoint"
    assert loaded.weights_sha256 == hashlib.sha256(ckpt.read_bytes()).hexdigest()
    assert loaded.card == ModelCard(
        name="tadiff_811",
        trained_on="not stated",
        data=DataContract(size=192, spacing_mm=1.0),
        schedule=ScheduleConfig(
            kind="linear", num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02
        ),
        x0_range=None,
        weights_licence="unstated",
    )
    place = "hyper_parameters.config"
    assert loaded.notes[-3:] == (
        "prefix _model. stripped from the names of the weights",
        f"num_heads 2 ({place}.num_heads), timesteps 1000 ({place}.max_T), "
        f"schedule linear ({place}.ddpm_schedule)",
        "as published, for the file does not say: beta_start 0.0001, beta_end 0.02, size 192, "
        "spacing_mm 1",
    )
    assert "munch.DefaultMunch" in loaded.notes[0]


FILES = {  # name -> (file, what it holds, flags that it needs, the format in words)
    "a fork's": (
        "last.pth",
        lambda state: {
            "epoch": 3,
            "model_state_dict": named(state),
            "optimizer_state_dict": torch.optim.AdamW(
                [torch.nn.Parameter(torch.ones(2))]
            ).state_dict(),
            "val_dice": np.float64(0.7),
        },
        FLAGS,
        "training checkpoint, model_state_dict",
    ),
    "bare": ("unet.pt", lambda state: state, FLAGS, "bare state dict"),
    "wrapped, with arguments": (
        "net.pt",
        lambda state: {"net": named(state, "module."), "args": Namespace(num_heads=2, T=1000)},
        Asked(schedule="linear"),
        "training checkpoint, net",
    ),
    "Lightning with one flag": (
        "x.ckpt",
        lambda state: lightning(state, {k: v for k, v in HYPER.items() if k != "num_heads"}),
        Asked(num_heads=2),
        "PyTorch Lightning 2.1.0 checkpoint",
    ),
    "averaged and raw": (
        "x.ckpt",
        lambda state: lightning({k: v + 1 for k, v in state.items()}, ema_state_dict=state),
        Asked(),
        "PyTorch Lightning 2.1.0 checkpoint",
    ),
    "AveragedModel": (
        "ema.pt",
        lambda state: {"n_averaged": torch.tensor(5), **named(state, "module.")},
        FLAGS,
        "bare state dict",
    ),
    "parameters": (
        "p.pt",
        lambda state: {k: torch.nn.Parameter(v) for k, v in state.items()},
        FLAGS,
        "bare state dict",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_every_program(name, tmp_path):
    file, layout, asked, words = FILES[name]
    state = weights()
    loaded = load_any(save(tmp_path / file, layout(state)), asked)
    assert same_weights(loaded.net, state)
    assert loaded.config == TINY
    assert loaded.source == words
    assert loaded.card.name == Path(file).stem


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors"])
def test_safetensors_without_a_sidecar_need_flags(name, tmp_path):
    state = weights()
    save_file(state, tmp_path / name)
    loaded = load_any(tmp_path / name, FLAGS)
    assert same_weights(loaded.net, state)
    assert loaded.source == "safetensors file"
    assert refused("TD4015", tmp_path / name).fix.endswith("--num-heads 4")


@pytest.mark.parametrize("size", ["A", "B"])
def test_published_sizes(size, tmp_path):
    blocks, heads = {"A": (2, 4), "B": (1, 1)}[size]
    config = NetworkConfig(num_res_blocks=blocks, num_heads=heads)
    hyper = {
        "num_heads": heads,
        "num_res_blocks": blocks,
        "channel_mult": (1, 2, 3, 4),
        "attention_resolutions": [8, 4],
        "max_T": 1000,
        "ddpm_schedule": "linear",
    }
    state = weights(config)
    loaded = load_any(save(tmp_path / "m.ckpt", lightning(state, hyper)), Asked())
    assert loaded.config == NetworkConfig(num_res_blocks=blocks, num_heads=heads)
    assert same_weights(loaded.net, state)


def test_the_published_size_c_from_a_bare_state_dict(tmp_path):
    config = NetworkConfig(model_channels=64, num_heads=8)
    state = weights(config)
    loaded = load_any(
        save(tmp_path / "m.pt", state), Asked(num_heads=8, timesteps=1000, schedule="linear")
    )
    assert loaded.config == config
    assert same_weights(loaded.net, state)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["tadiff_c32_r1_h1", "tadiff_c32_r2_h4"])
def test_golden_outputs_through_a_lightning_file(name, tmp_path):
    """Weights under the published names give the outputs recorded from the published code.

    With the other number of heads they do not: what the refusals are for.
    """
    spec = json.loads((GOLDEN / f"{name}.json").read_text())
    recorded = np.load(GOLDEN / f"{name}.npz")
    state = {k: filled(k, tuple(s)) for k, s in spec["state_dict"].items()}
    hyper = {**spec["config"], "in_channels": 13, "max_T": 1000, "ddpm_schedule": "linear"}
    loaded = load_any(save(tmp_path / "m.ckpt", lightning(state, hyper)), Asked())
    target = torch.from_numpy(recorded["i_tg"].astype(np.int64))
    inputs = (*golden_inputs(spec["batch"], spec["size"]), target)
    with torch.no_grad():
        y = loaded.net(*inputs).numpy()
    assert np.abs(y - recorded["y"]).max() <= 5e-5
    del hyper["num_heads"]
    path = save(tmp_path / "headless.ckpt", lightning(state, hyper))
    with torch.no_grad():
        wrong = load_any(path, Asked(num_heads=2)).net(*inputs).numpy()
    assert np.abs(wrong - recorded["y"]).max() > 1e-2


def golden_inputs(batch: int, size: int) -> tuple[torch.Tensor, ...]:
    key = int.from_bytes(hashlib.sha256(b"inputs").digest()[:8], "little")
    r = np.random.Generator(np.random.Philox(key=key))
    x = r.standard_normal((batch, 12, size, size)).astype(np.float32)
    t = r.integers(1, 1001, batch).astype(np.float32)
    days = np.sort(r.integers(0, 900, (batch, 4)), axis=1).astype(np.float32)
    treatments = r.integers(0, 4, (batch, 4)).astype(np.float32)
    return tuple(map(torch.from_numpy, (x, t, days, treatments)))


def test_loading_draws_no_random_numbers(bare, checkpoint):
    for path, asked in ((bare, FLAGS), (checkpoint, Asked())):
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        load_any(path, asked)
        assert torch.equal(torch.rand(1), expected)


def test_half_and_double_are_converted(tmp_path):
    half = {k: v.half() for k, v in weights().items()}
    loaded = load_any(save(tmp_path / "h.pt", half), FLAGS)
    assert same_weights(loaded.net, {k: v.float() for k, v in half.items()})
    assert any(f"float16 converted to float32 in {len(half)} of" in note for note in loaded.notes)
    double = {k: v.double() / 3 for k, v in weights().items()}
    loaded = load_any(save(tmp_path / "d.pt", double), FLAGS)
    assert same_weights(loaded.net, {k: v.float() for k, v in double.items()})
    assert any(f"float64 rounded to float32 in {len(half)} of" in note for note in loaded.notes)


def test_everything_unknown_is_asked_for_at_once(bare):
    error = refused("TD4015", bare)
    assert [finding.fix.rpartition("such as ")[2] for finding in error.findings] == [
        "--num-heads 4",
        "--timesteps 1000",
        "--schedule linear",
    ]
    assert {finding.where for finding in error.findings} == {str(bare)}
    assert "num_heads is not stated in the file" in error.message


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(num_heads=4), "num_heads: hyper_parameters.config.num_heads says 2, --num-heads"),
        (Asked(timesteps=600), "timesteps: hyper_parameters.config.max_T says 1000, --timesteps"),
    ],
)
def test_flags_may_not_contradict_the_file(asked, message, ckpt):
    assert message in refused("TD3060", ckpt, asked).message


def test_flags_may_repeat_the_file(ckpt):
    loaded = load_any(ckpt, FLAGS)
    assert loaded.config == TINY
    assert loaded.notes == load_any(ckpt, Asked()).notes  # the file stays the source


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"model_channels": 64},
            "config.model_channels is 64, the weights have model_channels 32",
        ),
        ({"num_res_blocks": 2}, "config.num_res_blocks is 2, the weights have num_res_blocks 1"),
        ({"channel_mult": [1, 2, 3, 4]}, "channel_mult is (1, 2, 3, 4), the weights have"),
        ({"attention_resolutions": [1, 2]}, "attention_resolutions is (1, 2), the weights have"),
        ({"attention_resolutions": [8, 4]}, "the weights have attention_strides (2,)"),
    ],
)
def test_hyper_parameters_may_not_contradict_the_weights(changed, message, tmp_path):
    path = save(tmp_path / "m.ckpt", lightning(weights(), {**HYPER, **changed}))
    assert message in refused("TD4014", path).message


def test_strides_that_no_level_has_contradict_nothing(tmp_path):
    hyper = {**HYPER, "attention_resolutions": [16, 2]}
    path = save(tmp_path / "m.ckpt", lightning(weights(), hyper))
    assert load_any(path, Asked()).config == TINY


def changed_weights(**changes):
    state = weights()
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


@pytest.mark.parametrize(
    ("code", "root", "message"),
    [
        ("TD4007", [1, 2], "found a list"),
        ("TD4007", {"state_dict": {"a": 1}}, "no state dict"),
        ("TD4014", changed_weights(out__2__bias=None), "1 missing: out.2.bias"),
        ("TD4014", changed_weights(extra=torch.ones(1)), "1 unexpected: extra"),
        (
            "TD4014",
            changed_weights(out__2__bias=torch.ones(8)),
            "out.2.bias (8,) instead of (7,)",
        ),
        ("TD4014", changed_weights(out__2__bias=torch.ones(7).long()), "out.2.bias (torch.int64)"),
        ("TD4014", {"conv1.weight": torch.ones(2)}, "conv1.weight"),
        ("TD4013", changed_weights(out__2__bias=torch.full((7,), torch.nan)), "out.2.bias"),
        ("TD4015", {"config": {"T": 5, "max_T": 6}, "net": weights()}, "two values of timesteps"),
        ("TD4019", lightning(weights(), {**HYPER, "ddpm_schedule": "cosine"}), "'cosine'"),
        (
            "TD4019",
            lightning(weights(), {**HYPER, "max_T": 0}),
            "no usable schedule: Input should be greater than or equal to 1",
        ),
        (
            "TD4019",
            lightning(weights(), {**HYPER, "max_T": 100_000, "beta_end": 0.9}),
            "no usable schedule: the noise schedule must be",
        ),
        ("TD4015", lightning(weights(), {**HYPER, "num_heads": 3}), "num_heads=3 does not divide"),
        ("TD4015", lightning(weights(), {**HYPER, "num_heads": 0}), "num_heads=0 does not divide"),
        ("TD4015", lightning(weights(), {**HYPER, "num_heads": "2"}), "num_heads is not stated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(code, root, message, tmp_path):
    path = save(tmp_path / "m.ckpt", root)
    error = refused(code, path)
    assert message in error.message
    assert error.where == str(path)


def test_files_that_are_not_there(tmp_path):
    refused("TD4001", tmp_path / "gone.ckpt")
    refused("TD4001", tmp_path)
    refused("TD4001", tmp_path / ("x" * 5000))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(num_heads=0), "--num-heads must be at least 1, got 0"),
        (Asked(timesteps=0), "--timesteps must be 1 to 100000, got 0"),
        (Asked(timesteps=100_001), "--timesteps must be 1 to 100000"),
        (Asked(schedule="cosine"), "--schedule must be 'linear'"),
        (Asked(name="a/b"), "--name must be of"),
        (Asked(name=""), "--name must be of"),
        (Asked(size=0), "--size must be at least 1 voxel"),
        (Asked(spacing_mm=0.0), "--spacing must be positive, got 0.0"),
        (Asked(spacing_mm=float("nan")), "--spacing must be positive"),
        (Asked(spacing_mm=float("inf")), "--spacing must be positive"),
    ],
)
def test_flags_out_of_range(asked, message, ckpt):
    assert message in refused("TD3038", ckpt, asked).message


def test_several_flags_out_of_range_are_all_named(ckpt):
    assert len(refused("TD3038", ckpt, Asked(num_heads=0, size=0)).findings) == 2


def test_flags_fill_the_card(ckpt):
    asked = Asked(name="mine", trained_on="SAILOR", size=96, spacing_mm=2.0)
    loaded = load_any(ckpt, asked)
    card = loaded.card
    assert (card.name, card.trained_on) == ("mine", "SAILOR")
    assert (card.data.size, card.data.spacing_mm) == (96, 2.0)
    assert loaded.notes[-1] == (
        "as published, for the file does not say: beta_start 0.0001, beta_end 0.02"
    )


def test_betas_of_the_file_are_the_cards(tmp_path):
    hyper = {**HYPER, "max_T": 500, "beta_start": 2e-4, "beta_end": 0.03}
    loaded = load_any(save(tmp_path / "m.ckpt", lightning(weights(), hyper)), Asked())
    assert loaded.card.schedule == ScheduleConfig(
        num_train_timesteps=500, beta_start=2e-4, beta_end=0.03
    )
    assert "beta" not in loaded.notes[-1]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("epoch=3-step=100.ckpt", "epoch_3-step_100"),
        ("…modèle 1….pt", "mod_le_1"),
        ("___.pt", "model"),
        ("x" * 90 + ".pt", "x" * 64),
    ],
)
def test_the_cards_name_is_the_files_made_legal(file, name, bare, tmp_path):
    path = tmp_path / file
    path.write_bytes(bare.read_bytes())
    assert load_any(path, FLAGS).card.name == name


CARD = ModelCard(
    name="known",
    trained_on="SAILOR",
    data=DataContract(size=96, spacing_mm=2.0),
    schedule=ScheduleConfig(num_train_timesteps=1000),
    x0_range=(0.0, 1.0),
    start_lam=-2.0,
    weights_licence="CC-BY-4.0",
)


def card_file(folder: Path, card: ModelCard = CARD, **fields) -> Path:
    path = folder / "card.json"
    path.write_text(card.model_copy(update=fields).model_dump_json())
    return path


def test_a_card_states_all_but_the_heads(bare, tmp_path):
    card = card_file(tmp_path)
    loaded = load_any(bare, Asked(card=card, num_heads=2))
    assert loaded.card == CARD
    assert not any("as published" in note for note in loaded.notes)
    assert "timesteps 1000 (--card)" in loaded.notes[-1]
    (finding,) = refused("TD4015", bare, Asked(card=card)).findings
    assert "num_heads" in finding.message


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"timesteps": 999}, "timesteps: --card says 1000, --timesteps says 999"),
        ({"name": "other"}, "name: --card says known, --name says other"),
        ({"trained_on": "x"}, "trained_on: --card says SAILOR, --trained-on says x"),
        ({"size": 64}, "size: --card says 96, --size says 64"),
        ({"spacing_mm": 1.0}, "spacing_mm: --card says 2.0, --spacing says 1.0"),
    ],
)
def test_flags_may_not_contradict_the_card(asked, message, bare, tmp_path):
    asked = Asked(card=card_file(tmp_path), **({"num_heads": 2} | asked))
    assert message in refused("TD3060", bare, asked).message


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (ScheduleConfig(num_train_timesteps=600), "config.max_T says 1000, --card says 600"),
        (ScheduleConfig(beta_end=0.03), "config.beta_end says 0.02, --card says 0.03"),
    ],
)
def test_the_card_may_not_contradict_the_file(schedule, message, tmp_path):
    path = save(tmp_path / "m.ckpt", lightning(weights(), {**HYPER, "beta_end": 0.02}))
    asked = Asked(card=card_file(tmp_path, schedule=schedule))
    assert message in refused("TD3060", path, asked).message


WHOLE = json.loads(CARD.model_dump_json())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "EOF while parsing"),
        ("[]", "Input should be an object"),
        ("\xff", "Invalid JSON"),
        (json.dumps({**WHOLE, "colour": 1}), "colour: Extra inputs are not permitted"),
        (json.dumps({**WHOLE, "name": "a/b"}), "name: String should match pattern"),
        (json.dumps({**WHOLE, "schedule": {"kind": "cosine"}}), "schedule.kind: Input should be"),
        (json.dumps({**WHOLE, "start_lam": 99.0}), "start_lam must be in"),
        (
            json.dumps({**WHOLE, "schedule": {"beta_end": 0.9, "num_train_timesteps": 100_000}}),
            "schedule: the noise schedule must be a vector",
        ),
        (
            json.dumps({k: v for k, v in WHOLE.items() if k not in ("x0_range", "schedule")}),
            "it leaves out schedule, x0_range",
        ),
    ],
    ids=lambda value: None if value[:1] in ("{", "[", "", "\xff") else value,
)
def test_cards_that_are_none(text, message, tmp_path):
    path = tmp_path / "card.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelFileError) as e:
        read_card(path)
    assert e.value.code == "TD4018"
    assert e.value.where == str(path)
    assert message in e.value.message


def test_a_card_that_cannot_be_read(tmp_path):
    with pytest.raises(ModelFileError, match=r"TD4018: card\.json is no model card: it cannot be"):
        read_card(tmp_path / "card.json")


def test_a_run_folder_is_read_by_its_own_sidecar(checkpoint):
    for path in (checkpoint, checkpoint / WEIGHTS):
        loaded = load_any(path, Asked())
        sidecar = json.loads((checkpoint / SIDECAR).read_text())
        assert loaded.card.model_dump(mode="json") == sidecar["card"]
        assert loaded.config.model_dump(mode="json") == sidecar["network"]
        assert loaded.weights_sha256 == sidecar["weights_sha256"]
        assert loaded.source == "checkpoint of tadiff-train"
        assert loaded.notes == ()
        assert not loaded.net.training


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(num_heads=4), "num_heads: model.json says 2, --num-heads says 4"),
        (Asked(timesteps=600), "timesteps: model.json says 1000, --timesteps says 600"),
        (Asked(name="other"), "name: model.json says tiny, --name says other"),
        (Asked(trained_on="x"), "--trained-on says x"),
        (Asked(size=64), "size: model.json says 32, --size says 64"),
        (Asked(spacing_mm=1.0), "spacing_mm: model.json says 2.0, --spacing says 1.0"),
    ],
)
def test_flags_may_not_contradict_a_run_folder(asked, message, checkpoint):
    assert message in refused("TD3060", checkpoint, asked).message


def test_flags_and_cards_may_repeat_a_run_folder(checkpoint, tmp_path):
    card = load_any(checkpoint, Asked()).card
    asked = Asked(num_heads=2, timesteps=1000, schedule="linear", name="tiny", size=32)
    assert load_any(checkpoint, asked).card == card
    assert load_any(checkpoint, Asked(card=card_file(tmp_path, card))).card == card
    other = card_file(tmp_path, card, weights_licence="MIT", max_day=1)
    error = refused("TD3060", checkpoint, Asked(card=other))
    assert [finding.message for finding in error.findings] == [
        "max_day: model.json says 1100, --card says 1",
        "weights_licence: model.json says unstated, --card says MIT",
    ]


def test_training_reads_no_files_of_other_programs(bare):
    with pytest.raises(ModelFileError) as e:
        load_checkpoint(bare)
    assert (e.value.code, e.value.where) == ("TD4006", str(bare))
    assert e.value.message == "unet.pt is not a checkpoint of tadiff-train"
    assert e.value.fix == (
        "`tadiff-export` reads files of other programs; here a run folder is needed, which holds "
        "model.safetensors and model.json"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_run_folder_of_another_precision_becomes_float32(dtype, checkpoint, tmp_path):
    net = load_checkpoint(checkpoint)[0]
    state = {k: v.detach().to(dtype) for k, v in net.state_dict().items()}
    save_file(state, tmp_path / WEIGHTS)
    sidecar = json.loads((checkpoint / SIDECAR).read_text())
    sidecar["weights_sha256"] = hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()
    (tmp_path / SIDECAR).write_text(json.dumps(sidecar))
    loaded = load_any(tmp_path, Asked()).net
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in loaded.parameters())
    assert same_weights(loaded, {k: v.float() for k, v in state.items()})


def test_damage_to_a_run_folder_stays_its_own_error(checkpoint, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for file in (WEIGHTS, SIDECAR):
        (run / file).write_bytes((checkpoint / file).read_bytes())
    data = bytearray((run / WEIGHTS).read_bytes())
    data[-3] ^= 4
    (run / WEIGHTS).write_bytes(data)
    refused("TD4017", run)


def test_nothing_is_printed(ckpt, capsys):
    load_any(ckpt, Asked())
    assert capsys.readouterr() == ("", "")
