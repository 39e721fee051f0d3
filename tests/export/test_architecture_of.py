"""The shape of a network from shapes alone: published keys, recorded ones, and any network."""

import hashlib
import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tadiff_export.architecture import Inferred, expected_shapes, infer
from tadiff_rt.errors import ModelFileError
from tadiff_train.network import NetworkConfig

GOLDEN = Path(__file__).parents[1] / "golden"
PUBLISHED = {  # name -> (shape of the network, sha256 of its published list of keys and shapes)
    "A": (
        Inferred(32, (1, 2, 3, 4), 2, (4, 8)),
        "95672afc7600ae836ed572e4a499fc7bde219fc3d826ee7079d18ecf4fbcad35",
    ),
    "B": (
        Inferred(32, (1, 2, 3, 4), 1, (4, 8)),
        "9ad91a7cd2b9f69fb901f419aca9f6db89aee05d57845c839c1375ee9647f11b",
    ),
    "C": (
        Inferred(64, (1, 2, 3, 4), 2, (4, 8)),
        "8c992876537992225a037106aee57fce1fb36b97b8009ddd2549a93318adc1f3",
    ),
    "D": (
        Inferred(64, (1, 2, 4, 8), 2, (4, 8)),
        "dfd82e94b044e7f96b9330e568e730aa89a98ff6439372702be3bb0b9de280b8",
    ),
}
SMALL = NetworkConfig(num_res_blocks=1, channel_mult=(1, 2), attention_strides=(2,))


def shapes_of(config: NetworkConfig = SMALL) -> dict[str, tuple[int, ...]]:
    return expected_shapes(config)


def refused(shapes) -> str:
    with pytest.raises(ModelFileError) as e:
        infer(shapes)
    assert e.value.code == "TD4014"
    return str(e.value)


@pytest.mark.golden
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks(name):
    """Shapes whose hash is the published one are recognised."""
    inferred, sha256 = PUBLISHED[name]
    shapes = shapes_of(inferred.config(num_heads=4))
    listing = "\n".join(f"{k}|{','.join(map(str, s))}" for k, s in shapes.items())
    assert hashlib.sha256(listing.encode()).hexdigest() == sha256
    assert infer(shapes) == inferred


@pytest.mark.golden
@pytest.mark.parametrize("name", ["tadiff_c32_r1_h1", "tadiff_c32_r2_h4"])
def test_recorded_state_dicts(name):
    """Shapes recorded from the published code, not from ours."""
    spec = json.loads((GOLDEN / f"{name}.json").read_text())
    found = infer({k: tuple(s) for k, s in spec["state_dict"].items()})
    config = spec["config"]
    assert found.model_channels == config["model_channels"]
    assert found.channel_mult == tuple(config["channel_mult"])
    assert found.num_res_blocks == config["num_res_blocks"]
    assert found.attention_strides == tuple(sorted(config["attention_resolutions"]))


@st.composite
def networks(draw) -> NetworkConfig:
    """Any small network: 1 to 4 levels, attention anywhere, widths that rise, fall or repeat."""
    levels = draw(st.integers(1, 4))
    strides = st.sets(st.sampled_from([2**level for level in range(levels)]))
    return NetworkConfig(
        model_channels=32 * draw(st.integers(1, 3)),
        channel_mult=draw(st.lists(st.integers(1, 5), min_size=levels, max_size=levels)),
        num_res_blocks=draw(st.integers(1, 3)),
        num_heads=draw(st.sampled_from([1, 2, 4])),
        attention_strides=sorted(draw(strides)),
    )


@settings(max_examples=50, deadline=None, derandomize=True)
@given(networks(), st.randoms(use_true_random=False))
def test_any_network_is_found_again(config: NetworkConfig, rng: random.Random):
    """In any order of keys; with the heads given back, the config is the same."""
    shapes = list(shapes_of(config).items())
    rng.shuffle(shapes)
    assert infer(dict(shapes)).config(config.num_heads) == config


def test_strides_without_a_level_are_no_part_of_the_network():
    assert infer(shapes_of(NetworkConfig(attention_strides=(32, 8, 4)))) == PUBLISHED["A"][0]


@pytest.mark.parametrize("key", sorted(shapes_of()))
def test_one_wrong_tensor_is_named_and_nothing_else(key):
    """Also where it is one of those that the network is inferred from."""
    shapes = shapes_of()
    shape = shapes.pop(key)
    assert f": 1 missing: {key}" in (text := refused(shapes))
    assert "unexpected" not in text
    assert "shape:" not in text
    other = tuple(n + 1 for n in shape)
    text = refused({**shapes, key: other})
    assert text.endswith(f": 1 of another shape: {key} {other} instead of {shape}")
    assert refused({**shapes, key: shape, f"{key}.x": shape}).endswith(f"1 unexpected: {key}.x")


