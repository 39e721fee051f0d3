"""The gate for ONNX files agrees with the onnx package and refuses the corpus of hostile ones."""

import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tadiff_rt import onnx_graph
from tadiff_rt.errors import ModelFileError
from tadiff_rt.onnx_scan import ALLOWED_OPS, MAX_ITEMS, Graph, Value, require_contract, scan
from tadiff_rt.protobuf import Reader, schema, varint
from tests.rt.fuzz_onnx import DEMO, fuzz, reasons, small_model, summary


def refusal(data: bytes) -> ModelFileError:
    with pytest.raises(ModelFileError) as e:
        scan(data, "denoiser.onnx")
    assert e.value.where == "denoiser.onnx"
    assert e.value.fix
    assert e.value.exit_code == 4
    return e.value


def models_of(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.onnx"))]


# Real models against the onnx package and onnxruntime.


def test_our_exports_pass_and_say_what_onnx_says(bundle):
    files = models_of(bundle) + models_of(DEMO.parent)
    assert len(files) >= 4
    for data in files:
        model = onnx.ModelProto.FromString(data)
        assert scan(data, "") == summary(model)
        assert not reasons(model)


def test_onnxruntime_sees_the_same_inputs_and_outputs(bundle):
    for data in models_of(bundle):
        graph = scan(data, "")
        session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
        for found, expected in (
            (session.get_inputs(), graph.inputs),
            (session.get_outputs(), graph.outputs),
        ):
            assert {v.name: tuple(v.shape) for v in found} == {
                name: value.shape for name, value in expected.items()
            }


def test_the_allow_list_is_what_exports_hold_and_nothing_else(bundle):
    used = {op for data in models_of(bundle) for op in scan(data, "").operators}
    assert used == ALLOWED_OPS


@pytest.mark.slow
def test_the_published_shape_of_the_network_passes():
    import torch

    from tadiff_export.norms import lower_group_norms
    from tadiff_export.onnx import conditioner_to_onnx, denoiser_to_onnx
    from tadiff_export.split import split
    from tadiff_train.network import NetworkConfig, TaDiffNet

    torch.manual_seed(3)
    conditioner, denoiser = split(TaDiffNet(NetworkConfig()))
    lowered = lower_group_norms(denoiser_to_onnx(denoiser, 32))
    for model in (conditioner_to_onnx(conditioner), lowered):
        assert scan(model.SerializeToString(), "") == summary(model)


def test_half_precision_and_metadata_are_reported():
    model = small_model()
    assert scan(model.SerializeToString(), "") == Graph(
        opset=21,
        inputs={"x": Value("fp32", ("batch", 3, 4))},
        outputs={"y": Value("fp32", ("batch", None))},
        operators={"Cast": 1, "Conv": 1, "Gemm": 1, "Reshape": 1, "Slice": 1},
        metadata={"tadiff.weights_sha256": "0" * 64, "size": "32"},
        initializer_bytes=8 * 6 + 4 * 6 + 2 * 3,
        precisions=frozenset({"int64", "fp32", "fp16"}),
    )


# What a file may not be: O01 ... O13 and their kin, each one edit of a good model.


def weight(m: onnx.ModelProto, name: str = "kernel") -> TensorProto:
    return next(t for t in m.graph.initializer if t.name == name)


def external(m: onnx.ModelProto, **entries: str) -> None:
    tensor = weight(m)
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def add(m: onnx.ModelProto, op: str, inputs: list[str], output: str, **more) -> None:
    m.graph.node.append(helper.make_node(op, inputs, [output], **more))


def sized(m: onnx.ModelProto, op: str, position: int, values: np.ndarray) -> None:
    """Gives the operator a literal as its input at `position`."""
    m.graph.initializer.append(numpy_helper.from_array(values, "literal"))
    add(m, op, ["y", *[""] * (position - 1), "literal"], "large")


def int64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def nested_graph(m: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "then", [], [])
    m.graph.node[0].attribute.append(helper.make_attribute("then_branch", branch))


def function_chain(m: onnx.ModelProto) -> None:
    for i in range(3000):
        body = [helper.make_node(f"F{i + 1}", ["a"], ["b"], domain="f")]
        m.functions.append(helper.make_function("f", f"F{i}", ["a"], ["b"], body, []))


def swap_nodes(m: onnx.ModelProto) -> None:
    first, second = m.graph.node[0], m.graph.node[1]
    copy = onnx.NodeProto.FromString(first.SerializeToString())
    first.CopyFrom(second)
    second.CopyFrom(copy)


def cycle(m: onnx.ModelProto) -> None:
    add(m, "Add", ["x", "q"], "p")
    add(m, "Add", ["x", "p"], "q")


def both_values(m: onnx.ModelProto) -> None:
    weight(m).raw_data = b"\0" * 24


def tensor_with(**fields):
    """An edit of the weight that replaces the named fields."""

    def edit(m: onnx.ModelProto) -> None:
        tensor = weight(m)
        for name, value in fields.items():
            tensor.ClearField(name)
            if isinstance(value, list):
                getattr(tensor, name).extend(value)
            else:
                setattr(tensor, name, value)

    return edit


HOSTILE = {
    # O01 ... O04: weights elsewhere
    "relative": (lambda m: external(m, location="../secret.bin"), "TD4101", "../secret.bin"),
    "absolute": (lambda m: external(m, location="/dev/zero"), "TD4101", "/dev/zero"),
    "NUL": (lambda m: external(m, location="w\0.bin"), "TD4101", r"w\x00.bin"),
    "honest": (
        lambda m: external(m, location="w.bin", offset="0", length="24", checksum="ab"),
        "TD4101",
        "w.bin",
    ),
    "no entries": (external, "TD4101", "another file"),
    "entries, default location": (
        lambda m: weight(m).external_data.add(key="location", value="w"),
        "TD4101",
        "another file",
    ),
    "in an attribute": (
        lambda m: m.graph.node[0].attribute.append(
            helper.make_attribute("t", TensorProto(data_type=1, data_location=1, name="inner"))
        ),
        "TD4101",
        "inner",
    ),
    # O05
    "basepath": (lambda m: external(m, location="w", basepath="/etc"), "TD4102", "basepath"),
    "unknown key": (lambda m: external(m, location="w", ofset="0"), "TD4102", "ofset"),
    # O06
    "negative offset": (lambda m: external(m, location="w", offset="-4"), "TD4103", "-4"),
    "offset in words": (lambda m: external(m, location="w", offset="1_0"), "TD4103", "1_0"),
    "offset full-width": (lambda m: external(m, location="w", offset="１"), "TD4103", "offset"),
    "huge length": (lambda m: external(m, location="w", length="9" * 30), "TD4103", "length"),
    "other length": (lambda m: external(m, location="w", length="25"), "TD4103", "25"),
    # O07 and its kin
    "huge dims": (tensor_with(dims=[2**40]), "TD4103", str(2**40)),
    "huge and empty": (tensor_with(dims=[2**40, 0], float_data=[]), "TD4103", "shape"),
    "negative dims": (tensor_with(dims=[-2, -3]), "TD4103", "-2"),
    "nine axes": (tensor_with(dims=[6] + [1] * 8), "TD4103", "shape"),
    "one too few": (tensor_with(float_data=[1.0] * 5), "TD4103", "needs 24 bytes, and has 20"),
    "one too many": (tensor_with(float_data=[1.0] * 7), "TD4103", "has 28"),
    "no value": (tensor_with(float_data=[]), "TD4103", "has 0"),
    "value of another type": (
        tensor_with(float_data=[], int32_data=[1] * 6), "TD4103", "int32_data",
    ),
    "empty, of another type": (
        tensor_with(dims=[0], float_data=[], int32_data=[1]), "TD4103", "int32_data",
    ),
    "huge padding": (
        lambda m: add(m, "Conv", ["x", "kernel"], "p", pads=[0, 2**31 + 1]), "TD4103", "pads",
    ),
    "Expand to 10**12": (lambda m: sized(m, "Expand", 1, int64(10**12)), "TD4103", "literal"),
    "Expand to 10**6 x 10**6": (
        lambda m: sized(m, "Expand", 1, int64(10**6, 10**6)), "TD4103", "1e+12",
    ),
    "Reshape, negative": (lambda m: sized(m, "Reshape", 1, int64(-(2**62))), "TD4103", "literal"),
    "Resize by 10**6": (
        lambda m: sized(m, "Resize", 2, np.array([1e6, 1e6], np.float32)), "TD4103", "1e+12",
    ),
    "Resize by NaN": (
        lambda m: sized(m, "Resize", 2, np.array([np.nan], np.float32)), "TD4103", "nan",
    ),
    "Resize to 10**6 x 10**6": (
        lambda m: sized(m, "Resize", 3, int64(10**6, 10**6)), "TD4103", "1e+12",
    ),
    "Reshape to nine axes": (
        lambda m: sized(m, "Reshape", 1, int64(*[1] * 9)), "TD4103", "9 axes",
    ),
    "end of an axis, added": (lambda m: add(m, "Add", ["ends", "ends"], "p"), "TD4103", "ends"),
    "huge, not used": (
        lambda m: m.graph.initializer.append(numpy_helper.from_array(int64(2**40), "u")),
        "TD4103",
        "u",
    ),
    "far before the start": (
        lambda m: m.graph.initializer.append(numpy_helper.from_array(int64(-(2**40)), "u")),
        "TD4103",
        "'u'",
    ),
    # O09: operators, versions, order
    "domain": (
        lambda m: add(m, "Add", ["x", "x"], "p", domain="com.microsoft"),
        "TD4105",
        "com.microsoft::Add",
    ),
    "overload": (lambda m: add(m, "Add", ["x", "x"], "p", overload="f"), "TD4105", "Add::f"),
    "opset 99": (
        lambda m: setattr(m.opset_import[0], "version", 99), "TD4105", "operator set 99",
    ),
    "opset 17": (lambda m: setattr(m.opset_import[0], "version", 17), "TD4105", "17"),
    "opset 26": (lambda m: setattr(m.opset_import[0], "version", 26), "TD4105", "26"),
    "opset twice": (lambda m: m.opset_import.add(domain="ai.onnx", version=21), "TD4105", "2 op"),
    "opset of another domain": (
        lambda m: m.opset_import.add(domain="com.microsoft", version=21), "TD4105", "microsoft",
    ),
    "no opset": (lambda m: m.ClearField("opset_import"), "TD4105", "0 operator sets"),
    "cycle": (cycle, "TD4105", "'q'"),
    "disorder": (swap_nodes, "TD4105", "'r'"),
    "undefined": (lambda m: add(m, "Add", ["x", "ghost"], "p"), "TD4105", "ghost"),
    "made twice": (lambda m: add(m, "Add", ["x", "x"], "y"), "TD4105", "'y'"),
    "weight made by a node": (lambda m: add(m, "Add", ["x", "x"], "kernel"), "TD4105", "kernel"),
    "weight twice": (
        lambda m: m.graph.initializer.append(weight(m)), "TD4105", "kernel",
    ),
    "weight that is an input": (
        lambda m: m.graph.input.append(
            helper.make_tensor_value_info("kernel", TensorProto.FLOAT, [2, 3, 1])
        ),
        "TD4105",
        "kernel",
    ),
    "weight without a name": (tensor_with(name=""), "TD4105", "missing"),
    "input twice": (lambda m: m.graph.input.append(m.graph.input[0]), "TD4105", "'x'"),
    "output twice": (lambda m: m.graph.output.append(m.graph.output[0]), "TD4105", "'y'"),
    "output that nothing makes": (
        lambda m: setattr(m.graph.output[0], "name", "z"), "TD4105", "'z'",
    ),
    "attribute twice": (
        lambda m: m.graph.node[0].attribute.append(m.graph.node[0].attribute[0]),
        "TD4105",
        "allowzero",
    ),
    # O10 ... O12
    "ConstantOfShape": (
        lambda m: add(m, "ConstantOfShape", ["sizes"], "p"), "TD4105", "ConstantOfShape",
    ),
    "Constant": (lambda m: add(m, "Constant", [], "p", value_int=1), "TD4105", "Constant"),
    "function chain": (function_chain, "TD4105", "functions"),
    "EPContext": (
        lambda m: add(m, "EPContext", ["x"], "p", domain="com.microsoft", ep_cache_context=b"b"),
        "TD4105",
        "EPContext",
    ),
    "If": (lambda m: add(m, "If", ["x"], "p"), "TD4105", "If"),
    "nested graph": (nested_graph, "TD4105", "has g"),
    "nested graphs": (
        lambda m: m.graph.node[0].attribute.add(name="b", type=10).graphs.add(),
        "TD4105",
        "graphs",
    ),
    "reference": (
        lambda m: m.graph.node[0].attribute.add(name="b", type=2, ref_attr_name="c"),
        "TD4105",
        "ref_attr_name",
    ),
    "sparse attribute": (
        lambda m: m.graph.node[0].attribute.add(name="b", type=11).sparse_tensor.SetInParent(),
        "TD4105",
        "sparse_tensor",
    ),
    "sparse weight": (lambda m: m.graph.sparse_initializer.add(), "TD4105", "sparse_initializer"),
    "quantisation": (
        lambda m: m.graph.quantization_annotation.add(), "TD4105", "quantization_annotation",
    ),
    "training": (lambda m: m.training_info.add(), "TD4105", "training_info"),
    "devices": (lambda m: m.configuration.add(), "TD4105", "configuration"),
    "devices of a node": (
        lambda m: m.graph.node[0].device_configurations.add(), "TD4105", "device_configurations",
    ),
    # O13 and types
    "raw_data and float_data": (both_values, "TD4106", "float_data and raw_data"),
    "float_data and double_data": (tensor_with(double_data=[1.0]), "TD4106", "double_data"),
    "strings": (tensor_with(data_type=8, float_data=[]), "TD4105", "data type 8"),
    "float64": (tensor_with(data_type=11), "TD4105", "data type 11"),
    "no data type": (tensor_with(data_type=0), "TD4105", "data type 0"),
    "segment": (lambda m: weight(m).segment.SetInParent(), "TD4105", "segment"),
    "input of float64": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 11), "TD4105", "'x'",
    ),
    "sequence": (
        lambda m: m.graph.input[0].type.sequence_type.SetInParent(), "TD4105", "sequence_type",
    ),
    "input without a type": (lambda m: m.graph.input[0].ClearField("type"), "TD4105", "'x'"),
    "output without a shape": (
        lambda m: m.graph.output[0].type.tensor_type.ClearField("shape"), "TD4108", "'y'",
    ),
    # what is ambiguous
    "metadata twice": (lambda m: m.metadata_props.add(key="size"), "TD4104", "size"),
    "NUL in a name": (lambda m: add(m, "Add", ["x", "x"], "p\0q"), "TD4104", "not text"),
    "NUL in the name of a node": (
        lambda m: add(m, "Add", ["x", "x"], "p", name="a\0b"), "TD4104", "a node: name",
    ),
    "long name": (lambda m: add(m, "Add", ["x", "x"], "p" * 70_000), "TD4104", "too long"),
    "attribute of two values": (
        lambda m: setattr(m.graph.node[0].attribute[0], "f", 1.0), "TD4104", "f, i",
    ),
    "attribute of another type": (
        lambda m: setattr(m.graph.node[0].attribute[0], "type", 1), "TD4104", "allowzero",
    ),
    "attribute without a type": (
        lambda m: m.graph.node[0].attribute[0].ClearField("type"), "TD4104", "allowzero",
    ),
    "old IR": (lambda m: setattr(m, "ir_version", 3), "TD4104", "IR version 3"),
    "no IR": (lambda m: m.ClearField("ir_version"), "TD4104", "IR version 0"),
    "no graph": (lambda m: m.ClearField("graph"), "TD4104", "no graph"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case: str):
    edit, code, words = HOSTILE[case]
    model = small_model()
    edit(model)
    error = refusal(model.SerializeToString())
    assert error.code == code
    assert words in error.message
    assert len(error.message) < 500


