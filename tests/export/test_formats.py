"""Weights and hyper-parameters found in every layout of files, from plain values."""

import time

import pytest
import torch

from tadiff_export.architecture import expected_shapes
from tadiff_export.formats import as_float32, find_weights, source_of, split_prefix
from tadiff_export.hyperparameters import QUANTITIES, find_settings
from tadiff_export.tensors import Inert
from tadiff_rt.errors import ModelFileError
from tadiff_train.network import NetworkConfig

CONFIG = NetworkConfig(num_res_blocks=1, channel_mult=(1,), attention_strides=())
SHAPES = expected_shapes(CONFIG)


def weights(seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=rng) for key, shape in SHAPES.items()}


RAW, AVERAGE = weights(1), weights(2)
COUNT = torch.tensor(7)


def named(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def same_tensors(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def refused(code, call, *args) -> str:
    with pytest.raises(ModelFileError) as e:
        call(*args)
    assert e.value.code == code
    return str(e.value)


OPTIMISER = {
    "state": {i: {"step": COUNT, "exp_avg": torch.ones(3)} for i in range(3)},
    "param_groups": [{"lr": 1e-3}],
}
LAYOUTS = {  # name -> (root, weights meant, notes)
    "bare": (RAW, RAW, []),
    "Lightning": (
        {
            "epoch": 3,
            "state_dict": named(RAW, "_model."),
            "optimizer_states": [OPTIMISER],
            "callbacks": {"EarlyStopping": {"best": COUNT}},
            "pytorch-lightning_version": "2.1.0",
        },
        RAW,
        ["prefix _model. stripped from the names of the weights"],
    ),
    "a fork's": (
        {
            "epoch": 3,
            "model_state_dict": named(RAW, "_model."),
            "optimizer_state_dict": OPTIMISER,
            "val_dice": 0.5,
        },
        RAW,
        ["prefix _model. stripped from the names of the weights"],
    ),
    "model": ({"model": RAW, "optimizer": OPTIMISER}, RAW, []),
    "net": ({"net": RAW}, RAW, []),
    "deeper": ({"checkpoint": {"weights": {"net": RAW}}}, RAW, []),
    "DataParallel in Lightning": (
        {"state_dict": named(RAW, "_model.module.")},
        RAW,
        ["prefix _model.module. stripped from the names of the weights"],
    ),
    "compiled": (
        named(RAW, "_orig_mod."),
        RAW,
        ["prefix _orig_mod. stripped from the names of the weights"],
    ),
    "net. and model.": (
        named(RAW, "net.model."),
        RAW,
        ["prefix net.model. stripped from the names of the weights"],
    ),
    "ema": (
        {"model": RAW, "ema": AVERAGE},
        AVERAGE,
        ["averaged (EMA) weights are used: ema, not the raw ones of model"],
    ),
    "ema_state_dict": (
        {"ema_state_dict": named(AVERAGE, "_model."), "model_state_dict": named(RAW, "_model.")},
        AVERAGE,
        [
            "averaged (EMA) weights are used: ema_state_dict, names with _model., "
            "not the raw ones of model_state_dict, names with _model.",
            "prefix _model. stripped from the names of the weights",
        ],
    ),
    "model_ema": (
        {"model_ema": AVERAGE, "state_dict": RAW},
        AVERAGE,
        ["averaged (EMA) weights are used: model_ema, not the raw ones of state_dict"],
    ),
    "state_dict_ema": (
        {"state_dict": RAW, "state_dict_ema": named(AVERAGE, "module.")},
        AVERAGE,
        [
            "averaged (EMA) weights are used: state_dict_ema, names with module., "
            "not the raw ones of state_dict",
            "prefix module. stripped from the names of the weights",
        ],
    ),
    "shadow, with its numbers": (
        {"net": RAW, "ema": {"decay": 0.999, "num_updates": 5, "shadow": AVERAGE}},
        AVERAGE,
        ["averaged (EMA) weights are used: ema.shadow, not the raw ones of net"],
    ),
    "numbers among the average": (
        {"net": RAW, "ema": {"decay": 0.999, **AVERAGE}},
        AVERAGE,
        [
            "averaged (EMA) weights are used: ema, not the raw ones of net",
            "left out, no weights: decay",
        ],
    ),
    "average alone": (
        {"ema": AVERAGE},
        AVERAGE,
        ["averaged (EMA) weights are used: ema"],
    ),
    "AveragedModel": (
        {"n_averaged": COUNT, **named(AVERAGE, "module.")},
        AVERAGE,
        [
            "averaged (EMA) weights are used: the top of the file, names with module.",
            "prefix module. stripped from the names of the weights",
            "left out, no weights: n_averaged",
        ],
    ),
    "AveragedModel inside Lightning": (
        {
            "state_dict": {
                **named(RAW, "_model."),
                **named(AVERAGE, "net.module."),
                "net.n_averaged": COUNT,
            }
        },
        AVERAGE,
        [
            "averaged (EMA) weights are used: state_dict, names with net.module., "
            "not the raw ones of state_dict, names with _model.",
            "prefix net.module. stripped from the names of the weights",
            "left out, no weights: net.n_averaged",
        ],
    ),
    "raw and ema. in one dictionary": (
        {"state_dict": {**named(RAW, "_model."), **named(AVERAGE, "ema.")}},
        AVERAGE,
        [
            "averaged (EMA) weights are used: state_dict, names with ema., "
            "not the raw ones of state_dict, names with _model.",
            "prefix ema. stripped from the names of the weights",
        ],
    ),
    "ema_pytorch": (
        {
            **named(RAW, "online_model."),
            **named(AVERAGE, "ema_model."),
            "initted": torch.tensor(True),
            "step": COUNT,
        },
        AVERAGE,
        [
            "averaged (EMA) weights are used: the top of the file, names with ema_model., "
            "not the raw ones of the top of the file, names with online_model.",
            "prefix ema_model. stripped from the names of the weights",
            "left out, no weights: initted, step",
        ],
    ),
    "Lightning's WeightAveraging": (
        {
            "state_dict": named(AVERAGE, "_model."),
            "current_model_state": named(RAW, "_model."),
            "averaging_state": {"n_averaged": COUNT},
        },
        AVERAGE,
        [
            "averaged (EMA) weights are used: state_dict, names with _model., "
            "not the raw ones of current_model_state, names with _model.",
            "prefix _model. stripped from the names of the weights",
        ],
    ),
    "an object with attributes": (
        Inert("argparse.Namespace", state={"state_dict": RAW}),
        RAW,
        [],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_every_layout(layout):
    root, expected, notes = LAYOUTS[layout]
    found = find_weights(root)
    assert same_tensors(found.state, expected)
    assert list(found.notes) == notes


@pytest.mark.parametrize(
    ("name", "prefix", "own"),
    [
        ("time_embed.0.weight", "", "time_embed.0.weight"),
        ("_model.out.0.bias", "_model.", "out.0.bias"),
        ("module.net.model.out.0.bias", "module.net.model.", "out.0.bias"),
        ("model_ema.module.out.0.bias", "model_ema.module.", "out.0.bias"),
        ("generator.out.0.bias", "", "generator.out.0.bias"),
        ("schema.out.0.bias", "", "schema.out.0.bias"),
        ("model", "", "model"),
    ],
)
def test_only_known_prefixes_are_stripped(name, prefix, own):
    assert split_prefix(name) == (prefix, own)


def test_one_state_dict_under_two_names_is_one():
    """A pickle stores it once; equal copies are not compared, and refused."""
    assert same_tensors(find_weights({"net": RAW, "model": RAW}).state, RAW)
    assert "2 state dicts" in refused("TD4007", find_weights, {"net": RAW, "model": dict(RAW)})


def test_a_tensor_that_is_not_the_networks_stays_under_its_name():
    """So that the comparison with the network can refuse it."""
    extra = {"loss.weight": torch.ones(2), "_model.head.weight": torch.ones(2)}
    found = find_weights({"state_dict": {**named(RAW, "_model."), **extra}})
    assert found.state.keys() == {*RAW, "loss.weight", "head.weight"}


def test_numbers_with_a_counters_name_but_a_tensors_size_stay():
    state = find_weights({**RAW, "step": torch.ones(3)}).state
    assert state.keys() == {*RAW, "step"}


def cyclic():
    root = {"config": {}}
    root["config"]["again"] = root
    return root


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ({}, "found a dict of nothing"),
        ([RAW], "found a list"),
        (torch.ones(3), "found a tensor"),
        ({"epoch": 3, "state_dict": {}}, "found a dict of epoch (int), state_dict (dict)"),
        ({"state_dict": {"a": "x", "b": 3}}, "found a dict of state_dict (dict)"),
        (
            {"state_dict": {**RAW, "a": "x", "b": [3]}},
            f"state_dict is no state dict: 2 of its {len(RAW) + 2} entries are no tensors: "
            "a (str), b (list)",
        ),
        ({**RAW, 5: torch.ones(1)}, "1 of its"),
        ({**RAW, "hyper_parameters": {"num_heads": 4}}, "hyper_parameters (dict)"),
        ({"optimizer_state_dict": OPTIMISER}, "found a dict of optimizer_state_dict (dict)"),
        ({"moments": {"a": torch.ones(2)}}, "found a dict of moments (dict)"),
        (
            Inert(
                "tadiff.TaDiffNet",
                state={"training": True, "_modules": {"out": Inert("torch.nn.Linear")}},
            ),
            "a pickled module, not its state dict; found a tadiff.TaDiffNet of training (bool), "
            "_modules (dict)",
        ),
        ({"weights": Inert("posix.system", args=("touch x",))}, "weights (posix.system)"),
        ({10**5000: 1}, "found a dict of int (int)"),
        (cyclic(), "found a dict of config (dict)"),
        (
            {"a": RAW, "b": AVERAGE},
            "2 state dicts, and no telling which is meant: a, b",
        ),
        (
            {"state_dict": {**named(RAW, "_model."), **named(RAW, "net.")}},
            "2 state dicts, and no telling which is meant: state_dict, names with _model., "
            "state_dict, names with net.",
        ),
        (
            {"model": RAW, "ema": AVERAGE, "ema_old": dict(AVERAGE)},
            "2 state dicts, and no telling which is meant: ema, ema_old",
        ),
        (
            {k if i else f"net.{k}": v for i, (k, v) in enumerate(RAW.items())},
            "2 state dicts",
        ),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_no_single_state_dict(root, words):
    assert words in refused("TD4007", find_weights, root)


@pytest.mark.parametrize("place", [(), ("state_dict",), ("model",)])
def test_a_state_dict_of_other_names_is_found_to_be_refused_by_them(place):
    other = {"conv1.weight": torch.ones(2)}
    root = {place[0]: other, "epoch": 2} if place else other
    found = find_weights(root)
    assert (found.state, found.place) == (other, place)


def test_hostile_names_cost_little():
    """Each of these took time that grows with the square of the file before it was bounded."""
    one = torch.ones(1)
    words = ["_model", "model", "module", "net", "ema_model", "online_model", "_orig_mod"]
    prefixes = [f"{a}.{b}.{c}.{d}." for a in words for b in words for c in words for d in words]
    many = {f"{p}out.0.bias": one for p in prefixes} | {f"{p}step": one for p in prefixes}
    many |= {"model." * 200_000 + "out.0.bias": one} | {f"x{i}": one for i in range(20_000)}
    began = time.perf_counter()
    averaged = 7**4 - 6**4
    assert f"{averaged} state dicts" in refused("TD4007", find_weights, many)
    assert time.perf_counter() - began < 2


def test_half_precision_is_converted_and_said():
    state = {
        "a": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "b": torch.tensor([3.0], dtype=torch.bfloat16),
        "c": torch.tensor([0.1]),
        "d": torch.tensor([65504.0, 6e-8], dtype=torch.float16),
    }
    out, notes = as_float32(state)
    assert {v.dtype for v in out.values()} == {torch.float32}
    assert all(torch.equal(out[key].double(), state[key].double()) for key in state)
    assert notes == (
        "float16 converted to float32 in 2 of 4 tensors, which changes no value",
        "bfloat16 converted to float32 in 1 of 4 tensors, which changes no value",
    )


def test_double_precision_is_rounded_and_the_largest_change_said():
    """0.1 lies 1.5e-9 from its float32; at 1e6 these are 0.0625 apart."""
    state = {
        "a": torch.tensor([0.1, 1.0], dtype=torch.float64),
        "b": torch.tensor([1e6 + 0.05], dtype=torch.float64),
        "c": torch.tensor([0.2]),
    }
    out, notes = as_float32(state)
    assert out["b"].item() == 1e6 + 0.0625
    assert notes == (
        "float64 rounded to float32 in 2 of 3 tensors, "
        "which changes a weight by 1.2e-02 at most (b)",
    )


def test_weights_are_contiguous_and_know_no_gradient():
    stored = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).T.requires_grad_()
    out, notes = as_float32({"a": stored})
    assert out["a"].is_contiguous()
    assert not out["a"].requires_grad
    assert torch.equal(out["a"], stored)
    assert notes == ()


@pytest.mark.parametrize(
    ("bad", "dtype"),
    [
        (float("nan"), torch.float32),
        (float("inf"), torch.bfloat16),
        (float("-inf"), torch.float16),
        (1e39, torch.float64),  # infinite in float32 alone
    ],
)
def test_weights_that_are_not_finite(bad, dtype):
    state = {f"t{i}": torch.tensor([0.0, bad], dtype=dtype) for i in range(12)}
    state["good"] = torch.tensor([1.0])
    text = refused("TD4013", as_float32, state)
    first = ", ".join(f"t{i}" for i in range(10))
    assert text == f"TD4013: NaN or infinite weights in 12 of 13 tensors: {first}, ..."


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn])
def test_weights_of_other_types(dtype):
    state = {"a": torch.tensor([1.0]), "b": torch.zeros(2).to(dtype)}
    assert f"not floating-point weights in 1 tensors: b ({dtype})" in refused(
        "TD4014", as_float32, state
    )


def test_denormal_weights_are_remarked_on():
    """Two of them; zeros and the smallest normal number are none."""
    tiny = torch.finfo(torch.float32).tiny
    out, notes = as_float32(
        {"a": torch.tensor([tiny / 2, 0.0, tiny]), "b": -torch.tensor([tiny / 8])}
    )
    assert out["a"][0] == tiny / 2
    assert notes == ("denormal weights (below 1.2e-38), which GPUs may take as 0: 2",)


STATED = {
    "num_heads": 4,
    "max_T": 1000,
    "ddpm_schedule": "linear",
    "model_channels": 32,
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 3, 4],
    "attention_resolutions": (8, 4),
    "beta_start": 1e-4,
    "beta_end": 0.02,
}
READ = {
    "num_heads": 4,
    "timesteps": 1000,
    "schedule": "linear",
    "model_channels": 32,
    "num_res_blocks": 2,
    "channel_mult": (1, 2, 3, 4),
    "attention_strides": (8, 4),
    "beta_start": 1e-4,
    "beta_end": 0.02,
}