@pytest.mark.parametrize("place", ["input_blocks.3.1", "output_blocks.0.1", "output_blocks.1.1"])
def test_attention_is_what_most_blocks_of_a_level_have(place):
    shapes = shapes_of()
    lost = [key for key in shapes if key.startswith(f"{place}.")]
    assert len(lost) == 6
    assert f": 6 missing: {', '.join(lost)}" in refused(
        {k: s for k, s in shapes.items() if k not in lost}
    )


def test_the_first_of_many_are_listed_with_their_number():
    shapes = shapes_of()
    biases = [key for key in shapes if key.endswith("bias")]
    text = refused({k: s for k, s in shapes.items() if k not in biases})
    assert f"{len(biases)} missing: {', '.join(biases[:10])}, ..." in text
    assert biases[10] not in text


def test_all_kinds_share_the_list():
    shapes = shapes_of()
    biases = [key for key in shapes if key.endswith("bias")]
    kept = {k: s for k, s in shapes.items() if k not in biases[:4]}
    kept |= {key: (7,) for key in biases[4:9]} | {f"extra.{i}": (1,) for i in range(6)}
    text = refused(kept)
    assert (
        f"4 missing: {', '.join(biases[:3])}, ...; 6 unexpected: extra.0, extra.1, extra.2, ..."
        in text
    )
    assert f"5 of another shape: {biases[4]} (7,) instead of" in text
    assert biases[7] not in text


def test_the_nearest_network_is_named():
    shapes = shapes_of()
    del shapes["out.0.bias"]
    assert (
        "nearest (model_channels 32, channel_mult (1, 2), num_res_blocks 1, attention_strides "
        "(2,))"
    ) in refused(shapes)


def test_long_names_are_cut():
    assert len(refused({**shapes_of(), "x" * 10**6: (1,)})) < 500


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({}, "embeddings absent wide"),
        ({"conv1.weight": (64, 3, 7, 7), "fc.bias": (10,)}, "2 tensors: conv1.weight, fc.bias"),
        ({"time_embed.2.weight": (2**40, 0)}, "embeddings 1099511627776 wide"),
        ({"input_blocks.9999.0.op.weight": (2,)}, "10000 blocks in 2 levels"),
        ({f"input_blocks.{'9' * 5000}.0.op.weight": (2,)}, "0 blocks"),
        ({**shapes_of(), "input_blocks.701.0.in_layers.0.bias": (2,)}, "702 blocks in 2 levels"),
        ({k: (0,) if "embed" in k else s for k, s in shapes_of().items()}, "embeddings absent"),
        (
            shapes_of(
                NetworkConfig(channel_mult=[1] * 13, num_res_blocks=1, attention_strides=())
            ),
            "26 blocks in 13 levels",
        ),
        ({"time_embed.2.bias": ()}, "embeddings absent wide"),
        ({**shapes_of(), "input_blocks.700.0.op.weight": (2,)}, "701 blocks in 3 levels"),
        (
            {k: s for k, s in shapes_of().items() if not k.startswith("output_blocks.3")},
            "1 missing",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_other_dictionaries_are_refused_at_once(shapes, words):
    began = time.perf_counter()
    text = refused(shapes)
    assert time.perf_counter() - began < 1
    assert words in text or "missing: output_blocks.3" in text


def test_widths_are_multiples():
    """Of the embedding's width, and that of the 32 norm groups."""
    odd = {
        k: tuple(n // 4 * 5 if n % 4 == 0 else n for n in s) if "embed" in k else s
        for k, s in shapes_of().items()
    }
    assert "level 0 has 32 channels, not a multiple of 40" in refused(odd)
    narrow = {k: tuple(n // 2 if n % 2 == 0 else n for n in s) for k, s in shapes_of().items()}
    assert "model_channels must be a multiple of the 32 norm groups, got 16" in refused(narrow)


@pytest.mark.parametrize("width", [0, 2**40])
def test_empty_and_huge_levels_are_not_built(width):
    shapes = {k: (width, *s[1:]) if "_blocks" in k else s for k, s in shapes_of().items()}
    began = time.perf_counter()
    assert "level 0 has" in refused(shapes)
    assert time.perf_counter() - began < 1
