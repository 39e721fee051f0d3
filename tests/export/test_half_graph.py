"""A half-precision graph that does not pass gets fp32 where it is needed, and nowhere else."""

import numpy as np
import onnx
import pytest
import torch

import tadiff_export.graphs as graphs
from tadiff_export.certify.reference import Settings
from tadiff_export.half_graph import more_in_fp32, too_large
from tadiff_export.onnx import denoiser_to_onnx
from tadiff_export.package import export
from tadiff_export.split import split
from tadiff_export.wanted import Wanted
from tadiff_rt.card import ModelCard
from tadiff_rt.preprocess import DataContract
from tadiff_train.checkpoint import load_checkpoint, save_checkpoint

SIZE = 32
LARGE = "input_blocks.1.0.in_layers.2"
"""A convolution; behind it a norm divides whatever factor its weights have."""


@pytest.fixture(scope="module")
def net(checkpoint):
    return load_checkpoint(checkpoint)[0]


@pytest.fixture(scope="module")
def scaled(checkpoint):
    """A network one of whose layers makes values that fp16 cannot hold, and is right in fp32."""
    net = load_checkpoint(checkpoint)[0]
    conv = net.get_submodule(LARGE)
    with torch.no_grad():
        conv.weight *= 1e5
        conv.bias *= 1e5
    return net


def feed(net):
    rng = np.random.default_rng(0)
    shapes = {"sources": (1, 9, SIZE, SIZE), "x_t": (1, 3, SIZE, SIZE)}
    arrays = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    return {**arrays, "shifts": np.zeros((1, sum(split(net)[1].widths)), np.float32)}


@pytest.fixture(scope="module")
def exact(net):
    return denoiser_to_onnx(split(net)[1], SIZE)


def test_nothing_is_too_large_in_a_sound_network(net, exact):
    assert too_large(exact, [feed(net)]) == frozenset()


@pytest.mark.slow
def test_values_that_fp16_cannot_hold_are_found(scaled):
    found = too_large(denoiser_to_onnx(split(scaled)[1], SIZE), [feed(scaled)])
    assert f"{LARGE}/Conv" in found
    assert not any(name.startswith("output_blocks") for name in found)


def test_the_ends_come_first_and_then_the_module_of_the_first_wrong_node(net, exact):
    wrong = onnx.ModelProto()
    wrong.CopyFrom(exact)
    for weight in wrong.graph.initializer:
        if weight.name == "middle_block.0.in_layers.2.weight":
            values = onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(2 * values, weight.name))
    ends = more_in_fp32(frozenset(), wrong, exact, feed(net), "fp16")
    assert {"input_blocks.0.0/Conv", "out.2/Conv"} <= ends
    assert len(ends) < 6
    more = more_in_fp32(ends, wrong, exact, feed(net), "fp16")
    assert more - ends == {"middle_block.0.in_layers.2/Conv"}
    assert more_in_fp32(ends, exact, exact, feed(net), "fp16") == ends


@pytest.mark.slow
def test_a_network_that_fp16_cannot_hold_is_exported_with_an_island(scaled, tmp_path):
    card = ModelCard(
        name="scaled",
        trained_on="nothing",
        data=DataContract(size=SIZE, spacing_mm=2.0, min_slices=4),
    )
    save_checkpoint(tmp_path / "run", scaled, card, {"step": 0})
    wanted = Wanted(precisions=("fp32", "fp16"))
    little = Settings(samples=2, num_steps=1)
    manifest = export(tmp_path / "run", tmp_path / "a.tadiff", wanted=wanted, settings=little)
    half = manifest.denoisers[1]
    assert half.precision == "fp16"
    assert any("asked for" in line for line in half.certificate.kept_fp32)


@pytest.mark.slow
def test_without_the_island_it_does_not_pass(scaled, tmp_path, monkeypatch):
    """What the test above would not notice if half precision held these values anyway."""
    monkeypatch.setattr(graphs, "too_large", lambda *args: frozenset())
    monkeypatch.setattr(graphs, "more_in_fp32", lambda kept, *args: kept)
    card = ModelCard(name="scaled", trained_on="nothing", data=DataContract(size=SIZE))
    save_checkpoint(tmp_path / "run", scaled, card, {"step": 0})
    wanted = Wanted(precisions=("fp32", "fp16"))
    little = Settings(samples=2, num_steps=1)
    manifest = export(tmp_path / "run", tmp_path / "a.tadiff", wanted=wanted, settings=little)
    assert [a.precision for a in manifest.denoisers] == ["fp32"]
    assert manifest.rejected[0].precision == "fp16"