def munch(items):
    return Inert("munch.DefaultMunch", args=(None,), items=dict(items))


@pytest.mark.parametrize(
    ("root", "place"),
    [
        ({"hyper_parameters": {"config": munch(STATED)}}, "hyper_parameters.config."),
        ({"hyper_parameters": munch({"net": munch(STATED)})}, "hyper_parameters.net."),
        ({"hparams": STATED}, "hparams."),
        ({"cfg": Inert("omegaconf.X", state={"model": STATED})}, "cfg.model."),
        ({"args": Inert("argparse.Namespace", state=STATED)}, "args."),
        ({"config": {"diffusion": STATED}, "state_dict": RAW}, "config.diffusion."),
        ({**STATED, "state_dict": RAW}, ""),
    ],
)
def test_hyper_parameters_of_every_layout(root, place):
    settings, notes = find_settings(root)
    assert {quantity: stated.value for quantity, stated in settings.items()} == READ
    assert settings["num_heads"].where == f"{place}num_heads"
    assert settings["attention_strides"].where == f"{place}attention_resolutions"
    assert notes == ()


@pytest.mark.parametrize(
    ("quantity", "names"), [(q, names) for q, (names, _) in QUANTITIES.items()]
)
def test_every_name_of_a_quantity(quantity, names):
    for name in names:
        settings, _ = find_settings({"config": {name: READ[quantity]}})
        assert settings[quantity].value == READ[quantity]
        assert settings[quantity].where == f"config.{name}"


