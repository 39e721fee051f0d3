"""The first node that is wrong, the first block that is wrong, and weights that are not theirs."""

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tadiff_export.certify.bisect import first_broken, intermediate
from tadiff_export.certify.graph import Labels, parameter_name, parameters
from tadiff_export.certify.weights import compare_weights

RNG = np.random.default_rng(11)
WEIGHTS = {
    f"net.{layer}.{part}": RNG.standard_normal(shape).astype(np.float32)
    for layer in ("a", "b", "c")
    for part, shape in (("weight", (6, 6)), ("bias", (6,)))
}
FEEDS = {"x": RNG.standard_normal((2, 6)).astype(np.float32)}


def chain(change=None, names=lambda name: name, weights=WEIGHTS):
    """a, tanh, b, plus the input of b, tanh, c; `change` edits the nodes."""
    node = helper.make_node
    nodes = [
        node("Gemm", ["x", "net.a.weight", "net.a.bias"], ["h1"], "first"),
        node("Tanh", ["h1"], ["h2"], "second"),
        node("Gemm", ["h2", "net.b.weight", "net.b.bias"], ["h3"], "third"),
        node("Add", ["h3", "h2"], ["h4"], "fourth"),
        node("Mul", ["h4", "half"], ["h5"], "fifth"),
        node("Gemm", ["h5", "net.c.weight", "net.c.bias"], ["y"], "sixth", transB=1),
    ]
    constants = {**weights, "half": np.float32(0.5)}
    if change:
        nodes = change(nodes, constants)
    for n in nodes:
        n.output[:] = [names(o) if o != "y" else o for o in n.output]
        n.input[:] = [names(i) if i not in constants and i != "x" else i for i in n.input]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def broken(change, limit=1e-4, **options):
    return first_broken(chain(change, **options), chain(), FEEDS, limit=limit)


def test_the_same_graph_has_no_broken_node():
    assert broken(None) is None
    assert broken(None, names=lambda name: f"other_{name}") is None


def with_weight(name, value):
    def change(nodes, constants):
        constants[name] = value
        return nodes

    return change


@pytest.mark.parametrize(("layer", "node"), [("a", "first"), ("b", "third"), ("c", "sixth")])
def test_a_changed_weight_breaks_its_node(layer, node):
    found = broken(with_weight(f"net.{layer}.weight", WEIGHTS["net.a.weight"].T.copy()))
    assert (found.node, found.op, found.module) == (node, "Gemm", layer)
    assert found.error > 100 * found.allowed
    assert found.inputs_error < 1e-6
    assert node in found.text()


def test_the_error_is_relative_to_the_largest_value():
    change = with_weight("net.a.bias", WEIGHTS["net.a.bias"] + np.float32(0.25))
    h1 = FEEDS["x"] @ WEIGHTS["net.a.weight"] + WEIGHTS["net.a.bias"]
    assert broken(change).error == pytest.approx(0.25 / np.abs(h1).max(), rel=1e-5)


def test_a_constant_is_told():
    found = broken(with_weight("half", np.float32(0.7)))
    assert (found.node, found.differs) == ("fifth", ("constant input 1 is 0.7 instead of 0.5",))


def test_an_attribute_is_told():
    def change(nodes, constants):
        nodes[2].attribute.append(helper.make_attribute("alpha", 2.0))
        return nodes

    found = broken(change)
    assert (found.node, found.differs) == ("third", ("alpha is 2.0 instead of None",))


def test_a_missing_bias_is_told():
    def change(nodes, constants):
        del nodes[2].input[2]
        return nodes

    assert broken(change).differs[0] == "it has 2 inputs instead of 3"


def test_another_operator_is_told_at_the_next_common_node():
    """Values that only one graph has cannot be compared; the next that both have can."""

    def change(nodes, constants):
        nodes[1].op_type = "Sigmoid"
        return nodes

    found = broken(change, names=lambda name: f"v{name}")
    assert found.node == "third"
    assert found.differs == (
        "the artefact has Sigmoid(Gemm 'first'), the checkpoint Tanh(Gemm 'first')",
    )