def test_the_model_that_they_edit_is_good():
    assert not reasons(small_model())
    scan(small_model().SerializeToString(), "")


@pytest.mark.parametrize("version", [18, 25])
def test_operator_sets_at_the_ends_of_the_range(version: int):
    model = small_model()
    model.opset_import[0].version = version
    model.opset_import[0].domain = "ai.onnx"
    assert scan(model.SerializeToString(), "").opset == version


LARGEST = {
    "Expand": (1, int64(2**31)),
    "Reshape": (1, int64(0, -1, 2**31)),
    "Resize": (2, np.array([1, 0.5, 2**15, 2**16], np.float32)),
}


@pytest.mark.parametrize("op", LARGEST)
def test_sizes_at_the_limit_pass(op: str):
    model = small_model()
    sized(model, op, *LARGEST[op])
    scan(model.SerializeToString(), "")


VALUES = {  # data type -> integers and how numpy stores the values that they code
    TensorProto.UINT8: ([0, 255], np.uint8),
    TensorProto.INT8: ([-128, 127], np.int8),
    TensorProto.INT32: ([-(2**31), 2**31 - 1], np.int32),
    TensorProto.INT64: ([-(2**31), 2**31], np.int64),
    TensorProto.BOOL: ([0, 1], np.uint8),
    TensorProto.FLOAT16: ([0, 0xFFFF], np.uint16),
    TensorProto.BFLOAT16: ([0, 0x3F80], np.uint16),
}


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", VALUES)
def test_every_data_type_in_both_kinds_of_field(dtype: int, raw: bool):
    integers, stored = VALUES[dtype]
    tensor = TensorProto(name="w", data_type=dtype, dims=[2])
    if raw:
        tensor.raw_data = np.array(integers, stored).tobytes()
    else:
        field = "int64_data" if dtype == TensorProto.INT64 else "int32_data"
        getattr(tensor, field).extend(integers)
    model = small_model()
    model.graph.initializer.append(tensor)
    assert scan(model.SerializeToString(), "") == summary(model)
    tensor = model.graph.initializer[-1]
    tensor.dims[0] = 3
    assert refusal(model.SerializeToString()).code == "TD4103"


