"""Tensors and attributes of ONNX files, judged by `tadiff_rt.onnx_scan`."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.errors import ModelFileError
from tadiff_rt.protobuf import Message, Reader, schema

DTYPES = {
    1: ("fp32", 4, "float_data"),
    2: ("uint8", 1, "int32_data"),
    3: ("int8", 1, "int32_data"),
    6: ("int32", 4, "int32_data"),
    7: ("int64", 8, "int64_data"),
    9: ("bool", 1, "int32_data"),
    10: ("fp16", 2, "int32_data"),
    16: ("bf16", 2, "int32_data"),
}
"""ONNX data type -> its name here, bytes of an element, the typed field that may hold it."""
MAX_RANK = 8
"""TensorRT's limit."""
MAX_INTEGER = 1 << 31
"""Magnitude of integers in attributes and initialisers, all of which are sizes or positions."""
_NUMBERS = {"fp32": "<f4", "int64": "<i8"}
_VALUE_FIELDS = (
    *("float_data", "int32_data", "string_data", "int64_data"),
    *("raw_data", "double_data", "uint64_data"),
)
_LOCATION_KEYS = {b"location", b"offset", b"length", b"checksum"}
_SHOWN_CHARACTERS = 80

_ENTRY = schema(bytes="key=1 value=2")
_TENSOR = schema(
    many_varint="dims=1 int32_data=5 int64_data=7 uint64_data=11",
    varint="data_type=2 data_location=14",
    many_float="float_data=4",
    many_double="double_data=10",
    bytes="segment=3 name=8 raw_data=9 doc_string=12",
    many_bytes="string_data=6 external_data=13 metadata_props=16",
)
_ATTRIBUTE = schema(
    bytes="name=1 s=4 t=5 g=6 doc_string=13 tp=14 ref_attr_name=21 sparse_tensor=22",
    many_bytes="strings=9 tensors=10 graphs=11 type_protos=15 sparse_tensors=23",
    varint="i=3 type=20",
    many_varint="ints=8",
    float="f=2",
    many_float="floats=7",
)
_ATTRIBUTE_FIELDS = {
    1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings", 9: "tensors",
}  # fmt: skip
"""Type of an attribute -> the field that holds it."""
_NEVER_IN_ATTRIBUTES = (
    *("g", "graphs", "sparse_tensor", "sparse_tensors"),
    *("tp", "type_protos", "ref_attr_name"),
)


@dataclass(frozen=True)
class Tensor:
    """A tensor whose bytes are as many as its shape and data type need."""

    what: str
    """The tensor in words, for errors."""
    dtype: str
    nbytes: int
    data: memoryview | bytes
    """Its elements, little-endian: a view of the file for `raw_data`."""

    def numbers(self) -> NDArray[np.generic]:
        """The elements of an fp32 or int64 tensor, in a row; no copy."""
        return np.frombuffer(self.data, _NUMBERS[self.dtype])


def quoted(text: object) -> str:
    """`text` for an error message: its repr, cut off where it is long."""
    whole = repr(text[: _SHOWN_CHARACTERS + 1] if isinstance(text, str | bytes) else text)
    return whole if len(whole) <= _SHOWN_CHARACTERS else whole[:_SHOWN_CHARACTERS] + "..."


def refuse_fields(message: Message, fields: Iterable[str]) -> None:
    """TD4105 for fields that ONNX defines and our exporter does not write."""
    found = [name for name in fields if name in message]
    if found:
        raise ModelFileError("TD4105", f"{message.what} has {', '.join(found)}")


def read_entries(reader: Reader, message: Message, field: str) -> dict[str, str]:
    """A map of strings to strings; a key given twice is TD4104."""
    entries: dict[str, str] = {}
    for view in message.views(field):
        entry = reader.message(view, _ENTRY, f"an entry of {field}")
        key = entry.text("key")
        if key in entries:
            raise ModelFileError("TD4104", f"{message.what} has {field} {quoted(key)} twice")
        entries[key] = entry.text("value")
    return entries


