"""The layers of an engine: where their list comes from, and whether it is what the graph asks for.

TensorRT lists the layers of a built engine that it has opened. TensorRT for RTX cannot open one
without a GPU, but its builder logs the list. Both become the same JSON, {"Layers": [...]}, with
the field names of TensorRT's engine inspector.
"""

import json
import re
from collections import defaultdict
from typing import Any

import onnx
from onnx import TensorProto

from tadiff_rt.errors import EngineError


def inspected_layers(trt: Any, data: bytes, log: Any) -> str:
    """The list of layers that TensorRT's engine inspector reads from a built engine.

    Raises:
        EngineError: TD5021, the engine does not load.
    """
    engine = trt.Runtime(log).deserialize_cuda_engine(data)
    if engine is None:
        raise EngineError("TD5021", f"the engine that was built does not load: {log.tail()}")
    inspector = engine.create_engine_inspector()
    text: str = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return text


_LAYER = re.compile(
    r"Name: (.*), LayerType: (\w+), Inputs: \[(.*)\], Constants: \[(.*)\], Outputs: \[(.*)\], "
    r"TacticName: (.*), StreamId: (-?\d+)(?:, EventId: -?\d+)?, Metadata: (.*)"
)
_TENSOR = re.compile(
    r"\{ Name: (.*?), Dimensions: \[([-\d,]*)\], .*?Datatype: (\w+), Format: (.*?) \}"
)


def logged_layers(listing: str) -> str:
    """The list that the builder of TensorRT for RTX logs, as an inspector would write it.

    Raises:
        EngineError: TD5021, there is no list, or a line of it is not understood.
    """
    layers: list[dict[str, Any]] = []
    for line in listing.splitlines():
        if not line.startswith("Name: "):
            continue
        found = _LAYER.fullmatch(line)
        if not found:
            layers = []
            break
        name, kind, inputs, constants, outputs, tactic, stream, metadata = found.groups()
        layers.append(
            {
                "Name": name,
                "LayerType": kind,
                "Inputs": _tensors(inputs),
                "Constants": _tensors(constants),
                "Outputs": _tensors(outputs),
                "TacticName": tactic,
                "StreamId": int(stream),
                "Metadata": metadata,
            }
        )
    if not layers:
        raise EngineError(
            "TD5021",
            "the engine is built, but the builder's list of its layers cannot be read",
            fix="pip install 'tensorrt-rtx==1.7.*', whose list is known",
        )
    return json.dumps({"Layers": layers}, indent=1)


def _tensors(text: str) -> list[dict[str, Any]]:
    return [
        {
            "Name": name,
            "Dimensions": [int(n) for n in dimensions.split(",") if n],
            "Datatype": datatype,
            "Format": layout,
        }
        for name, dimensions, datatype, layout in _TENSOR.findall(text)
    ]


def layers_of(inspector: str) -> list[dict[str, Any]]:
    """The layers of an engine with at least the fields Name, LayerType, Inputs and Outputs.

    Raises:
        EngineError: TD5021, the list is empty, or holds names alone.
    """
    layers: list[dict[str, Any]] = json.loads(inspector).get("Layers", [])
    if not layers or not all(isinstance(x, dict) and "LayerType" in x for x in layers):
        raise EngineError("TD5021", "the engine's list of layers is empty or without detail")
    return layers


def is_plugin(layer: dict[str, Any]) -> bool:
    """Whether a layer runs code from outside TensorRT."""
    return "plugin" in layer["LayerType"].lower()


MOVES_DATA = {"Concat", "Expand", "Reshape", "Shape", "Slice", "Split", "Transpose", "Unsqueeze"}
"""Operators that may become a stride, or part of any layer; as may a Cast."""
MOST_LAYERS = {
    **dict.fromkeys(("Conv", "MatMul", "Gemm", "Softmax", "ReduceMax", "Resize"), 1),
    "GroupNormalization": 5,
}
"""Layers of one profile that a node of the graph may lie in. A norm is one kernel, or, where a
group is too large for that, its sums and the steps between them: 5 is the most that was seen, in
networks A, B and C. What is elementwise may be computed twice, in two layers that read it."""
MOST_ELEMENTWISE = 2
MOVING_KERNELS = {"Conc", "Expa", "Move", "Resh", "Slic", "Spli", "Tran"}
MOVING_TYPES = {"constant", "noop", "reformat", "shuffle", "signal", "wait"}
ONNX_TYPES = {
    TensorProto.FLOAT: "Float",
    TensorProto.FLOAT16: "Half",
    TensorProto.BFLOAT16: "BFloat16",
}