# Bytes that no writer makes.


def number(value: int) -> bytes:
    """A varint."""
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def block(field: int, content: bytes) -> bytes:
    return number(field << 3 | 2) + number(len(content)) + content


START = b"\x08\x0a" + block(8, b"\x10\x15")
"""ir_version 10 and opset 21."""


def with_tensor(content: bytes) -> bytes:
    return START + block(7, block(5, content))


ONE = b"\x10\x01" + block(8, b"w") + block(9, b"\0" * 4)
"""A tensor of data type 1, named w, of 4 bytes; without dims a scalar."""
BYTES = {
    "empty": (b"", "is empty"),
    "zeros": (bytes(4096), "no field 0"),
    "random": (np.random.default_rng(5).bytes(4096), ""),
    "page": (b"\n <!DOCTYPE html><html>404</html>", "a web page"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS"),
    "zip": (b"PK\3\4" + bytes(60), ""),
    "unknown field": (START + block(7, b"") + block(15, b""), "no field 15"),
    "unknown field of a tensor": (with_tensor(ONE + block(15, b"")), "no field 15"),
    "group": (START + block(7, b"") + b"\x0b\x0c", "wire type 3"),
    "wire type 6": (START + b"\x0e", "wire type 6"),
    "wire type 7": (START + b"\x0f", "wire type 7"),
    "integer as bytes": (START + block(5, b"\0"), "model_version has wire type 2"),
    "bytes as integer": (START + b"\x38\x01", "graph has wire type 0"),
    "graph twice": (START + block(7, b"") + block(7, b""), "graph twice"),
    "value twice": (with_tensor(ONE + block(9, b"\1" * 4)), "raw_data twice"),
    "data type of 33 bits": (with_tensor(b"\x10" + number(2**32 + 1) + ONE[2:]), "32 bits"),
    "location of 33 bits": (with_tensor(ONE + b"\x70" + number(2**32 + 1)), "32 bits"),
    "location 2": (with_tensor(ONE + b"\x70\x02"), "data_location 2"),
    "integer of 65 bits": (b"\x08" + b"\xff" * 9 + b"\x02", "64 bits"),
    "integer of 11 bytes": (b"\x08" + b"\x80" * 10 + b"\x00", "64 bits"),
    "tag of 6 bytes": (START + b"\xba\x80\x80\x80\x80\x00\x00", "no field"),
    "length past the end": (START + b"\x3a\x05abc", "cut off in its field graph"),
    "length of 64 bits": (START + b"\x3a" + number(2**64 - 1), "cut off"),
    "cut off within a float": (with_tensor(b"\x25\0\0"), "float_data"),
    "packed floats of 6 bytes": (with_tensor(ONE[:2] + block(4, bytes(6))), "within a number"),
    "packed dims cut off": (with_tensor(ONE + block(1, b"\x80")), "cut off"),
    "name that is no UTF-8": (with_tensor(ONE.replace(b"w", b"\xff")), "not text"),
    "dimension of two values": (
        START + block(7, block(11, block(1, b"x") + block(2, block(1, b"\x08\x01" + block(
            2, block(1, b"\x08\x05" + block(2, b"n"))))))),
        "both 5 and 'n'",
    ),
    "a million fields": (START + block(7, block(1, b"") * 1_000_000), str(MAX_ITEMS)),
    "a million integers": (with_tensor(ONE + block(1, b"\1" * 1_000_000)), str(MAX_ITEMS)),
}  # fmt: skip


@pytest.mark.parametrize("case", BYTES)
def test_what_is_not_plainly_onnx_is_refused(case: str):
    data, words = BYTES[case]
    start = time.process_time()  # of this process: others may keep the machine busy
    error = refusal(data)
    assert time.process_time() - start < 1
    assert error.code == "TD4104"
    assert words in error.message


def test_the_tensor_that_they_edit_is_good():
    assert scan(with_tensor(ONE), "").initializer_bytes == 4


def test_every_beginning_of_a_file_is_refused():
    model = small_model()
    model.ClearField("metadata_props")  # written last: without some of them a file is whole
    data = model.SerializeToString()
    codes = Counter(refusal(data[:size]).code for size in range(len(data)))
    assert codes == {"TD4104": len(data) - 1, "TD4105": 1}  # 1: whole but for the operator set


def test_an_axis_of_no_elements_is_not_one_of_any_number():
    model = small_model()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 0
    assert scan(model.SerializeToString(), "").inputs["x"].shape == ("batch", 3, 0)


def test_packed_and_unpacked_are_the_same():
    tensor = b"\x10\x01" + block(8, b"w") + block(9, bytes(24))
    unpacked = with_tensor(b"\x08\x02\x08\x03" + tensor)
    packed = with_tensor(block(1, b"\x02\x03") + tensor)
    assert scan(packed, "") == scan(unpacked, "")
    assert scan(packed, "").initializer_bytes == 24


# The wire format against Google's encoder.


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), st.binary(max_size=20))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_integers_and_bytes_survive_the_wire(values: list[int], text: bytes):
    message = AttributeProto(ints=values, s=text, type=7, f=1.5)
    fields = schema(many_varint="ints=8", bytes="s=4", varint="type=20", float="f=2")
    reader = Reader(100)
    found = reader.message(memoryview(message.SerializeToString()), fields, "")
    assert reader.integers(found.views("ints")) == values
    assert bytes(found.view("s") or b"") == text
    assert found.integer("type", bits=32) == 7
    assert np.frombuffer(found.view("f"), "<f4") == 1.5
    for value in values:
        coded = number(value % 2**64)
        assert varint(memoryview(coded + b"\xff"), 0) == (value % 2**64, len(coded))


