"""Damaged and edited ONNX files against the gate: python tests/rt/fuzz_onnx.py COUNT SEED.

Half of the files have their bytes changed, half are edited through the onnx package: any field of
any message to any value. Of each file must hold:

- `scan` accepts it or raises ModelFileError, within a second;
- if it is accepted, the onnx package reads the same graph from it, and `reasons`, the rules
  written out once more on the package's objects, finds nothing against it;
- if it was edited and is refused, then with a code that `reasons` gives.
"""

import math
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, helper, numpy_helper

from tadiff_rt.errors import ModelFileError
from tadiff_rt.onnx_scan import ALLOWED_OPS, Graph, Value, scan

DTYPES = {
    TensorProto.FLOAT: ("fp32", 4, "float_data"),
    TensorProto.FLOAT16: ("fp16", 2, "int32_data"),
    TensorProto.BFLOAT16: ("bf16", 2, "int32_data"),
    TensorProto.INT64: ("int64", 8, "int64_data"),
    TensorProto.INT32: ("int32", 4, "int32_data"),
    TensorProto.INT8: ("int8", 1, "int32_data"),
    TensorProto.UINT8: ("uint8", 1, "int32_data"),
    TensorProto.BOOL: ("bool", 1, "int32_data"),
}
DATA = [
    *("float_data", "int32_data", "string_data", "int64_data"),
    *("raw_data", "double_data", "uint64_data"),
]
ATTRIBUTES = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings", 9: "tensors"}
NESTED = ["g", "graphs", "sparse_tensor", "sparse_tensors", "tp", "type_protos", "ref_attr_name"]
DEMO = Path(__file__).parents[2] / "tadiff_rt" / "data" / "demo.tadiff" / "conditioner.onnx"


