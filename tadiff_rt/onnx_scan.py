"""The gate for ONNX files: only graphs as our exporter writes them reach a runtime's parser.

It reads verified bytes before onnxruntime or TensorRT do, without the onnx package and without
copying weights. Runtimes and onnx.checker disagree on what is a valid file; here a file is
refused unless every field of it is known, it holds its weights itself, and its operators are those
of our exports. The memory of a run is not bounded: sizes written in the file are limited, those
that a graph computes are not.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tadiff_rt.errors import ModelFileError, raise_findings
from tadiff_rt.onnx_graph import (
    Value,
    check_literal,
    check_wiring,
    read_hints,
    read_values,
    read_weights,
)
from tadiff_rt.onnx_tensor import quoted, read_entries, refuse_fields
from tadiff_rt.protobuf import Message, Reader, schema

__all__ = ["ALLOWED_OPS", "Graph", "Value", "require_contract", "scan"]

ALLOWED_OPS = frozenset(
    {
        *("Add", "Div", "Mod", "Mul", "Sub", "Equal", "Where"),
        *("Cos", "Sin", "Sigmoid", "Softmax", "ReduceMax", "ReduceSum"),
        *("Conv", "Gemm", "MatMul", "InstanceNormalization", "Resize"),
        *("Cast", "Concat", "Expand", "Reshape", "Shape", "Slice", "Split"),
        *("Transpose", "Unsqueeze"),
    }
)
"""What our own exporter emits; anything else in a graph did not come from it."""
OPSETS = range(18, 26)
MIN_IR_VERSION = 4
"""In older files every initialiser is also an input, which a caller may replace."""
MAX_ITEMS = 100_000
"""Fields of a file. The published network has 14 000; these take a quarter of a second."""
WEIGHTS_KEY = "tadiff.weights_sha256"
FIX = "export the checkpoint again with `tadiff-export`; ONNX files of other origin are not run"

_DEFAULT_DOMAIN = ("", "ai.onnx")
_MODEL = schema(
    varint="ir_version=1 model_version=5",
    bytes="producer_name=2 producer_version=3 domain=4 doc_string=6 graph=7",
    many_bytes="opset_import=8 metadata_props=14 training_info=20 functions=25 configuration=26",
)
_OPSET = schema(bytes="domain=1", varint="version=2")
_GRAPH = schema(
    bytes="name=2 doc_string=10",
    many_bytes="node=1 initializer=5 input=11 output=12 value_info=13 quantization_annotation=14 "
    "sparse_initializer=15 metadata_props=16",
)
_NODE = schema(
    bytes="name=3 op_type=4 doc_string=6 domain=7 overload=8",
    many_bytes="input=1 output=2 attribute=5 metadata_props=9 device_configurations=10",
)


@dataclass(frozen=True)
class Graph:
    """What an accepted file says about itself."""

    opset: int
    inputs: dict[str, Value]
    outputs: dict[str, Value]
    operators: dict[str, int]
    """How often each occurs, by name."""
    metadata: dict[str, str]
    initializer_bytes: int
    """Of all weights as they lie in memory."""
    precisions: frozenset[str]
    """Data types of the weights."""


def scan(data: bytes, name: str) -> Graph:
    """Judges an ONNX file; time linear in its structure, weights are skipped by their length.

    Args:
        data: the whole file, already verified against its hash.
        name: of the file, for errors.

    Raises:
        ModelFileError: TD4101 weights outside the file, TD4102 with keys of unknown meaning,
            TD4103 a tensor or size that contradicts its bytes or is enormous, TD4104 not an
            unambiguous ONNX file, TD4105 something our exporter does not emit, TD4106 a tensor
            with two values, TD4108 an input or output without a shape.
    """
    try:
        return _read_model(Reader(MAX_ITEMS), data)
    except ModelFileError as e:
        raise ModelFileError(e.code, e.message, where=name, fix=FIX) from None


def require_contract(
    graph: Graph,
    *,
    inputs: Mapping[str, Value],
    outputs: Mapping[str, Value],
    contract: Mapping[str, str],
    name: str,
) -> None:
    """Checks that a graph is the one that the bundle's manifest describes.

    Args:
        inputs: expected inputs; names, data types, dimensions and their names must be equal.
        outputs: expected outputs, likewise.
        contract: metadata that the graph must carry, at least.
        name: of the file, for errors.

    Raises:
        ModelFileError: TD4107 the graph was made of other weights, TD4108 an input, an output or
            other metadata differ; one error with all findings.
    """
    findings = []
    made_of = graph.metadata.get(WEIGHTS_KEY)
    expected = contract.get(WEIGHTS_KEY)
    if made_of is not None and expected is not None and made_of != expected:
        findings.append(
            ModelFileError(
                "TD4107",
                f"the graph was made of weights {quoted(made_of)}, not {quoted(expected)}",
                where=name,
                fix=FIX,
            )
        )
    wrong = _differences("input", graph.inputs, inputs)
    wrong += _differences("output", graph.outputs, outputs)
    for key, value in contract.items():
        found = graph.metadata.get(key)
        if found != value and not (key == WEIGHTS_KEY and findings):
            got = "missing" if found is None else quoted(found)
            wrong.append(f"metadata {key} is {got}, not {quoted(value)}")
    if wrong:
        findings.append(ModelFileError("TD4108", "; ".join(wrong), where=name, fix=FIX))
    raise_findings(findings)


def _differences(
    kind: str, found: Mapping[str, Value], expected: Mapping[str, Value]
) -> list[str]:
    lines = []
    for name in [*expected, *(n for n in found if n not in expected)]:
        got, want = found.get(name), expected.get(name)
        if got != want:
            lines.append(f"{kind} {quoted(name)} is {_shown(got)}, not {_shown(want)}")
    return lines


def _shown(value: Value | None) -> str:
    return "absent" if value is None else f"{value.dtype} {quoted(list(value.shape))}"


def _read_model(reader: Reader, data: bytes) -> Graph:
    _refuse_other_formats(data)
    model = reader.message(memoryview(data), _MODEL, "the model")
    refuse_fields(model, ("training_info", "functions", "configuration"))
    version, body = model.integer("ir_version") or 0, model.view("graph")
    if version < MIN_IR_VERSION or body is None:
        raise ModelFileError(
            "TD4104",
            f"not a whole ONNX model: IR version {version}, {'no' if body is None else 'a'} graph",
        )
    opset = _read_opset(reader, model)
    metadata = read_entries(reader, model, "metadata_props")
    graph = reader.message(body, _GRAPH, "the graph")
    refuse_fields(graph, ("sparse_initializer", "quantization_annotation"))
    read_entries(reader, graph, "metadata_props")
    nodes = [reader.message(view, _NODE, "a node") for view in graph.views("node")]
    operators = _count_operators(reader, nodes)
    inputs, outputs = read_values(reader, graph, "input"), read_values(reader, graph, "output")
    read_hints(reader, graph)
    weights, nbytes = read_weights(reader, graph, nodes)
    uses = check_wiring(nodes, {*inputs}, {*weights}, {*outputs})
    for name, tensor in weights.items():
        check_literal(tensor, uses[name])
    precisions = frozenset(tensor.dtype for tensor in weights.values())
    return Graph(opset, inputs, outputs, operators, metadata, nbytes, precisions)


def _refuse_other_formats(data: bytes) -> None:
    for wrong, what in (
        (not data, "is empty"),
        (data.startswith(b"version https://git-lfs"), "is a Git LFS pointer, not the model"),
        (data[:64].lstrip().startswith(b"<"), "is a web page, not a model"),
    ):
        if wrong:
            raise ModelFileError("TD4104", f"the file {what}")


def _read_opset(reader: Reader, model: Message) -> int:
    versions = []
    for view in model.views("opset_import"):
        message = reader.message(view, _OPSET, "an operator set")
        domain, version = message.text("domain"), message.integer("version") or 0
        if domain not in _DEFAULT_DOMAIN or version not in OPSETS:
            raise ModelFileError(
                "TD4105",
                f"operator set {version} of domain {quoted(domain)}; expected "
                f"{OPSETS.start} to {OPSETS.stop - 1} of the default domain",
            )
        versions.append(version)
    if len(versions) != 1:
        raise ModelFileError("TD4105", f"{len(versions)} operator sets, expected one")
    return versions[0]


def _count_operators(reader: Reader, nodes: list[Message]) -> dict[str, int]:
    """How often each operator occurs, if all are allowed."""
    foreign = set()
    for node in nodes:
        refuse_fields(node, ("device_configurations",))
        read_entries(reader, node, "metadata_props")
        node.text("name")  # to refuse what is not text: runtimes take it as a C string
        domain, operator, overload = map(node.text, ("domain", "op_type", "overload"))
        if domain not in _DEFAULT_DOMAIN or operator not in ALLOWED_OPS or overload:
            foreign.add("::".join(filter(None, (domain, operator, overload))))
    if foreign:
        raise ModelFileError(
            "TD4105", f"operators outside the allow-list: {quoted(sorted(foreign))}"
        )
    return dict(sorted(Counter(node.text("op_type") for node in nodes).items()))
