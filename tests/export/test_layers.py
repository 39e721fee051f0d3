"""The list of an engine's layers is understood, and every way to differ from the graph noticed."""

import json
import re

import pytest
import torch

from tadiff_export.layers import unexpected_layers
from tadiff_export.onnx import denoiser_to_onnx
from tadiff_export.precision import to_half
from tadiff_export.split import split
from tadiff_rt.errors import EngineError
from tadiff_train.network import NetworkConfig, TaDiffNet
from tests.export.conftest import to_rtx

pytest.importorskip("tensorrt_rtx")


def test_no_layer_of_the_denoiser_is_split_in_an_unexpected_way(built, denoiser_graph):
    assert unexpected_layers(built[0].inspector, denoiser_graph, profiles=2) == []


NETWORKS = {
    "B": (NetworkConfig(num_res_blocks=1, num_heads=1), 48),
    "A": (NetworkConfig(num_res_blocks=2, num_heads=4), 96),
    "C": (NetworkConfig(model_channels=64, num_res_blocks=2, num_heads=8), 48),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_published_networks_build(name):
    config, size = NETWORKS[name]
    torch.manual_seed(0)
    model = denoiser_to_onnx(split(TaDiffNet(config))[1], size, query_chunk=None)
    engine = to_rtx(model.SerializeToString())
    assert unexpected_layers(engine.inspector, model, profiles=1) == []
    kinds = [layer["LayerType"] for layer in json.loads(engine.inspector)["Layers"]]
    products = sum(n.op_type in ("Conv", "MatMul") for n in model.graph.node)
    heavy = sum(kind in ("correlation", "gemm", "runtime_fusion") for kind in kinds)
    assert heavy == products


@pytest.mark.parametrize(("precision", "type_"), [("fp16", "Half"), ("bf16", "BFloat16")])
def test_a_half_precision_graph_has_its_types_and_no_others(denoiser_graph, precision, type_):
    half = to_half(denoiser_graph, precision)
    engine = to_rtx(half.SerializeToString())
    assert unexpected_layers(engine.inspector, half, profiles=1) == []
    assert f'"{type_}"' in engine.inspector
    # The same engine would be wrong for the fp32 graph: the same nodes, in half precision.
    found = unexpected_layers(engine.inspector, denoiser_graph, profiles=1)
    assert sum(f"has tensors of {type_}" in finding for finding in found) > 20


def edited(engine, change):
    layers = json.loads(engine.inspector)["Layers"]
    change(layers)
    return json.dumps({"Layers": layers})


def one(layers, pattern):
    """The first layer with a node whose name matches."""
    return next(x for x in layers if re.search(rf"\[ONNX Layer: {pattern}\]", x["Metadata"]))


def drop(layers):
    layers.remove(one(layers, r"[^]]*/Conv"))


def repeat(layers):
    layers.append(one(layers, r"[^]]*/Conv"))


def plug(layers):
    one(layers, r"[^]]*/Conv")["LayerType"] = "PluginV3"


def halve(layers):
    one(layers, r"[^]]*/Conv")["Outputs"][0]["Datatype"] = "Half"


def halve_as_10_writes_it(layers):
    tensor = one(layers, r"[^]]*/Conv")["Inputs"][0]
    del tensor["Datatype"]
    tensor["Format/Datatype"] = "Channel major FP16 format where C % 8 == 0"


def unnamed(layers):
    return next(
        x
        for x in layers
        if not x["Metadata"] and x["Outputs"] and x["Outputs"][0]["Datatype"] == "Float"
    )


def compute(layers):
    unnamed(layers)["Name"] = "__myl_MulAdd_myl0_999"


def round_unasked(layers):
    unnamed(layers)["Outputs"][0]["Datatype"] = "Half"


def shatter_norm(layers):
    layers += [one(layers, r"[^]]*/GroupNormalization")] * 8


def separate(layers):
    """The maximum leaves the softmax's kernel for one of its own."""
    for layer in [x for x in layers if "/Softmax]" in x["Metadata"]]:
        node = re.search(r"\[ONNX Layer: [^]]*/ReduceMax\]", layer["Metadata"])[0]
        layer["Metadata"] = layer["Metadata"].replace(node, "")
        layers.append(layer | {"Name": "__myl_Maxr_myl0_1", "Metadata": node})


def part(layers):
    layers[5]["Name"] = layers[5]["Name"].replace("myl0", "myl2")


def foreign(layers):
    layers[5]["Metadata"] += "[ONNX Layer: backdoor]"


def lose_activation(layers):
    node = re.search(r"\[ONNX Layer: [^]]*/Sigmoid\]", one(layers, r"[^]]*/Sigmoid")["Metadata"])
    for layer in layers:
        layer["Metadata"] = layer["Metadata"].replace(node[0], "")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop, r"Conv \S+/Conv lies in 1 layers of 2 profiles"),
        (repeat, r"Conv \S+/Conv lies in 3 layers"),
        (plug, "is a plugin"),
        (halve, "has tensors of Half"),
        (halve_as_10_writes_it, "has tensors of Half"),
        (compute, "computes something that is no node"),
        (round_unasked, r"turns \['Float'\] into \['Half'\]"),
        (shatter_norm, r"GroupNormalization \S+ lies in 1\d layers"),
        (separate, "lie in different layers"),
        (part, "compiled in 3 parts for 2 profiles"),
        (foreign, "node backdoor is not in the graph"),
        (lose_activation, r"Sigmoid \S+ lies in 0 layers"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_a_split_is_noticed(built, denoiser_graph, change, says):
    found = unexpected_layers(edited(built[0], change), denoiser_graph, profiles=2)
    assert any(re.search(says, finding) for finding in found), found


@pytest.mark.parametrize("text", ['{"Layers": []}', "{}", '{"Layers": ["conv1", "conv2"]}'])
def test_a_list_without_detail_is_refused(text, denoiser_graph):
    with pytest.raises(EngineError) as e:
        unexpected_layers(text, denoiser_graph, profiles=1)
    assert e.value.code == "TD5021"
