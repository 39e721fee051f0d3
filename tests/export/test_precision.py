"""Half-precision graphs: their types, their islands, and their rounding on a CPU."""

from collections import Counter, defaultdict

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tadiff_export.certify.exact import exact_outputs
from tadiff_export.certify.probes import make_probes
from tadiff_export.half_effects import ranges, risky, simulate
from tadiff_export.norms import lower_group_norms
from tadiff_export.onnx import check, denoiser_to_onnx
from tadiff_export.precision import HALVES, LAYOUT, element_types, islands, to_half
from tadiff_export.split import split
from tadiff_rt.onnx_scan import scan
from tadiff_rt.schedule import NoiseSchedule
from tadiff_train.checkpoint import load_checkpoint
from tests.export.conftest import feed_of

SIZE = 32
FP32, FP16 = TensorProto.FLOAT, TensorProto.FLOAT16
SPACING = {"fp16": 2.0**-10, "bf16": 2.0**-7}
"""Between neighbours, relative: rounding errs by at most half of it."""


@pytest.fixture(scope="module")
def net(checkpoint):
    return load_checkpoint(checkpoint)[0]


@pytest.fixture(scope="module")
def fp32(net):
    """Attention in two chunks, the second shorter: the harder graph to rewrite."""
    return denoiser_to_onnx(split(net)[1], SIZE, query_chunk=192)


@pytest.fixture(scope="module", params=["fp16", "bf16"])
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def half(fp32, precision):
    return to_half(fp32, precision)


@pytest.fixture(scope="module")
def feed(net):
    return feed_of(net, 2, SIZE)


def run(model, feed, level=ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = level
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip([v.name for v in session.get_outputs()], session.run(None, feed), strict=True))