def test_nodes_with_exchanged_inputs_are_told():
    def change(nodes, constants):
        nodes[3].input[:] = ["h2", "h2"]
        return nodes

    found = broken(change)
    assert found.node == "sixth"
    assert "Add(Tanh 'second', Tanh 'second')" in found.differs[0]


def half(nodes, constants):
    """Everything in half precision between casts."""
    for name in list(constants):
        constants[name] = constants[name].astype(np.float16)
    cast = helper.make_node("Cast", ["x"], ["x16"], "down", to=TensorProto.FLOAT16)
    nodes[0].input[0] = "x16"
    nodes[-1].output[0] = "y16"
    back = helper.make_node("Cast", ["y16"], ["y"], "up", to=TensorProto.FLOAT)
    return [cast, *nodes, back]


def test_a_graph_in_half_precision_is_compared_through_its_casts():
    candidate = chain(half)
    assert first_broken(candidate, chain(), FEEDS, limit=1e-2) is None
    found = first_broken(candidate, chain(), FEEDS, limit=1e-6)
    assert found.node == "first"
    values = {n.output[0] for n in candidate.graph.node}
    assert Labels().of(candidate).places.keys() == values - {"x16", "y"}


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_breaks_a_node(value):
    found = broken(with_weight("net.b.bias", np.full(6, value, np.float32)))
    assert (found.node, found.error) == ("third", math.inf)
    assert "not finite" in found.text()


def test_rounding_that_adds_up_is_no_jump():
    """Every layer adds a little; where none stands out the first above the limit is named."""

    def change(nodes, constants):
        for layer in "abc":
            name = f"net.{layer}.weight"
            constants[name] = constants[name] * np.float32(1.002)
        return nodes

    found = broken(change, limit=3e-3)
    assert found is not None
    assert found.inputs_error > found.error / 8


def test_a_jump_after_rounding_that_adds_up_is_preferred():
    """The error passes the limit at "fifth", by three times that of its input, then jumps."""

    def change(nodes, constants):
        constants["net.a.weight"] = constants["net.a.weight"] * np.float32(1.002)
        constants["half"] = np.float32(0.502)
        constants["net.c.weight"] = constants["net.c.weight"].T.copy()
        return nodes

    assert broken(change, limit=4e-3).node == "sixth"


def test_values_computed_alike_are_told_apart_by_their_order():
    """As the two outputs of the network, which are slices of one value."""

    def twice(nodes, constants):
        constants["third"] = np.float32(3.0)
        second = helper.make_node("Mul", ["h4", "third"], ["h5b"], "again")
        both = helper.make_node("Sub", ["h5", "h5b"], ["h6"], "both")
        nodes[-1].input[0] = "h6"
        return [*nodes[:-1], second, both, nodes[-1]]

    assert first_broken(chain(twice), chain(twice), FEEDS, limit=1e-6) is None


def test_intermediate_values_against_numpy():
    h2, h3 = intermediate(chain(), ["h2", "h3"], FEEDS)
    expected = np.tanh(FEEDS["x"] @ WEIGHTS["net.a.weight"] + WEIGHTS["net.a.bias"])
    np.testing.assert_allclose(h2, expected, rtol=1e-5, atol=1e-6)
    third = expected @ WEIGHTS["net.b.weight"] + WEIGHTS["net.b.bias"]
    np.testing.assert_allclose(h3, third, rtol=1e-5, atol=1e-5)


def test_memory_is_bounded(monkeypatch):
    """Parts of one value each give the same answer."""
    monkeypatch.setattr("tadiff_export.certify.bisect.ELEMENTS_AT_A_TIME", 12)
    seen = []
    real = intermediate

    def watched(model, values, feeds):
        seen.append(len(values))
        return real(model, values, feeds)

    monkeypatch.setattr("tadiff_export.certify.bisect.intermediate", watched)
    assert broken(None) is None
    assert seen == [1] * 12
    assert broken(with_weight("half", np.float32(0.7))).node == "fifth"


