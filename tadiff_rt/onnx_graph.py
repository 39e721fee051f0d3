"""The body of an ONNX graph, judged by `tadiff_rt.onnx_scan`: values, weights, what uses them."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from tadiff_rt.errors import ModelFileError
from tadiff_rt.onnx_tensor import (
    DTYPES,
    MAX_INTEGER,
    MAX_RANK,
    Tensor,
    quoted,
    read_attribute,
    read_entries,
    read_tensor,
    refuse_fields,
)
from tadiff_rt.protobuf import Message, Reader, schema

MAX_INITIALIZER_BYTES = 1 << 31
MAX_ELEMENTS = 1 << 31
"""Of a tensor whose size is written in the file."""
_SIZES = {("Expand", 1), ("Reshape", 1), ("Resize", 2), ("Resize", 3)}
"""Inputs that say how large the result is: (operator, position)."""
_POSITIONS = {("Slice", 1), ("Slice", 2)}
"""Clamped to the axis, so that exporters write 2**63 - 1 for its end."""

_VALUE = schema(bytes="name=1 type=2 doc_string=3", many_bytes="metadata_props=4")
_TYPE = schema(
    bytes="tensor_type=1 sequence_type=4 map_type=5 denotation=6 opaque_type=7 "
    "sparse_tensor_type=8 optional_type=9"
)
_TENSOR_TYPE = schema(varint="elem_type=1", bytes="shape=2")
_SHAPE = schema(many_bytes="dim=1")
_NOT_TENSORS = (
    *("sequence_type", "map_type", "opaque_type"),
    *("sparse_tensor_type", "optional_type"),
)
_DIM = schema(varint="dim_value=1", bytes="dim_param=2 denotation=3")
_NOTHING = memoryview(b"")


@dataclass(frozen=True)
class Value:
    """An input or output."""

    dtype: str
    """"fp32", "fp16", "bf16", "int64", "int32", "int8", "uint8" or "bool"."""
    shape: tuple[int | str | None, ...]
    """A number, the name of a dimension that a runtime fixes, or None for a nameless one."""


def read_values(reader: Reader, graph: Message, field: str) -> dict[str, Value]:
    """Inputs or outputs by name; each needs a data type of ours and a shape."""
    values: dict[str, Value] = {}
    for view in graph.views(field):
        name, code, shape = _read_value(reader, view)
        if code not in DTYPES:
            raise ModelFileError("TD4105", f"{field} {quoted(name)} is of data type {code}")
        if shape is None:
            raise ModelFileError("TD4108", f"{field} {quoted(name)} has no shape")
        _refuse_again(name, values)
        values[name] = Value(DTYPES[code][0], shape)
    return values


def read_hints(reader: Reader, graph: Message) -> None:
    """Types of values within the graph: read for their form, as runtimes infer their own."""
    for view in graph.views("value_info"):
        _read_value(reader, view)


def _read_value(
    reader: Reader, view: memoryview
) -> tuple[str, int, tuple[int | str | None, ...] | None]:
    """Name, code of the data type and shape of a tensor; 0 and None where they are not given."""
    message = reader.message(view, _VALUE, "a value")
    read_entries(reader, message, "metadata_props")
    kind = reader.message(message.view("type") or _NOTHING, _TYPE, "a type")
    refuse_fields(kind, _NOT_TENSORS)
    tensor = reader.message(kind.view("tensor_type") or _NOTHING, _TENSOR_TYPE, "a type")
    name, code = message.text("name"), tensor.integer("elem_type", bits=32) or 0
    shape = tensor.view("shape")
    if shape is None:
        return name, code, None
    dims = reader.message(shape, _SHAPE, "a shape").views("dim")
    return name, code, tuple(_read_dim(reader, dim) for dim in dims)


def _read_dim(reader: Reader, view: memoryview) -> int | str | None:
    dim = reader.message(view, _DIM, "a dimension")
    number, name = dim.integer("dim_value"), dim.text("dim_param")
    if number is not None and "dim_param" in dim:
        raise ModelFileError("TD4104", f"a dimension is both {number} and {quoted(name)}")
    return number if number is not None else name or None


def read_weights(
    reader: Reader, graph: Message, nodes: list[Message]
) -> tuple[dict[str, Tensor], int]:
    """Initialisers by name, and the bytes of them and of tensors in attributes."""
    weights: dict[str, Tensor] = {}
    nbytes = 0
    for view in graph.views("initializer"):
        name, tensor = read_tensor(reader, view)
        _refuse_again(name, weights)
        weights[name] = tensor
        nbytes += tensor.nbytes
    for node in nodes:
        names: set[str] = set()
        for view in node.views("attribute"):
            name, size = read_attribute(reader, view)
            _refuse_again(name, names)
            names.add(name)
            nbytes += size
    if nbytes > MAX_INITIALIZER_BYTES:
        raise ModelFileError("TD4103", f"the tensors are {nbytes} bytes, more than 2 GiB")
    return weights, nbytes


def _refuse_again(name: str, names: Collection[str]) -> None:
    if not name or name in names:
        raise ModelFileError("TD4105", f"the name {quoted(name)} is missing or not unique")


def check_wiring(
    nodes: list[Message], inputs: set[str], weights: set[str], outputs: set[str]
) -> dict[str, set[tuple[str, int]]]:
    """Every value is defined once, before it is used; returns where each is used.

    Returns:
        Name of a value -> (operator, position among its inputs) of every use.
    """
    for name in weights:
        _refuse_again(name, inputs)
    defined = inputs | weights
    uses: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for node in nodes:
        operator = node.text("op_type")
        for position, name in enumerate(node.texts("input")):
            if name and name not in defined:
                raise ModelFileError(
                    "TD4105", f"{operator} takes {quoted(name)}, which nothing before it makes"
                )
            uses[name].add((operator, position))
        for name in filter(None, node.texts("output")):
            _refuse_again(name, defined)
            defined.add(name)
    if not outputs <= defined:
        missing = quoted(sorted(outputs - defined))
        raise ModelFileError("TD4105", f"nothing makes the outputs {missing}")
    return uses


def check_literal(tensor: Tensor, uses: set[tuple[str, int]]) -> None:
    """Integers are sizes and positions of axes, and no size makes an enormous tensor."""
    if tensor.dtype not in ("int64", "fp32") or not tensor.nbytes:
        return
    numbers = tensor.numbers()
    if tensor.dtype == "int64" and not (uses and uses <= _POSITIONS):
        largest = max(int(numbers.max()), -int(numbers.min()))
        if largest > MAX_INTEGER:
            raise ModelFileError("TD4103", f"{tensor.what} holds an integer of {largest}")
    if uses & _SIZES:
        # A product, not its largest factor: 10**6 rows of 10**6 columns are as bad as 10**12.
        with np.errstate(all="ignore"):
            sizes = np.maximum(np.abs(numbers[:MAX_RANK].astype(np.float64)), 1)
            elements = float(sizes.prod())
        if len(numbers) > MAX_RANK or not elements <= MAX_ELEMENTS:
            raise ModelFileError(
                "TD4103", f"{tensor.what} asks for {elements:.3g} elements in {len(numbers)} axes"
            )