def read_tensor(reader: Reader, view: memoryview) -> tuple[str, Tensor]:
    """A tensor's name and the tensor, which holds its own values in one way.

    Raises:
        ModelFileError: TD4101 ... TD4106, as in `tadiff_rt.onnx_scan.scan`.
    """
    message = reader.message(view, _TENSOR, "a tensor")
    name = message.text("name")
    what = f"tensor {quoted(name)}"
    read_entries(reader, message, "metadata_props")
    code = message.integer("data_type", bits=32) or 0
    if code not in DTYPES or "segment" in message:
        raise ModelFileError("TD4105", f"{what} has data type {code} or is a segment of another")
    dtype, width, typed_field = DTYPES[code]
    dims = reader.integers(message.views("dims"))
    if len(dims) > MAX_RANK or not all(0 <= n <= MAX_INTEGER for n in dims):
        raise ModelFileError("TD4103", f"{what} has the shape {quoted(dims)}")
    nbytes = math.prod(dims) * width
    _refuse_external(reader, message, what, nbytes)
    given = [field for field in _VALUE_FIELDS if field in message]
    if len(given) > 1:
        raise ModelFileError("TD4106", f"{what} has two values: {' and '.join(given)}")
    if given and given[0] not in ("raw_data", typed_field):
        raise ModelFileError("TD4103", f"{what} of {dtype} has its value in {given[0]}")
    data = _elements(reader, message, given[0], width) if given else b""
    if len(data) != nbytes:
        raise ModelFileError(
            "TD4103", f"{what} of shape {dims} needs {nbytes} bytes, and has {len(data)}"
        )
    return name, Tensor(what, dtype, nbytes, data)


def _elements(reader: Reader, message: Message, field: str, width: int) -> memoryview | bytes:
    """A tensor's value as it lies in memory."""
    views = message.views(field)
    if field.startswith("int"):
        return np.array(reader.integers(views), np.int64).astype(f"<i{width}").tobytes()
    return views[0] if len(views) == 1 else b"".join(views)


def _refuse_external(reader: Reader, message: Message, what: str, nbytes: int) -> None:
    """A value in another file is refused; the code says how far it was from an honest one."""
    place = message.integer("data_location", bits=32) or 0
    if place not in (0, 1):
        raise ModelFileError("TD4104", f"{what} has data_location {place}")
    if not place and "external_data" not in message:
        return
    entries = {}
    for view in message.views("external_data"):
        entry = reader.message(view, _ENTRY, "an entry of external_data")
        key = bytes(entry.view("key") or b"")
        if key not in _LOCATION_KEYS or key in entries:
            raise ModelFileError(
                "TD4102", f"{what} is in another file, with the key {quoted(key)} unknown or twice"
            )
        entries[key] = bytes(entry.view("value") or b"")
    for key in (b"offset", b"length"):
        number = entries.get(key, b"0")
        if not re.fullmatch(rb"[0-9]{1,18}", number):
            raise ModelFileError("TD4103", f"{what}: external {key.decode()} {quoted(number)}")
    if b"length" in entries and int(entries[b"length"]) != nbytes:
        raise ModelFileError(
            "TD4103", f"{what} needs {nbytes} bytes, external length {int(entries[b'length'])}"
        )
    location = entries.get(b"location", b"")
    raise ModelFileError(
        "TD4101", f"{what} is in another file, {quoted(location)}; weights belong into the model"
    )


def read_attribute(reader: Reader, view: memoryview) -> tuple[str, int]:
    """An attribute's name and the bytes of tensors in it.

    Raises:
        ModelFileError: TD4103 an enormous integer, TD4104 a value that is not of the declared
            type, TD4105 a nested graph or another type that our exporter does not write; and
            what `read_tensor` raises.
    """
    message = reader.message(view, _ATTRIBUTE, "an attribute")
    name = message.text("name")
    refuse_fields(message, _NEVER_IN_ATTRIBUTES)
    field = _ATTRIBUTE_FIELDS.get(message.integer("type", bits=32) or 0)
    given = [f for f in _ATTRIBUTE_FIELDS.values() if f in message]
    if field is None or given not in ([], [field]):
        raise ModelFileError(
            "TD4104", f"attribute {quoted(name)} of type {field} has {', '.join(given)}"
        )
    integers = reader.integers(message.views("i") + message.views("ints"))
    if any(abs(n) > MAX_INTEGER for n in integers):
        raise ModelFileError("TD4103", f"attribute {quoted(name)} is {quoted(integers)}")
    tensors = [read_tensor(reader, t)[1] for t in message.views("t") + message.views("tensors")]
    return name, sum(tensor.nbytes for tensor in tensors)
