"""Group norms as onnxruntime runs them: as accurate as PyTorch, whatever the mean."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from tadiff_export.norms import GROUP_NORM, lower_group_norms

EPSILON = 1e-3
GROUPS = 8


def model(shape, groups=GROUPS):
    """A cast-like identity, a group norm and a graph output; weights nowhere one or zero."""
    rng = np.random.default_rng(3)
    weights = [
        onnx.numpy_helper.from_array(rng.normal(1, 0.3, shape[1]).astype(np.float32), name)
        for name in ("m.norm.weight", "m.norm.bias")
    ]
    dims = ["batch", *shape[1:]]
    norm = helper.make_node(
        GROUP_NORM,
        ["x", "m.norm.weight", "m.norm.bias"],
        ["y"],
        "m.norm/GroupNormalization",
        num_groups=groups,
        epsilon=EPSILON,
    )
    norm.metadata_props.add(key="tadiff.fp32", value="norm")
    graph = helper.make_graph(
        [norm],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    made.ir_version = 10
    return made


def run(graph, x):
    options = ort.SessionOptions()
    options.add_free_dimension_override_by_name("batch", len(x))
    session = ort.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def exact(graph, x, groups):
    weight, bias = (
        torch.from_numpy(onnx.numpy_helper.to_array(i).copy()).double()
        for i in graph.graph.initializer
    )
    norm = torch.nn.functional.group_norm
    return norm(torch.from_numpy(x).double(), groups, weight, bias, EPSILON).numpy()


SHAPES = [
    ((2, 8, 6, 5), 8),  # one channel a group
    ((3, 24, 6, 5), 8),  # three
    ((2, 16, 30), 4),  # positions in a row, as in attention
    ((1, 8, 4, 4), 1),  # one group
]


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_it_is_the_group_norm(shape, groups):
    graph = model(shape, groups)
    x = np.random.default_rng(0).normal(0.3, 2, shape).astype(np.float32)
    got, want = run(lower_group_norms(graph), x), exact(graph, x, groups)
    assert np.abs(got - want).max() < 1e-6 * np.abs(want).max()


@pytest.mark.parametrize("channels", [32, 64])
@pytest.mark.parametrize(("mean", "good", "lost"), [(10, 5e-6, 1e-5), (100, 5e-5, 1e-3)])
def test_a_large_mean_costs_no_more_than_its_rounding(channels, mean, good, lost):
    """fp32 has seven digits. Of ONNX's definition, as onnxruntime runs it, four are left at a mean
    of ten standard deviations and two at a hundred; if this fails, onnxruntime has got better."""
    shape = (1, channels, 48, 48)
    graph = model(shape, 32)
    x = np.random.default_rng(0).normal(mean, 1, shape).astype(np.float32)
    want = exact(graph, x, 32)
    lowered, defined = (
        np.abs(run(g, x) - want).max() / np.abs(want).max()
        for g in (lower_group_norms(graph), graph)
    )
    assert lowered < good
    assert lost < defined


def test_names_values_and_metadata_are_kept():
    lowered = lower_group_norms(model((1, 24, 6, 5)))
    assert [node.op_type for node in lowered.graph.node] == [
        *("Reshape", "InstanceNormalization", "Reshape", "Mul", "Add")
    ]
    assert all(node.name.startswith("m.norm/") for node in lowered.graph.node)
    assert len({node.name for node in lowered.graph.node}) == 5
    assert all(node.metadata_props[0].value == "norm" for node in lowered.graph.node)
    assert lowered.graph.node[-1].output[0] == "y"
    used = {name for node in lowered.graph.node for name in node.input}
    assert {i.name for i in lowered.graph.initializer} <= used


def test_one_channel_a_group_is_one_node():
    (node,) = lower_group_norms(model((1, 8, 6, 5))).graph.node
    assert node.op_type == "InstanceNormalization"
    assert list(node.input) == ["x", "m.norm.weight", "m.norm.bias"]


def test_the_model_is_not_changed():
    graph = model((1, 24, 6, 5))
    before = graph.SerializeToString(deterministic=True)
    lower_group_norms(graph)
    assert graph.SerializeToString(deterministic=True) == before