@pytest.mark.parametrize(
    "root",
    [
        {"config": {"diffusion_steps": 50, "num_steps": 20}},  # of the solver
        {"lr_schedulers": [{"T": 5}], "optimizer": {"schedule": "cosine"}},
        {"callbacks": {"config": {"num_heads": 8}}},
        {"config": {"num_heads": None, "max_T": None}},  # DefaultMunch gives None for anything
        {"state_dict": RAW},
        [STATED],
    ],
)
def test_what_is_no_hyper_parameter(root):
    assert find_settings(root) == ({}, ())


def test_a_shared_mapping_is_found_behind_any_other_place():
    """A pickle stores an object once; the place that comes first need not be one that counts."""
    config = dict(STATED)
    settings, _ = find_settings(
        {"callbacks": {"x": config}, "hyper_parameters": {"config": config}}
    )
    assert settings["num_heads"].where == "hyper_parameters.config.num_heads"


def test_cycles_end():
    root = cyclic()
    root["config"].update(STATED)
    assert find_settings(root)[0]["timesteps"].value == 1000


@pytest.mark.parametrize(
    ("quantity", "first", "second", "words"),
    [
        ("num_heads", {"num_heads": 4}, {"num_heads": 8}, "a.num_heads is 4 and b.num_heads is 8"),
        ("timesteps", {"max_T": 1000}, {"T": 600}, "a.max_T is 1000 and b.T is 600"),
        (
            "beta_end",
            {"beta_end": 0.02},
            {"beta_end": 0.0201},
            "a.beta_end is 0.02 and b.beta_end",
        ),
        (
            "channel_mult",
            {"channel_mult": [1, 2]},
            {"channel_mult": [1, 2, 3]},
            "a.channel_mult is (1, 2) and b.channel_mult is (1, 2, 3)",
        ),
    ],
)
def test_two_values_of_one_quantity(quantity, first, second, words):
    text = refused("TD4015", find_settings, {"config": first, "hparams": second})
    assert text.startswith(f"TD4015: two values of {quantity}: ")
    assert words.replace("a.", "config.").replace("b.", "hparams.") in text