def model_of(nodes, constants=(), inputs=("x",), outputs=("y",), shape=(1, 64)):
    """A model of named nodes; `constants` are (name, value)."""
    for i, node in enumerate(nodes):
        node.name = node.name or f"{node.op_type}{i}"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, FP32, shape) for n in inputs],
        [helper.make_tensor_value_info(n, FP32, (None, None)) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_inputs_and_outputs_stay_fp32_and_the_gate_lets_it_pass(half, fp32, precision):
    assert list(half.graph.input) == list(fp32.graph.input)
    assert list(half.graph.output) == list(fp32.graph.output)
    check(half)
    seen = scan(lower_group_norms(half).SerializeToString(), "denoiser.onnx")
    assert seen.precisions == {"fp32", "int64", precision}


def test_the_model_given_is_not_changed(fp32, precision):
    before = fp32.SerializeToString()
    to_half(fp32, precision, ["out.2/Conv"])
    assert fp32.SerializeToString() == before


def test_what_computes_in_which_type(half, precision):
    """Convolutions, SiLU, residual sums and p.v in half; norms, scores and shifts not."""
    types = element_types(half)
    low = HALVES[precision][0]
    computing = {
        (node.op_type, types[node.output[0]] == low)
        for node in half.graph.node
        if node.op_type not in {*LAYOUT, "Cast"}
    }
    assert computing == {
        *(("Conv", True), ("Sigmoid", True), ("Mul", True), ("Add", True), ("MatMul", True)),
        *(("GroupNormalization", False), ("Softmax", False), ("ReduceMax", False)),
        *(("Add", False), ("Div", False), ("Mul", False), ("MatMul", False)),
    }
    by_name = {node.name: node for node in half.graph.node}
    for name, low_type in {
        "input_blocks.3.1/Mul": False,  # q times the scale
        "input_blocks.3.1/Mul_1": False,  # k times the scale
        "input_blocks.3.1/MatMul": False,  # q.k
        "input_blocks.3.1/MatMul_1": True,  # p.v
        "input_blocks.3.1/MatMul_2": False,  # q.k of the second chunk
        "input_blocks.3.1/MatMul_3": True,
        "input_blocks.3.1/Add": False,  # 1 + max
        "input_blocks.3.1/Div": False,
        "input_blocks.3.1/Add_2": True,  # residual
        "input_blocks.3.0/Add": False,  # shift
        "input_blocks.3.0/Add_1": True,  # residual
        "Split": False,  # of the shifts
        "input_blocks.3.0/Unsqueeze": False,
        "input_blocks.3.1/Split": True,  # of the heads
        "output_blocks.3.0/Concat": True,
        "input_blocks.0.0/Concat": False,  # of two fp32 inputs: one cast behind it
    }.items():
        assert (types[by_name[name].output[0]] == low) is low_type, name


def test_islands_say_why(half, fp32):
    reasons = {reason.split(":")[0]: set(names) for reason, names in islands(half).items()}
    of = defaultdict(set)
    for node in fp32.graph.node:
        of[node.op_type].add(node.name)
    assert reasons["norm"] == of["GroupNormalization"]
    assert of["Softmax"] < reasons["attention scores"]
    # of a block: two scalings, and of each of its two chunks the product and the softmax
    assert len(reasons["attention scores"]) == 3 * len(of["Softmax"])
    assert reasons["row factor 1 + max of softmax_one"] > of["ReduceMax"] | of["Div"]
    assert "input_blocks.1.0/Add" in reasons["conditioning shifts are computed in fp32"]
    blocks = {name for name in of["Conv"] if name.endswith("in_layers.2/Conv")}
    assert len(reasons["conditioning shifts are computed in fp32"]) == len(blocks)
    assert set(reasons) == {
        *("norm", "attention scores", "row factor 1 + max of softmax_one"),
        "conditioning shifts are computed in fp32",
    }


def test_casts_are_few(half):
    """One a value and direction, none that a neighbour undoes."""
    makers = {name: node for node in half.graph.node for name in node.output}
    casts = [node for node in half.graph.node if node.op_type == "Cast"]
    assert len({(c.input[0], c.attribute[0].i) for c in casts}) == len(casts)
    types = element_types(half)
    for cast in casts:
        source = makers.get(cast.input[0])
        assert source is None or source.op_type != "Cast"
        assert types[cast.input[0]] != types[cast.output[0]]
    constants = {i.name for i in half.graph.initializer}
    assert not constants & {cast.input[0] for cast in casts}
    used = {name for node in half.graph.node for name in node.input}
    assert constants <= used


def test_nodes_that_are_asked_for_stay_fp32(fp32):
    keep = ["input_blocks.0.0/Conv", "out.2/Conv"]
    half = to_half(fp32, "fp16", keep)
    assert islands(half)["asked for"] == keep
    types = element_types(half)
    weights = {i.name: i.data_type for i in half.graph.initializer}
    by_name = {node.name: node for node in half.graph.node}
    for name in keep:
        assert types[by_name[name].output[0]] == FP32
        assert weights[by_name[name].input[1]] == FP32
    # nothing lies between the first convolution and the input, nor the last and the output
    assert by_name["input_blocks.0.0/Conv"].input[0] == "input_blocks.0.0/Concat"
    assert by_name["Slice"].output == ["eps"]
    with pytest.raises(ValueError, match=r"no node is called out\.3/Conv"):
        to_half(fp32, "fp16", ["out.3/Conv"])


def test_a_constant_of_both_types_is_stored_in_both():
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "w"], ["y"]),
    ]
    model = model_of(nodes, [("w", np.float32([1 / 3]))])
    half = to_half(model, "fp16", ["Mul1"])
    stored = {i.name: numpy_helper.to_array(i) for i in half.graph.initializer}
    assert {name: value.dtype for name, value in stored.items()} == {
        "w/fp16": np.float16,
        "w": np.float32,
    }
    assert stored["w/fp16"] == np.float16(1 / 3)


@pytest.mark.parametrize(("precision", "stays"), [("fp16", True), ("bf16", False)])
def test_a_weight_outside_the_range_keeps_its_node(precision, stays):
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"])]
    half = to_half(model_of(nodes, [("w", np.float32([70000.0]))]), precision)
    assert bool(islands(half)) is stays
    if stays:
        assert islands(half) == {"a weight is outside the range of the half type": ["Mul0"]}
    out = run(simulate(half), {"x": np.ones((1, 64), np.float32)})["y"]
    np.testing.assert_allclose(out, 70000, rtol=2.0**-8)


def rounded(x, precision):
    return torch.from_numpy(x).to(HALVES[precision][1]).float().numpy()