@pytest.mark.parametrize(
    ("initialiser", "name"),
    [
        ("net.out.2.weight", "out.2.weight"),
        ("out.2.bias", "out.2.bias"),
        ("out.2.weight_fp16", "out.2.weight"),
        ("out.2.weights", None),
        ("out.2/Mul.B", None),
        ("weight", None),
    ],
)
def test_names_of_parameters(initialiser, name):
    assert parameter_name(initialiser) == name


EXACT = {
    "a.weight": RNG.standard_normal((4, 4, 3, 3)).astype(np.float32),
    "b.weight": RNG.standard_normal((4, 4, 3, 3)).astype(np.float32),
    "b.bias": RNG.standard_normal(4).astype(np.float32),
    **{f"c{k}.bias": RNG.standard_normal(4).astype(np.float32) for k in range(6)},
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"a.weight": EXACT["a.weight"].swapaxes(0, 1)}, "weight a.weight is transposed"),
        ({"a.weight": EXACT["a.weight"].swapaxes(2, 3)}, "weight a.weight is transposed"),
        ({"a.weight": EXACT["a.weight"][:, :, ::-1, ::-1]}, "has its kernels flipped"),
        ({"a.weight": -EXACT["a.weight"]}, "is -1 times the checkpoint's"),
        ({"a.weight": EXACT["a.weight"][:2]}, "has shape [2, 4, 3, 3] instead of [4, 4, 3, 3]"),
        ({"b.bias": 0 * EXACT["b.bias"]}, "weight b.bias is all zero: it was dropped"),
        ({"b.bias": None}, "weight b.bias is missing: it was dropped"),
        ({"b.weight": EXACT["a.weight"]}, "weight b.weight holds the values of a.weight"),
        ({"b.bias": EXACT["b.bias"] + np.eye(4)[2] * 0.1}, "in 1 of 4 values, most at [2]"),
    ],
)
def test_what_became_of_a_weight(change, expected):
    got = {k: v for k, v in {**EXACT, **change}.items() if v is not None}
    (sentence,) = compare_weights(got, EXACT, 1e-6)
    assert expected in sentence


def test_equal_weights_and_rounding():
    rounded = {k: v.astype(np.float16).astype(np.float32) for k, v in EXACT.items()}
    assert compare_weights(EXACT, EXACT, 0.0) == []
    assert compare_weights(rounded, EXACT, 1e-3) == []
    assert len(compare_weights(rounded, EXACT, 1e-6)) == 1  # all of them: another checkpoint


def test_tolerance_is_relative_to_the_largest_value():
    exact = {"large.bias": np.float32([100, 1]), "small.bias": np.float32([1e-3, 1e-3])}
    near = {"large.bias": np.float32([100, 1.05]), "small.bias": np.float32([1e-3, 1e-3])}
    far = {"large.bias": np.float32([100, 1]), "small.bias": np.float32([1e-3, 1.1e-3])}
    assert compare_weights(near, exact, 1e-3) == []
    assert "small.bias" in compare_weights(far, exact, 1e-3)[0]


def test_weights_of_another_checkpoint():
    other = {k: v + 0.01 * RNG.standard_normal(v.shape) for k, v in EXACT.items()}
    (sentence,) = compare_weights(other, EXACT, 1e-3)
    assert "9 of 9 weights differ" in sentence
    assert "EMA" in sentence


def test_parameters_of_a_graph_have_the_checkpoint_s_names():
    found = parameters(chain(half))
    assert found.keys() == {k.removeprefix("net.") for k in WEIGHTS}
    assert {w.dtype for w in found.values()} == {np.dtype(np.float32)}
    onnx.checker.check_model(chain())