def test_two_names_of_one_quantity_in_one_place():
    text = refused("TD4015", find_settings, {"config": {"T": 600, "max_T": 1000}})
    assert "config.max_T is 1000 and config.T is 600" in text


def test_one_value_in_two_places_or_spellings():
    root = {
        "config": {"num_heads": 4, "beta_start": 1e-4, "channel_mult": (1, 2)},
        "hparams": {"num_heads": 4.0, "beta_start": 9.999999747378752e-05, "channel_mult": [1, 2]},
    }
    settings, notes = find_settings(root)
    assert settings["num_heads"].value == 4
    assert settings["num_heads"].where == "config.num_heads"
    assert notes == ()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ddpm_schedule", "cosine", "config.ddpm_schedule ('cosine')"),
        ("beta_schedule", "Linear", "config.beta_schedule ('Linear')"),
        ("schedule", ["linear"], "config.schedule (list)"),
        ("noise_schedule", "x" * 10**6, "config.noise_schedule ('xxx"),
        ("beta_start", 0, "config.beta_start (int)"),
        ("beta_end", 1.5, "config.beta_end (float)"),
        ("beta_end", "0.02", "config.beta_end ('0.02')"),
    ],
)
def test_schedules_that_are_not_linear(name, value, words):
    text = refused("TD4019", find_settings, {"config": {"max_T": 1000, name: value}})
    assert words in text
    assert "not of a linear schedule, the only one known" in text
    assert len(text) < 250


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("num_heads", "4", "str"),
        ("num_heads", True, "bool"),
        ("num_heads", 4.5, "float"),
        ("max_T", float("inf"), "float"),
        ("max_T", float("nan"), "float"),
        pytest.param("max_T", 10**5000, "int", id="a number of 5000 digits"),
        ("max_T", torch.tensor(1000), "tensor"),
        ("channel_mult", "1,2,3,4", "str"),
        ("channel_mult", [1, "2"], "list"),
        ("channel_mult", [1] * 65, "list"),
        ("channel_mult", [], "list"),
        ("attention_resolutions", {"a": 1}, "dict"),
        ("num_res_blocks", Inert("posix.system"), "posix.system"),
    ],
)
def test_values_that_are_not_understood_are_left_out_and_said(name, value, what):
    settings, notes = find_settings({"config": {name: value, "model_channels": 32}})
    assert settings.keys() == {"model_channels"}
    assert notes == (f"config.{name} is not understood and left out ({what})",)


@pytest.mark.parametrize(
    ("container", "root", "words"),
    [
        ("safetensors", RAW, "safetensors file"),
        ("zip", RAW, "bare state dict"),
        ("zip", {"net": RAW}, "training checkpoint, net"),
        ("zip", {"pytorch-lightning_version": 2, "net": RAW}, "training checkpoint, net"),
        (
            "zip",
            {"pytorch-lightning_version": "2.1.0", "state_dict": RAW},
            "PyTorch Lightning 2.1.0 checkpoint",
        ),
    ],
)
def test_the_format_in_words(container, root, words):
    assert source_of(container, root, find_weights(root)) == words