# Size and time.


def test_weights_are_neither_copied_nor_read():
    weights = numpy_helper.from_array(np.zeros(2**24, np.float32), "large")
    model = small_model()
    model.graph.initializer.append(weights)
    data = model.SerializeToString()
    tracemalloc.start()
    start = time.process_time()
    graph = scan(data, "")
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert graph.initializer_bytes == 2**26 + 78
    assert seconds < 0.5
    assert peak < 1e6


def test_the_sum_of_all_tensors_is_limited(monkeypatch):
    model = small_model()
    inner = numpy_helper.from_array(np.zeros(4, np.float32))
    model.graph.node[0].attribute.append(helper.make_attribute("t", inner))
    data = model.SerializeToString()
    assert onnx_graph.MAX_INITIALIZER_BYTES == 2**31
    monkeypatch.setattr(onnx_graph, "MAX_INITIALIZER_BYTES", 78 + 16)
    assert scan(data, "").initializer_bytes == 94
    monkeypatch.setattr(onnx_graph, "MAX_INITIALIZER_BYTES", 78 + 15)
    assert refusal(data).code == "TD4103"


def test_some_hundred_damaged_and_edited_files():
    codes, longest = fuzz(600, seed=2)
    assert {"", "TD4103", "TD4104", "TD4105", "TD4106"} <= set(codes)
    assert longest < 1


