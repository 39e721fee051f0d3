"""Which values of two ONNX graphs are the same quantity, whatever their names and precision."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

PARAMETER = re.compile(r"^(?:net\.)?(?P<name>.+\.(?:weight|bias))(?![A-Za-z])")
"""Names of initialisers that come from the checkpoint; what follows is another tool's suffix."""

TRANSPARENT = {"Cast", "Identity"}
"""Operators whose result is, but for rounding, their input."""

Key = tuple[object, ...]


def parameter_name(initialiser: str) -> str | None:
    """The checkpoint's name of an initialiser; None for constants of the exporter."""
    match = PARAMETER.match(initialiser)
    return match["name"] if match else None


def parameters(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """The checkpoint's tensors in a graph, by the checkpoint's names."""
    found = {}
    for tensor in model.graph.initializer:
        name = parameter_name(tensor.name)
        if name is not None:
            found[name] = numpy_helper.to_array(tensor).astype(np.float32)
    return found


@dataclass(frozen=True, eq=False)
class Place:
    """A node of a graph and what it is in the network."""

    node: onnx.NodeProto
    module: str
    """Path of the module whose parameters it uses; empty for none."""

    @property
    def title(self) -> str:
        """Operator and name."""
        return f"{self.node.op_type} {self.node.name!r}"


class Labels:
    """Equal labels for values of several graphs that are computed alike.

    A node with parameters of the checkpoint is known by their module and by its operator,
    whatever feeds it; any other by its operator and the labels of its inputs. So a graph that is
    wrong in one place has the labels of a right one again after the next module. Casts are not
    seen, attributes and constants are not compared: these may be what is wrong.
    """

    def __init__(self) -> None:
        self._numbers: dict[Key, int] = {}

    def of(self, model: onnx.ModelProto) -> "Graph":
        """The labels of every value of a graph."""
        graph = Graph(model)
        seen: dict[Key, int] = {}
        for node in model.graph.node:
            if node.op_type in TRANSPARENT:
                graph.labels[node.output[0]] = self._label(graph, node.input[0])
                graph.passes[node.output[0]] = node.input[0]
                continue
            names = [parameter_name(graph.source(name)) for name in node.input]
            module = next((n.rpartition(".")[0] for n in names if n), "")
            key: Key = (node.op_type, module)
            if not module:
                key += tuple(self._label(graph, name) for name in node.input)
            seen[key] = again = seen.get(key, 0) + 1
            for k, output in enumerate(node.output):
                graph.labels[output] = self._number((*key, again, k))
                graph.places[output] = Place(node, module)
        return graph

    def _label(self, graph: "Graph", name: str) -> int:
        if name not in graph.labels:
            kind = "constant" if name in graph.constants else name
            graph.labels[name] = self._number(("input", kind))
        return graph.labels[name]

    def _number(self, key: Key) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


class Graph:
    """A graph with the labels of its values."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.labels: dict[str, int] = {}
        self.places: dict[str, Place] = {}
        """Value -> the node that computes it, casts excepted; in topological order."""
        self.passes: dict[str, str] = {}
        """Value -> the one it is a cast of."""
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def source(self, name: str) -> str:
        """The value behind casts."""
        while name in self.passes:
            name = self.passes[name]
        return name

    def describe(self, value: str) -> str:
        """A node with the nodes it reads, such as "Div(MatMul, constant)"."""
        node = self.places[value].node
        sources = [self.source(name) for name in node.input if name]
        read = [
            self.places[name].title
            if name in self.places
            else "constant"
            if name in self.constants
            else name
            for name in sources
        ]
        return f"{node.op_type}({', '.join(read)})"

    def inputs(self, value: str) -> list[str]:
        """What the node of a value reads, behind casts; neither parameters nor constants."""
        sources = [self.source(name) for name in self.places[value].node.input if name]
        return [name for name in sources if name not in self.constants]

    def behind(self, value: str, known: set[str]) -> tuple[set[str], list[str]]:
        """The nearest values before `value` that are in `known` or inputs of the graph, and those
        on the way that are not."""
        ends: set[str] = set()
        between: list[str] = []
        todo = self.inputs(value)
        while todo:
            name = todo.pop()
            if name in known or name not in self.places:
                ends.add(name)
            elif name not in between:
                between.append(name)
                todo += self.inputs(name)
        order = {name: k for k, name in enumerate(self.places)}
        return ends, sorted(between, key=order.__getitem__)


def differences(candidate: Graph, exact: Graph, pair: tuple[str, str]) -> Iterator[str]:
    """How the node of a value differs from the one of the same label: attributes and constants."""
    mine, truth = (graph.places[v].node for graph, v in zip((candidate, exact), pair, strict=True))
    attributes = [
        {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for node in (mine, truth)
    ]
    for name in sorted(attributes[0].keys() | attributes[1].keys()):
        got, expected = (_plain(side.get(name)) for side in attributes)
        if got != expected:
            yield f"{name} is {got} instead of {expected}"
    if len(mine.input) != len(truth.input):
        yield f"it has {len(mine.input)} inputs instead of {len(truth.input)}"
    for k, names in enumerate(zip(mine.input, truth.input, strict=False)):
        constants = [
            graph.constants.get(graph.source(name))
            for graph, name in zip((candidate, exact), names, strict=True)
        ]
        if any(c is None or parameter_name(c.name) for c in constants):
            continue
        got, expected = (numpy_helper.to_array(c) for c in constants if c is not None)
        if not _alike(got, expected):
            yield f"constant input {k} is {_brief(got)} instead of {_brief(expected)}"


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value


def _alike(got: NDArray[np.generic], expected: NDArray[np.generic]) -> bool:
    if got.shape != expected.shape:
        return False
    # Half precision is allowed; what it does to the result is measured elsewhere.
    a, b = got.astype(np.float64), expected.astype(np.float64)
    return bool(np.allclose(a, b, rtol=1e-2, atol=0))


def _brief(array: NDArray[np.generic]) -> str:
    values: Sequence[object] = array.ravel()[:4].tolist()
    return ", ".join(f"{value:.6g}" for value in values) + ("..." if array.size > 4 else "")
