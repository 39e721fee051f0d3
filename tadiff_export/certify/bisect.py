"""Where an artefact goes wrong: the first node of an ONNX graph."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from tadiff_export.certify.graph import Graph, Labels, differences

JUMP = 8.0
"""A node is at fault if its error is so many times that of its inputs; rounding adds up slowly."""

ELEMENTS_AT_A_TIME = 1 << 26
"""Of intermediate values held at a time, of each graph: 256 MB in fp32. The largest value of the
published network has 21 million for one 192 x 192 image."""


@dataclass(frozen=True)
class Broken:
    """The first node whose result is wrong though what it reads is right."""

    node: str
    op: str
    module: str
    """Path of the module whose weights it uses; empty for none."""
    error: float
    """max |candidate - exact| / max |exact| of its result; infinity where it is not finite."""
    allowed: float
    inputs_error: float
    """The largest of what it reads; of what the two graphs have in common before it."""
    differs: tuple[str, ...]
    """What the graphs do differently there, in words."""

    def text(self) -> str:
        """One sentence."""
        where = f" ({self.module})" if self.module else ""
        what = "; ".join(self.differs)
        error = "not finite" if np.isinf(self.error) else f"{self.error:.1e} off"
        return (
            f"the first wrong node is {self.op} {self.node!r}{where}: {error}, its inputs "
            f"{self.inputs_error:.1e}, {self.allowed:.1e} is allowed"
            + (f"; there {what}" if what else "")
        )


def first_broken(
    candidate: onnx.ModelProto,
    exact: onnx.ModelProto,
    feeds: Mapping[str, NDArray[np.float32]],
    *,
    limit: float,
) -> Broken | None:
    """Runs both graphs on onnxruntime's CPU provider and compares what they have in common.

    Args:
        candidate: the graph under suspicion, of any precision.
        exact: what it should compute.
        feeds: inputs of both; converted to what each graph takes.
        limit: allowed relative error of an intermediate value.

    Returns:
        The first node, in the candidate's order, whose error is above `limit` and JUMP times
        that of its inputs. Where errors grow without such a jump the first above `limit`; None
        where none is.

    Raises:
        onnxruntime's exceptions: it cannot run one of the graphs.
    """
    labels = Labels()
    mine, truth = labels.of(candidate), labels.of(exact)
    by_label = {truth.labels[value]: value for value in reversed(truth.places)}
    pairs = {
        value: by_label[mine.labels[value]]
        for value in mine.places
        if mine.labels[value] in by_label
    }
    errors = {name: 0.0 for name in feeds}
    grown: str | None = None
    for some in _chunks(exact, pairs, feeds):
        errors |= _errors(candidate, exact, {name: pairs[name] for name in some}, feeds)
        for value in some:
            before = _before(mine, value, errors)
            if errors[value] > limit and errors[value] > JUMP * before:
                return _broken(mine, truth, (value, pairs[value]), pairs, errors, limit)
            if errors[value] > limit and grown is None:
                grown = value
    if grown is None:
        return None
    return _broken(mine, truth, (grown, pairs[grown]), pairs, errors, limit)


def _chunks(
    exact: onnx.ModelProto,
    pairs: Mapping[str, str],
    feeds: Mapping[str, NDArray[np.float32]],
) -> Iterator[list[str]]:
    """The values of `pairs` in order, in parts that fit in memory."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(exact)
    for value in fixed.graph.input:
        for dimension, length in zip(
            value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True
        ):
            dimension.dim_value = length
    for node in fixed.graph.node:
        if node.op_type == "GroupNormalization":  # onnx infers no shape for it
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    inferred = onnx.shape_inference.infer_shapes(fixed).graph.value_info
    sizes = {
        value.name: math.prod(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
        for value in inferred
    }
    some: list[str] = []
    held = 0
    for name, twin in pairs.items():
        size = sizes.get(twin, ELEMENTS_AT_A_TIME // 4)
        if some and held + size > ELEMENTS_AT_A_TIME:
            yield some
            some, held = [], 0
        some.append(name)
        held += size
    if some:
        yield some


def _before(graph: Graph, value: str, errors: Mapping[str, float]) -> float:
    ends, _ = graph.behind(value, set(errors))
    return max((errors.get(name, 0.0) for name in ends), default=0.0)


def _broken(
    mine: Graph,
    truth: Graph,
    pair: tuple[str, str],
    pairs: Mapping[str, str],
    errors: Mapping[str, float],
    limit: float,
) -> Broken:
    place = mine.places[pair[0]]
    ends, own = mine.behind(pair[0], set(pairs))
    others, theirs = truth.behind(pair[1], set(pairs.values()))
    found = list(differences(mine, truth, pair))
    if own or theirs or {pairs.get(name, name) for name in ends} != others:
        sides = (mine, own or [pair[0]]), (truth, theirs or [pair[1]])
        artefact, checkpoint = (graph.describe(values[0]) for graph, values in sides)
        found.append(f"the artefact has {artefact}, the checkpoint {checkpoint}")
    return Broken(
        node=place.node.name,
        op=place.node.op_type,
        module=place.module,
        error=errors[pair[0]],
        allowed=limit,
        inputs_error=_before(mine, pair[0], errors),
        differs=tuple(found),
    )


def _errors(
    candidate: onnx.ModelProto,
    exact: onnx.ModelProto,
    pairs: Mapping[str, str],
    feeds: Mapping[str, NDArray[np.float32]],
) -> dict[str, float]:
    got = intermediate(candidate, list(pairs), feeds)
    expected = intermediate(exact, list(pairs.values()), feeds)
    return {value: _error(a, b) for value, a, b in zip(pairs, got, expected, strict=True)}


def _error(got: NDArray[np.generic], exact: NDArray[np.generic]) -> float:
    if got.shape != exact.shape:
        return float("inf")
    if not got.size:
        return 0.0
    a, b = got.astype(np.float64), exact.astype(np.float64)
    error = float(np.abs(a - b).max() / (np.abs(b).max() or 1.0))
    return error if np.isfinite(error) else float("inf")


def intermediate(
    model: onnx.ModelProto, values: Sequence[str], feeds: Mapping[str, NDArray[np.float32]]
) -> list[NDArray[np.generic]]:
    """What a graph computes on the way; optimisation is off, which could merge values away."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    outputs = {output.name for output in model.graph.output}
    for name in values:
        if name not in outputs:
            exposed.graph.output.add(name=name)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        exposed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    types = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
    cast = {
        wanted.name: feeds[wanted.name].astype(types.get(wanted.type, np.float32))
        for wanted in session.get_inputs()
    }
    results: list[NDArray[np.generic]] = session.run(list(values), cast)
    return results