# The bundle's contract.

GRAPH = Graph(
    opset=21,
    inputs={"x": Value("fp32", ("batch", 3))},
    outputs={"y": Value("fp32", ("batch", 4)), "z": Value("fp32", (1,))},
    operators={},
    metadata={"tadiff.weights_sha256": "ab", "size": "32", "more": "unasked"},
    initializer_bytes=0,
    precisions=frozenset(),
)
CONTRACT = {"tadiff.weights_sha256": "ab", "size": "32"}


def require(graph: Graph, contract: dict[str, str] = CONTRACT) -> None:
    require_contract(
        graph, inputs=GRAPH.inputs, outputs=GRAPH.outputs, contract=contract, name="d.onnx"
    )


def findings(graph: Graph, contract: dict[str, str] = CONTRACT) -> dict[str, str]:
    with pytest.raises(ModelFileError) as e:
        require(graph, contract)
    assert {f.where for f in e.value.findings} == {"d.onnx"}
    return {f.code: f.message for f in e.value.findings}


def test_the_graph_of_the_manifest_passes():
    require(GRAPH)


def test_other_weights_have_their_own_code():
    other = replace(GRAPH, metadata=GRAPH.metadata | {"tadiff.weights_sha256": "cd"})
    assert findings(other) == {"TD4107": "the graph was made of weights 'cd', not 'ab'"}