def unexpected_layers(inspector: str, model: onnx.ModelProto, profiles: int) -> list[str]:
    """How an engine's layers differ from what its ONNX graph asks for; nothing if they do not.

    Expected is: the graph is compiled as a whole. Every convolution, matrix product, softmax,
    maximum and resize lies in exactly one layer of each profile, a group norm in at most five, an
    elementwise operator in one or two, and nothing but data movement is missing. A softmax and the
    maximum that softmax_one divides by lie in one layer. Layers without a node of the graph move
    data and keep its precision. No tensor of a layer has a floating-point type that its nodes do
    not have in the graph. No layer is a plugin.

    What a layer computes with inside is not listed; the comparison with the checkpoint shows that.

    Args:
        inspector: of a `BuiltEngine`.
        model: the graph that the engine was built from.
        profiles: number of buckets.

    Returns:
        One sentence a finding.

    Raises:
        EngineError: TD5021, there is no list of layers.
    """
    layers = layers_of(inspector)
    types = _node_types(model)
    where: dict[str, list[str]] = defaultdict(list)
    found = _parts(layers, profiles)
    for layer in layers:
        nodes = re.findall(r"\[ONNX Layer: (.*?)\]", layer.get("Metadata", ""))
        for node in nodes:
            where[node].append(layer["Name"])
        if is_plugin(layer):
            found.append(f"layer {layer['Name']} is a plugin")
        found += _check_types(layer, nodes, types) if nodes else _check_move(layer)
    found += [f"node {name} is not in the graph" for name in sorted(where.keys() - types.keys())]
    found += _check_counts(model, where, types, profiles)
    return found + _check_softmax(model, where)


def _parts(layers: list[dict[str, Any]], profiles: int) -> list[str]:
    """TensorRT's graph compiler numbers what it compiles as one; more numbers are a split."""
    found = (re.search(r"_myl(\d+)_\d+$", layer["Name"]) for layer in layers)
    parts = {match[1] for match in found if match}
    if not parts or len(parts) == profiles:
        return []
    return [f"the graph is compiled in {len(parts)} parts for {profiles} profiles"]


def _node_types(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Node name -> floating-point types of its inputs and outputs, as an inspector names them.

    Followed by hand: onnx's inference knows no type behind a GroupNormalization.
    """
    graph = model.graph
    element = {v.name: v.type.tensor_type.elem_type for v in graph.input}
    element |= {w.name: w.data_type for w in graph.initializer}
    types = {}
    for node in graph.node:
        read = [element.get(name) for name in node.input]
        made = next((t for t in read if t in ONNX_TYPES), None)
        if node.op_type == "Cast":
            made = next(a.i for a in node.attribute if a.name == "to")
        elif node.op_type in ("Shape", "Equal"):
            made = None
        element |= {name: made for name in node.output}
        types[node.name] = {ONNX_TYPES[t] for t in (*read, made) if t in ONNX_TYPES}
    return types


def _float_types(tensors: list[dict[str, Any]]) -> set[str]:
    """The floating-point types among tensors of a layer; TensorRT 10 has them in the format."""
    words = " ".join(t.get("Datatype") or t.get("Format/Datatype", "") for t in tensors)
    names = {"float": "Float", "fp32": "Float", "half": "Half", "fp16": "Half", "fp8": "FP8"}
    names |= {"bfloat16": "BFloat16", "bf16": "BFloat16"}
    return {names[word] for word in re.findall(r"\w+", words.lower()) if word in names}


def _check_types(layer: dict[str, Any], nodes: list[str], types: dict[str, set[str]]) -> list[str]:
    stated = set().union(*(types.get(node, set()) for node in nodes))
    other = _float_types([*layer["Inputs"], *layer["Outputs"]]) - stated
    if not other:
        return []
    return [
        f"layer {layer['Name']} has tensors of {', '.join(sorted(other))}, its nodes "
        f"{', '.join(nodes)} are of {', '.join(sorted(stated)) or 'no float type'}"
    ]


def _check_move(layer: dict[str, Any]) -> list[str]:
    kernel = re.fullmatch(r"__my[el]\w*?_((?:[A-Z][a-z]+)+)(?:_myl\d+_\d+)?", layer["Name"])
    words = set(re.findall(r"[A-Z][a-z]+", kernel[1])) if kernel else {layer["LayerType"]}
    if not words <= MOVING_KERNELS and layer["LayerType"].lower() not in MOVING_TYPES:
        return [f"layer {layer['Name']} computes something that is no node of the graph"]
    before, after = _float_types(layer["Inputs"]), _float_types(layer["Outputs"])
    if before and not after <= before:
        return [f"layer {layer['Name']} turns {sorted(before)} into {sorted(after)} unasked"]
    return []


def _check_counts(
    model: onnx.ModelProto, where: dict[str, list[str]], types: dict[str, set[str]], profiles: int
) -> list[str]:
    found = []
    for node in model.graph.node:
        if node.op_type in MOVES_DATA or node.op_type == "Cast" or not types[node.name]:
            continue
        most = profiles * MOST_LAYERS.get(node.op_type, MOST_ELEMENTWISE)
        if not profiles <= len(where[node.name]) <= most:
            found.append(
                f"{node.op_type} {node.name} lies in {len(where[node.name])} layers of "
                f"{profiles} profiles, not in {profiles} to {most}: {', '.join(where[node.name])}"
            )
    return found


def _check_softmax(model: onnx.ModelProto, where: dict[str, list[str]]) -> list[str]:
    made_by = {node.output[0]: node.name for node in model.graph.node if node.op_type == "Softmax"}
    return [
        f"softmax {made_by[node.input[0]]} and its maximum {node.name} lie in different layers"
        for node in model.graph.node
        if node.op_type == "ReduceMax"
        and node.input[0] in made_by
        and where[node.name] != where[made_by[node.input[0]]]
    ]
