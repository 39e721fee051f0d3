"""Half precision is written into the ONNX graph, with the parts that need fp32 left in fp32.

Builders that are strongly typed (TensorRT 10 and later) run each operator in the type the graph
states. What half precision does to a network is in `tadiff_export.half_effects`.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Literal

import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

Precision = Literal["fp16", "bf16"]
HALVES = {
    "fp16": (TensorProto.FLOAT16, torch.float16),
    "bf16": (TensorProto.BFLOAT16, torch.bfloat16),
}
BF16_OPSET = 22
"""The first in which a convolution may be bf16."""
LAYOUT = {"Concat", "Reshape", "Resize", "Slice", "Split", "Transpose", "Unsqueeze"}
"""Operators that move numbers and compute none (our Resize takes the nearest)."""
REASON = "tadiff.fp32"
"""Metadata of a node: why it computes in fp32."""

NORM = "norm: squares of fp16 overflow from 256 on, and the group becomes zero"
SCORES = "attention scores: q.k overflows fp16, and softmax amplifies rounding"
ROW_FACTOR = "row factor 1 + max of softmax_one"
SHIFT = "conditioning shifts are computed in fp32"
WEIGHTS = "a weight is outside the range of the half type"
KEPT = "asked for"


def to_half(model: ModelProto, precision: Precision, keep: Collection[str] = ()) -> ModelProto:
    """A copy of the denoiser that computes in half precision where that is safe.

    Inputs and outputs stay fp32, as the solver's state is. In fp32 are also group norms, attention
    scores with their softmax and row factor, the addition of the shifts, nodes with a weight
    outside the half type's range, and `keep`. Operators that only move numbers keep the type that
    reaches them. A value is cast at most once each way. Rounded constants are called NAME/fp16.
    Reasons are stored in the nodes: `islands` lists them.

    Args:
        model: fp32, with named nodes (`tadiff_export.onnx`); not modified.
        keep: names of further nodes that stay fp32.

    Raises:
        ValueError: `keep` names a node that does not exist.
    """
    half = ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    if unknown := set(keep) - {node.name for node in graph.node}:
        raise ValueError(f"no node is called {', '.join(sorted(unknown))}")
    reasons = _reasons(graph, precision, keep)
    for node in graph.node:
        if node.name in reasons:
            node.metadata_props.add(key=REASON, value=reasons[node.name])
    _Rewriting(half, precision, set(reasons)).run()
    if precision == "bf16":
        for opset in half.opset_import:
            opset.version = max(opset.version, BF16_OPSET)
    onnx.checker.check_model(half, full_check=True)
    return half


def islands(model: ModelProto) -> dict[str, list[str]]:
    """Why nodes of a half-precision model compute in fp32 -> their names.

    Operators that move an island's numbers in fp32, and casts, have no reason of their own.
    """
    nodes: dict[str, list[str]] = defaultdict(list)
    for node in model.graph.node:
        for prop in node.metadata_props:
            if prop.key == REASON:
                nodes[prop.value].append(node.name)
    return dict(nodes)


def element_types(model: ModelProto) -> dict[str, int]:
    """Data type of every value of a model."""
    # Without check_type it stops at GroupNormalization, which ONNX defines as a function.
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    return types | {i.name: i.data_type for i in graph.initializer}


def to_tensor(constant: TensorProto) -> torch.Tensor:
    """The numbers of a floating-point constant, in its own type."""
    dtypes: dict[int, torch.dtype] = dict(HALVES.values())
    dtype = dtypes.get(constant.data_type, torch.float32)
    if not constant.HasField("raw_data"):  # a scalar of torch.onnx
        return torch.tensor(list(constant.float_data), dtype=dtype).reshape(*constant.dims)
    flat = torch.frombuffer(bytearray(constant.raw_data), dtype=dtype)
    return flat.reshape(tuple(constant.dims))


def to_constant(name: str, values: torch.Tensor) -> TensorProto:
    """The opposite of `to_tensor`."""
    types = {dtype: onnx_type for onnx_type, dtype in HALVES.values()}
    return TensorProto(
        name=name,
        data_type=types.get(values.dtype, TensorProto.FLOAT),
        dims=values.shape,
        raw_data=values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
    )


def users(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Value -> the nodes that take it."""
    found: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            found[name].append(node)
    return found