@pytest.mark.parametrize(
    "level",
    [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL],
)
def test_simulation_rounds_after_every_operator(level, precision):
    """Against rounding by hand: bit for bit, also where onnxruntime would like to fuse."""
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "x"], ["b"]),
        helper.make_node("Transpose", ["b"], ["bt"], perm=[1, 0]),
        helper.make_node("MatMul", ["b", "bt"], ["c"]),
        helper.make_node("Softmax", ["c"], ["p"]),
        helper.make_node("Mul", ["p", "c"], ["y"]),
    ]
    w = np.float32([np.pi])
    x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    model = model_of(nodes, [("w", w)], outputs=("a", "b", "c", "y"))
    half = to_half(model, precision, ["Mul5"])
    got = run(simulate(half), {"x": x}, level)
    low = rounded(x, precision)
    a = rounded(low * rounded(w, precision), precision)
    b = rounded(a + low, precision)
    np.testing.assert_array_equal(got["a"], a)
    np.testing.assert_array_equal(got["b"], b)
    # the scores are an island: a product of rounded factors, not rounded itself
    exact = float(b.astype(np.float64)[0] @ b.astype(np.float64)[0])
    assert abs(got["c"][0, 0] - exact) <= 1e-5 * exact
    assert got["y"] == got["c"]  # softmax of one is 1


def test_the_simulated_graph_is_fp32_throughout(half):
    model = simulate(half)
    check(model)
    assert {i.data_type for i in model.graph.initializer} == {FP32, TensorProto.INT64}
    pairs = [node for node in model.graph.node if node.op_type == "Cast"]
    types = element_types(model)
    low = [node for node in pairs if types[node.output[0]] != FP32]
    users = Counter(name for node in model.graph.node for name in node.input)
    assert all(users[node.output[0]] == 1 for node in low)


def test_half_precision_errs_by_its_own_rounding_and_no_more(net, half, feed, precision):
    """Errors are random, each of at most half a spacing, and about 40 are made on any way through:
    the root mean square stays well within five spacings, and above a tenth of one."""
    exact = exact_outputs(net, make_probes(NoiseSchedule.linear(1000), 2, SIZE)[2])
    for name, got in run(simulate(half), feed).items():
        want = exact[name]
        error = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
        assert 0.1 * SPACING[precision] < error < 5 * SPACING[precision], name


def test_onnxruntime_itself_rounds_less_than_a_gpu_would(net, fp32, feed):
    """Why there is a simulation: fp16 directly skips roundings, bf16 does not load."""
    exact = exact_outputs(net, make_probes(NoiseSchedule.linear(1000), 2, SIZE)[2])["eps"]
    half = to_half(fp32, "fp16")
    direct, simulated = (
        np.abs(run(m, feed)["eps"] - exact).mean() for m in (half, simulate(half))
    )
    assert 0.2 * simulated < direct < 0.9 * simulated
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        run(to_half(fp32, "bf16"), feed)