def test_all_metadata_that_differ_are_listed():
    found = findings(GRAPH, CONTRACT | {"size": "64", "spacing": "1.0"})
    assert found == {
        "TD4108": "metadata size is '32', not '64'; metadata spacing is missing, not '1.0'"
    }
    assert findings(replace(GRAPH, metadata={"size": "32"})) == {
        "TD4108": "metadata tadiff.weights_sha256 is missing, not 'ab'"
    }


CHANGES = {
    "renamed": ({"q": Value("fp32", ("batch", 3))}, "input 'x' is absent"),
    "another one": (
        GRAPH.inputs | {"q": Value("fp32", (1,))},
        "input 'q' is fp32 [1], not absent",
    ),
    "data type": ({"x": Value("fp16", ("batch", 3))}, "fp16 ['batch', 3], not fp32 ['batch', 3]"),
    "static": ({"x": Value("fp32", (4, 3))}, "[4, 3]"),
    "dimension renamed": ({"x": Value("fp32", ("n", 3))}, "['n', 3]"),
    "dimension unnamed": ({"x": Value("fp32", (None, 3))}, "[None, 3]"),
    "size": ({"x": Value("fp32", ("batch", 9))}, "['batch', 9]"),
    "axis": ({"x": Value("fp32", ("batch",))}, "['batch']"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_inputs_and_outputs_must_be_equal(change: str):
    values, words = CHANGES[change]
    found = findings(replace(GRAPH, inputs=values))
    assert set(found) == {"TD4108"}
    assert words in found["TD4108"]
    outputs = {"y": GRAPH.outputs["y"]}
    assert "output 'z' is absent" in findings(replace(GRAPH, outputs=outputs))["TD4108"]


def test_everything_wrong_is_said_at_once():
    wrong = replace(GRAPH, inputs={}, outputs={}, metadata={"tadiff.weights_sha256": "cd"})
    found = findings(wrong)
    assert list(found) == ["TD4107", "TD4108"]
    for words in ("input 'x'", "output 'y'", "output 'z'", "metadata size"):
        assert words in found["TD4108"]