def small_model() -> onnx.ModelProto:
    """A graph of 1 kB with every kind of field that exports have, and typed values besides."""
    ints = {"sizes": [0, 3, -1], "starts": [1], "ends": [2**63 - 1], "axes": [2]}
    nodes = [
        helper.make_node("Reshape", ["x", "sizes"], ["r"], name="reshape", allowzero=0),
        helper.make_node("Slice", ["r", "starts", "ends", "axes"], ["s"]),
        helper.make_node("Conv", ["s", "kernel", ""], ["c"], kernel_shape=[1], auto_pad="NOTSET"),
        helper.make_node("Cast", ["half"], ["bias"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["c", "kernel", "bias"], ["y"], alpha=0.5),
    ]
    weights = [numpy_helper.from_array(np.array(v), name) for name, v in ints.items()]
    weights.append(helper.make_tensor("kernel", TensorProto.FLOAT, [2, 3, 1], np.arange(6.0)))
    weights.append(helper.make_tensor("half", TensorProto.FLOAT16, [3], [0.5, 1, 2]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])],
        weights,
        value_info=[helper.make_tensor_value_info("r", TensorProto.FLOAT, ["batch", 3, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {"tadiff.weights_sha256": "0" * 64, "size": "32"})
    return model


def summary(model: onnx.ModelProto) -> Graph:
    """What `scan` should say, by the onnx package."""
    weights = model.graph.initializer
    tensors = [*weights, *(t for n in model.graph.node for a in n.attribute for t in held(a))]
    return Graph(
        model.opset_import[0].version,
        {v.name: value(v) for v in model.graph.input},
        {v.name: value(v) for v in model.graph.output},
        dict(Counter(node.op_type for node in model.graph.node)),
        {entry.key: entry.value for entry in model.metadata_props},
        sum(numpy_helper.to_array(t).nbytes for t in tensors),
        frozenset(DTYPES[t.data_type][0] for t in weights),
    )


def value(info: onnx.ValueInfoProto) -> Value:
    tensor = info.type.tensor_type
    dims = (
        d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim
    )
    return Value(DTYPES[tensor.elem_type][0], tuple(dims))


def held(attribute: onnx.AttributeProto) -> list[TensorProto]:
    return [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]


def present(message: Message, name: str) -> bool:
    return name in {field.name for field, _ in message.ListFields()}


def walk(message: Message) -> Iterator[Message]:
    """A message and all messages within it."""
    yield message
    for field, content in message.ListFields():
        if field.message_type is not None:
            for inner in content if not isinstance(content, Message) else [content]:
                yield from walk(inner)


def reasons(model: onnx.ModelProto) -> set[str]:
    """Codes of everything that is wrong with a model, by definition and without hurry."""
    graph = model.graph
    codes = set()
    if any(present(model, f) for f in ("training_info", "functions", "configuration")):
        codes.add("TD4105")
    if model.ir_version < 4 or not model.HasField("graph"):
        codes.add("TD4104")
    imported = [
        (o.domain in ("", "ai.onnx") and 18 <= o.version <= 25) for o in model.opset_import
    ]
    if imported != [True] or graph.sparse_initializer or graph.quantization_annotation:
        codes.add("TD4105")
    for message in walk(model):
        keys = [entry.key for entry in getattr(message, "metadata_props", [])]
        if len({*keys}) < len(keys):
            codes.add("TD4104")
        codes |= reasons_within(message)
    for info in [*graph.input, *graph.output]:
        tensor = info.type.tensor_type
        if tensor.elem_type not in DTYPES:
            codes.add("TD4105")
        elif not tensor.HasField("shape"):
            codes.add("TD4108")
    return codes | wiring(graph)


def reasons_within(message: Message) -> set[str]:
    """What is wrong with one message, whatever it is part of."""
    codes = set()
    fields = ("name", "op_type", "domain", "overload", "key", "value", "dim_param")
    texts = [text for f in fields if isinstance(text := getattr(message, f, ""), str)]
    if isinstance(message, onnx.ModelProto | onnx.GraphProto):
        texts = []  # their names are not used
    if isinstance(message, onnx.NodeProto):
        texts += [*message.input, *message.output]
        if message.op_type not in ALLOWED_OPS or message.domain not in ("", "ai.onnx"):
            codes.add("TD4105")
        names = [a.name for a in message.attribute]
        if message.overload or message.device_configurations or len({*names}) < len(names):
            codes.add("TD4105")
    if any("\0" in text for text in texts):
        codes.add("TD4104")
    if isinstance(message, onnx.TypeProto) and message.WhichOneof("value") not in (
        "tensor_type", None
    ):  # fmt: skip
        codes.add("TD4105")
    if isinstance(message, onnx.AttributeProto):
        if not message.name or any(present(message, f) for f in NESTED):
            codes.add("TD4105")
        of_type = ATTRIBUTES.get(message.type)
        if {f for f in ATTRIBUTES.values() if present(message, f)} - {of_type} or not of_type:
            codes.add("TD4104")
        if any(abs(i) > 2**31 for i in [message.i, *message.ints]):
            codes.add("TD4103")
    if isinstance(message, TensorProto):
        codes |= reasons_of_tensor(message)
    return codes


def reasons_of_tensor(tensor: TensorProto) -> set[str]:
    codes = set()
    if tensor.HasField("segment") or tensor.data_type not in DTYPES:
        return {"TD4105"}
    _, width, typed = DTYPES[tensor.data_type]
    nbytes = width * math.prod(tensor.dims)
    if len(tensor.dims) > 8 or any(not 0 <= n <= 2**31 for n in tensor.dims):
        codes.add("TD4103")
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        codes |= {"TD4101", "TD4102"}
        entries = {e.key: e.value for e in tensor.external_data}
        numbers = [entries.get(key, "0") for key in ("offset", "length")]
        if not all(re.fullmatch("[0-9]{1,18}", n) for n in numbers) or (
            "length" in entries and int(entries["length"]) != nbytes
        ):
            codes.add("TD4103")
    given = [field for field in DATA if present(tensor, field)]
    if len(given) > 1:
        codes.add("TD4106")
    counts = {f: len(getattr(tensor, f)) * (width if f != "raw_data" else 1) for f in given}
    if sum(counts.values()) != nbytes or not {*given} <= {"raw_data", typed}:
        codes.add("TD4103")
    return codes


def wiring(graph: onnx.GraphProto) -> set[str]:
    """Names that are missing, not unique or used too early; enormous sizes in the file."""
    names = [v.name for v in [*graph.input, *graph.initializer]]
    used: dict[str, list[tuple[str, int]]] = {}
    wrong = False
    for node in graph.node:
        wrong |= any(name and name not in names for name in node.input)
        for i, name in enumerate(node.input):
            used.setdefault(name, []).append((node.op_type, i))
        names += [name for name in node.output if name]
    outputs = [v.name for v in graph.output]
    wrong |= "" in [*names, *outputs] or not {*outputs} <= {*names}
    wrong |= len({*names}) < len(names) or len({*outputs}) < len(outputs)
    codes = {"TD4105"} if wrong else set()
    for tensor in graph.initializer:
        if tensor.data_type not in (TensorProto.INT64, TensorProto.FLOAT):
            continue
        if reasons_of_tensor(tensor):
            continue
        numbers = [v.item() for v in numpy_helper.to_array(tensor).ravel()]
        where = used.get(tensor.name, [])
        free = where and all(op == "Slice" and i in (1, 2) for op, i in where)
        if tensor.data_type == TensorProto.INT64 and not free:
            codes |= {"TD4103"} if any(abs(n) > 2**31 for n in numbers) else set()
        if {*where} & {("Expand", 1), ("Reshape", 1), ("Resize", 2), ("Resize", 3)}:
            size = math.prod(max(abs(float(n)), 1.0) if n == n else math.inf for n in numbers)
            codes |= {"TD4103"} if len(numbers) > 8 or size > 2**31 else set()
    return codes


INTEGERS = [
    0, 1, 2, 3, 7, 8, 11, 17, 21, 25, 26, 40, 2**31, 2**31 + 1, 2**40, 2**63 - 1, -1, -(2**63),
]  # fmt: skip
TEXTS = [
    "", "x", "y", "r", "sizes", "kernel", "axes", "If", "Constant", "Add", "Expand", "Slice",
    "ai.onnx", "com.microsoft", "a\0b", "../w.bin", "location", "offset", "basepath", "-1", "12",
]  # fmt: skip


def edited(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """A copy with up to three fields, of any message, set, cleared, doubled or reordered."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for _ in range(rng.integers(1, 4)):
        messages = [*walk(model)]
        message = messages[rng.integers(len(messages))]
        fields = list(message.DESCRIPTOR.fields)
        if rng.random() < 0.6:  # mostly those that are there: most of ONNX is not in our files
            fields = [field for field, _ in message.ListFields()] or fields
        field = fields[rng.integers(len(fields))]
        if rng.random() < 0.15:
            message.ClearField(field.name)
        elif field.is_repeated:
            edit_repeated(getattr(message, field.name), field, rng)
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
        else:
            setattr(message, field.name, any_value(field, rng))
    return model


def edit_repeated(items, field, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(items))) if len(items) else None
    how = rng.integers(4)
    if at is not None and how == 0:
        del items[at]
    elif at is not None and how == 1:
        items.append(items[at])
    elif at is not None and how == 2:
        items.append(items[at])
        del items[at]
    elif field.message_type is not None:
        items.add()
    else:
        items.append(any_value(field, rng))


def any_value(field, rng: np.random.Generator):
    """A value that the field can hold, likely a troublesome one."""
    if field.enum_type is not None:
        numbers = [v.number for v in field.enum_type.values]
        return numbers[rng.integers(len(numbers))]
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return float(rng.choice([0.0, 1e30, np.nan, np.inf]))
    if field.type in (field.TYPE_STRING, field.TYPE_BYTES):
        text = TEXTS[rng.integers(len(TEXTS))]
        return text if field.type == field.TYPE_STRING else text.encode()
    wide = field.type in (field.TYPE_INT64, field.TYPE_UINT64)
    low = 0 if field.type == field.TYPE_UINT64 else -(2**63)
    fitting = [n for n in INTEGERS if n >= low and (wide or abs(n) < 2**31)]
    return fitting[rng.integers(len(fitting))]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` with up to four places flipped, cut, inserted, doubled or overwritten."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(out) + 1))
        size = int(rng.choice([1, 1, 2, 5, 10, 40]))
        how = rng.integers(6)
        if how == 0 and at < len(out):
            out[at] ^= 1 << rng.integers(8)
        elif how == 1:
            del out[at : at + size]
        elif how == 2:
            out[at:at] = rng.bytes(size)
        elif how == 3:
            out[at:at] = out[at : at + size]
        elif how == 4:
            out[at : at + size] = rng.choice([b"\xff" * size, b"\0" * size, rng.bytes(size)])
        elif rng.random() < 0.2:
            del out[at:]
    return bytes(out)


def check(data: bytes, edits: set[str] | None) -> tuple[str, float]:
    """Tries one file; returns the code that it is refused with, or "", and the seconds.

    Args:
        edits: what `reasons` gives for an edited file; None where bytes were damaged.
    """
    start = time.process_time()
    try:
        graph, code, message = scan(data, "fuzz.onnx"), "", ""
    except ModelFileError as e:
        graph, code, message = None, e.code, str(e)
    seconds = time.process_time() - start
    assert seconds < 1, f"{seconds:.2f} s"
    assert len(message) < 600, message
    if graph is not None:
        try:
            model = onnx.ModelProto.FromString(data)
        except DecodeError:
            raise AssertionError("accepted, and the onnx package cannot read it") from None
        assert not reasons(model), f"accepted in spite of {reasons(model)}"
        assert graph == summary(model), f"{graph} != {summary(model)}"
    elif edits is not None:
        assert code in edits, f"refused with {code}, expected one of {edits}"
    return code, seconds


def fuzz(count: int, seed: int) -> tuple[Counter[str], float]:
    """Tries `count` files; returns how often each code occurred, and the longest time."""
    rng = np.random.default_rng(seed)
    small = small_model()
    originals = [small.SerializeToString()] * 9 + [DEMO.read_bytes()]
    codes: Counter[str] = Counter()
    longest = 0.0
    for i in range(count):
        if i % 2:
            model = edited(small, rng)
            data, edits = model.SerializeToString(), reasons(model)
        else:
            data, edits = damaged(originals[rng.integers(10)], rng), None
        try:
            code, seconds = check(data, edits)
        except Exception as e:
            path = Path(tempfile.gettempdir()) / f"fuzz_onnx_{seed}_{i}.onnx"
            path.write_bytes(data)
            raise AssertionError(f"file {i} of seed {seed}, written to {path}: {e!r}") from e
        codes[code] += 1
        longest = max(longest, seconds)
    return codes, longest


if __name__ == "__main__":
    codes, longest = fuzz(int(sys.argv[1]), int(sys.argv[2]))
    accepted = codes.pop("", 0)
    refused = dict(sorted(codes.items()))
    sys.stdout.write(f"{accepted} accepted, refused {refused}, longest {longest:.3f} s\n")