def naive_norm():
    """Group norm of one group spelled out, as converters emit it; (1, 64) -> (1, 64)."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axis"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axis"], ["var"]),
        helper.make_node("Sqrt", ["var"], ["std"]),
        helper.make_node("Div", ["d", "std"], ["y"]),
    ]
    return model_of(nodes, [("axis", np.int64([1]))])


def test_a_norm_in_fp16_fails_silently_and_ours_does_not():
    """One activation of 300: its square is infinite, and the whole group becomes exactly zero."""
    x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    x[0, 7] = 300
    out = run(simulate(to_half(naive_norm(), "fp16")), {"x": x})["y"]
    assert np.isfinite(out).all()
    assert (out == 0).all()
    norm = {"num_groups": 1, "epsilon": 1e-5}
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["x3"]),
        helper.make_node("GroupNormalization", ["x3", "w", "b"], ["n"], **norm),
        helper.make_node("Mul", ["n", "w1"], ["low"]),
        helper.make_node("Reshape", ["low", "flat"], ["y"]),
    ]
    constants = [
        *(("w", np.ones(4, np.float32)), ("b", np.zeros(4, np.float32))),
        *(("shape", np.int64([1, 4, 16])), ("w1", np.float32([1]))),
        ("flat", np.int64([1, 64])),
    ]
    model = model_of(nodes, constants)
    out = run(simulate(to_half(model, "fp16")), {"x": x})["y"]
    want = (x.astype(np.float64) - x.mean()) / x.astype(np.float64).std()
    np.testing.assert_allclose(out, want, rtol=2e-3, atol=2e-3)


@pytest.fixture(scope="module")
def growing():
    """x -> 4 x -> (moved) -> minus -> y, with a branch that shrinks again."""
    nodes = [
        helper.make_node("Mul", ["x", "four"], ["a"]),
        helper.make_node("Split", ["a", "halves"], ["left", "right"], axis=1),
        helper.make_node("Sub", ["left", "right"], ["b"]),
        helper.make_node("Mul", ["b", "small"], ["c"]),
        helper.make_node("Mul", ["c", "four"], ["y"]),
    ]
    constants = [
        *(("four", np.float32([4])), ("small", np.float32([1e-3]))),
        ("halves", np.int64([32, 32])),
    ]
    return model_of(nodes, constants)


def test_ranges_are_the_largest_absolute_values_over_all_feeds(growing):
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.uniform(-s, s, (1, 64)).astype(np.float32)} for s in (1, 9000, 10)]
    got = ranges(growing, iter(feeds))
    x = feeds[1]["x"]
    b = 4 * x[:, :32] - 4 * x[:, 32:]
    expected = {
        "x": x,
        "a": 4 * x,
        "left": 4 * x[:, :32],
        "right": 4 * x[:, 32:],
        "b": b,
        "c": 1e-3 * b,
        "y": 4e-3 * b,
    }
    assert got == pytest.approx({k: float(np.abs(v).max()) for k, v in expected.items()}, rel=1e-5)


def test_ranges_show_what_is_not_finite(growing):
    """onnxruntime's own maximum of the differences would be 0: it passes over NaN."""
    x = np.zeros((1, 64), np.float32)
    x[0, [5, 37]] = 3e38
    got = ranges(growing, [{"x": x}, {"x": np.ones((1, 64), np.float32)}])
    assert got["a"] == np.inf
    assert np.isnan([got["b"], got["c"], got["y"]]).all()
    assert risky(growing, got) == {"Mul0", "Split1", "Sub2", "Mul3", "Mul4"}


def test_makers_and_takers_of_large_values_are_risky(growing):
    largest = {"x": 9000, "a": 36000, "left": 36000, "right": 36000, "b": 70000, "c": 70, "y": 280}
    assert risky(growing, largest) == {"Mul0", "Split1", "Sub2", "Mul3"}
    assert risky(growing, largest, limit=50000) == {"Sub2", "Mul3"}
    assert risky(growing, largest, limit=70000) == set()
    assert "Mul4" in risky(growing, largest | {"y": float("nan")})


def test_risky_nodes_kept_survive_what_fp16_does_not(growing):
    x = np.repeat(np.float32([[-9000, 9000]]), 32, axis=1) + np.arange(64, dtype=np.float32)
    want = run(growing, {"x": x})["y"]
    plain = run(simulate(to_half(growing, "fp16")), {"x": x})["y"]
    assert not np.isfinite(plain).all()
    keep = risky(growing, ranges(growing, [{"x": x}]))
    kept = run(simulate(to_half(growing, "fp16", keep)), {"x": x})["y"]
    np.testing.assert_allclose(kept, want, rtol=2e-3)


def test_ranges_of_the_network_cover_every_value(fp32, feed):
    got = ranges(fp32, [feed])
    values = {name for node in fp32.graph.node for name in node.output}
    assert set(got) == values | {"sources", "x_t", "shifts"}
    assert got["sources"] == feed["sources"].max()
    eps = run(fp32, feed)["eps"]
    assert got["eps"] == pytest.approx(np.abs(eps).max(), rel=1e-4)
    assert not risky(fp32, got)


@pytest.mark.slow
def test_a_strongly_typed_builder_takes_the_graph(half, precision):
    """TensorRT for RTX needs no GPU to parse and build."""
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    errors = lambda: [str(parser.get_error(i)) for i in range(parser.num_errors)]  # noqa: E731
    assert parser.parse(half.SerializeToString()), errors()
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, channels in (("sources", 9), ("x_t", 3)):
        profile.set_shape(name, *[(1, channels, SIZE, SIZE)] * 3)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
