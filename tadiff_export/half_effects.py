"""What half precision does to a network, found on any CPU: its rounding, and what would overflow.

onnxruntime cannot run a half-precision graph as a GPU does on a CPU: fp16 operators that it lacks
run in fp32 without rounding in between, and bf16 ones are refused.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from tadiff_export.precision import (
    HALVES,
    LAYOUT,
    element_types,
    to_constant,
    to_tensor,
    users,
)

LARGEST = 16384.0
"""A value above this stays fp32: a quarter of fp16's largest, for inputs that were not tried."""


def simulate(model_half: ModelProto) -> ModelProto:
    """An fp32 graph with the rounding of a half-precision one, for any runtime.

    Constants are rounded, and the result of every half-precision operator is rounded once, by a
    cast to the half type and back: a sum in fp32 and a rounded result, as tensor cores compute.
    Values that exceed the half type become infinite, as there. onnxruntime keeps these pairs of
    casts at every optimisation level, unless `session.enable_cast_chain_elimination` is set.
    """
    model = ModelProto()
    model.CopyFrom(model_half)
    types, graph = element_types(model), model.graph
    halves = {onnx_type for onnx_type, _ in HALVES.values()}
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        kind = types[node.output[0]]
        if kind in halves and node.op_type not in LAYOUT:
            nodes.extend(_round_results(node, kind))
    del graph.node[:]
    graph.node.extend(nodes)
    for constant in graph.initializer:
        if constant.data_type in halves:
            constant.CopyFrom(to_constant(constant.name, to_tensor(constant).float()))
    onnx.checker.check_model(model, full_check=True)
    return model


def _round_results(node: NodeProto, kind: int) -> list[NodeProto]:
    """Casts to the half type and back behind `node`, under the names of its results."""
    casts = []
    for i, name in enumerate(node.output):
        rounded = f"{name}/rounded"
        if node.op_type == "Cast":
            node.output[i] = rounded
        else:
            node.output[i] = f"{name}/exact"
            casts.append(
                onnx.helper.make_node("Cast", [node.output[i]], [rounded], rounded, to=kind)
            )
        casts.append(
            onnx.helper.make_node("Cast", [rounded], [name], f"{name}/back", to=TensorProto.FLOAT)
        )
    return casts


def ranges(
    model: ModelProto, feeds: Iterable[Mapping[str, NDArray[np.float32]]]
) -> dict[str, float]:
    """Largest absolute number of every fp32 value, inputs included, over all feeds.

    The graph itself takes the maxima. onnxruntime may still hold many values at a time: 1.7 GB for
    configuration A at 192 x 192. A value that is not finite gives infinity or NaN.
    """
    probe = ModelProto()
    probe.CopyFrom(model)
    constants = {i.name for i in model.graph.initializer}
    types = element_types(model).items()
    names = [n for n, kind in types if kind == TensorProto.FLOAT and n not in constants]
    del probe.graph.output[:]
    for i, name in enumerate(names):
        probe.graph.node.append(onnx.helper.make_node("Abs", [name], [f"abs {i}"]))
        # onnxruntime's maximum passes over NaN, its sum does not.
        for reduce in ("ReduceMax", "ReduceSum"):
            out = f"{reduce} {i}"
            node = onnx.helper.make_node(reduce, [f"abs {i}"], [out], keepdims=0)
            probe.graph.node.append(node)
            value = onnx.helper.make_tensor_value_info(out, TensorProto.FLOAT, [])
            probe.graph.output.append(value)
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    largest = np.zeros(len(names), np.float32)
    for feed in feeds:
        maxima, sums = np.reshape(session.run(None, dict(feed)), (-1, 2)).T
        largest = np.maximum(largest, np.where(np.isnan(sums), np.nan, maxima))  # NaN stays
    return dict(zip(names, largest.tolist(), strict=True))


def risky(model: ModelProto, largest: Mapping[str, float], limit: float = LARGEST) -> set[str]:
    """Nodes that must stay fp32 because they make or take a value above `limit`.

    Args:
        model: the fp32 model that `largest` was measured on.
        largest: what `ranges` returned.
    """
    unfit = {name for name, number in largest.items() if not number <= limit}
    using = users(model.graph)
    makers = {node.name for node in model.graph.node if unfit & set(node.output)}
    return makers | {node.name for name in unfit for node in using[name]}