def _reasons(graph: GraphProto, precision: Precision, keep: Collection[str]) -> dict[str, str]:
    """Node -> why it must stay fp32."""
    using = users(graph)
    makers = {name: node for node in graph.node for name in node.output}
    too_large = _too_large(graph, precision)
    reasons: dict[str, str] = {}
    for node in graph.node:
        row = [reasons.get(makers[x].name) == ROW_FACTOR for x in node.input if x in makers]
        if node.op_type == "GroupNormalization":
            reasons[node.name] = NORM
        elif node.op_type == "Softmax":
            product = makers[node.input[0]]
            for before in (node, product, *_scalings(product, makers)):
                reasons[before.name] = SCORES
        elif node.op_type == "ReduceMax" or (node.op_type in ("Add", "Div") and any(row)):
            reasons[node.name] = ROW_FACTOR
        elif too_large & set(node.input):
            reasons[node.name] = WEIGHTS
    for node in _first_users("shifts", using):
        reasons.setdefault(node.name, SHIFT)
    for name in keep:
        reasons.setdefault(name, KEPT)
    return reasons


def _too_large(graph: GraphProto, precision: Precision) -> set[str]:
    """Constants that hold a number that the half type would make infinite."""
    dtype = HALVES[precision][1]
    constants = [i for i in graph.initializer if i.data_type == TensorProto.FLOAT]
    return {i.name for i in constants if not to_tensor(i).to(dtype).isfinite().all()}


def _scalings(product: NodeProto, makers: dict[str, NodeProto]) -> Iterator[NodeProto]:
    """The multiplications of queries and keys alone, before q.k."""
    for name in product.input:
        node = makers.get(name)
        while node is not None and node.op_type in LAYOUT:
            node = makers.get(node.input[0])
        if node is not None and node.op_type == "Mul":
            yield node


def _first_users(name: str, using: dict[str, list[NodeProto]]) -> Iterator[NodeProto]:
    """The nodes that compute with a value, behind operators that only move it."""
    for node in using.get(name, ()):
        if node.op_type not in LAYOUT:
            yield node
            continue
        for moved in node.output:
            yield from _first_users(moved, using)


class _Rewriting:
    """One pass over a graph: types are decided, casts put in, and constants rounded."""

    def __init__(self, model: ModelProto, precision: Precision, fp32: set[str]) -> None:
        self._graph = model.graph
        self._precision = precision
        self._type, self._dtype = HALVES[precision]
        types = element_types(model)
        self._floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
        self._constants = {i.name: i for i in self._graph.initializer}
        self._outputs = {v.name for v in self._graph.output}
        self._half: set[str] = set()
        self._fp32 = fp32
        self._casts: dict[tuple[str, bool], str] = {}
        self._nodes: list[NodeProto] = []
        self._used: dict[str, TensorProto] = {}

    def run(self) -> None:
        """Rewrites the graph in place."""
        for node in list(self._graph.node):
            half = self._computes_in_half(node)
            # A constant of a layout operator is a shape or a scale, not what is moved.
            rounds = half and node.op_type not in LAYOUT
            node.input[:] = [
                self._constant(name, rounds) if name in self._constants else self._as(name, half)
                for name in node.input
            ]
            made = list(node.output)
            if half:
                node.output[:] = [self._inside(node, i) for i in range(len(made))]
                self._half.update(node.output)
            self._nodes.append(node)
            for name, inside in zip(made, node.output, strict=True):
                if name != inside:
                    self._cast(inside, name, half=False)
        del self._graph.node[:], self._graph.initializer[:]
        self._graph.node.extend(self._nodes)
        self._graph.initializer.extend(self._used.values())

    def _computes_in_half(self, node: NodeProto) -> bool:
        if node.name in self._fp32 or node.output[0] not in self._floats:
            return False
        moved = [x for x in node.input if x in self._floats and x not in self._constants]
        return node.op_type not in LAYOUT or any(x in self._half for x in moved)

    def _inside(self, node: NodeProto, i: int) -> str:
        """The name of a half result: outputs of the graph are another, fp32, value."""
        name = node.output[i]
        if name not in self._outputs:
            return name
        return node.name if len(node.output) == 1 else f"{node.name}:{i}"

    def _as(self, name: str, half: bool) -> str:
        """The value in the type asked for, cast if it is of the other."""
        if name not in self._floats or half == (name in self._half):
            return name
        if (name, half) not in self._casts:
            target = f"{name}/to_{self._precision if half else 'fp32'}"
            self._casts[name, half] = self._cast(name, target, half)
        return self._casts[name, half]

    def _cast(self, name: str, target: str, half: bool) -> str:
        kind = self._type if half else TensorProto.FLOAT
        self._nodes.append(onnx.helper.make_node("Cast", [name], [target], target, to=kind))
        return target

    def _constant(self, name: str, half: bool) -> str:
        constant = self._constants[name]
        if not half or name not in self._floats:
            self._used[name] = constant
            return name
        rounded = f"{name}/{self._precision}"
        if rounded not in self._used:
            self._used[rounded] = to_constant(rounded, to_tensor(constant).to(self._dtype))
        return rounded
