"""The functions a checkpoint may call: those that make tensors, numbers and dictionaries."""

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tadiff_export.archive import Archive
from tadiff_export.plain import Inert, Storage, Symbol
from tadiff_export.unpickle import Handler
from tadiff_rt.errors import ModelFileError
from tadiff_rt.readers.tables import quoted

MAX_DIMS = 8
MAX_EXTENT = 2**40
"""Elements in a tensor, its empty dimensions left out: keeps every product far below 2**63."""
MAX_GROWTH = 4
"""Bytes of all tensors together, as a multiple of the file's: tied and expanded tensors get
numbers of their own."""

Bits = tuple[str, torch.dtype]

STORAGES: dict[Symbol, Bits] = {
    Symbol("torch", f"{kind}Storage"): bits
    for kind, bits in {
        "Double": ("<f8", torch.float64),
        "Float": ("<f4", torch.float32),
        "Half": ("<f2", torch.float16),
        "BFloat16": ("<i2", torch.bfloat16),  # numpy has no bfloat16; the bits are what counts
        "Long": ("<i8", torch.int64),
        "Int": ("<i4", torch.int32),
        "Short": ("<i2", torch.int16),
        "Char": ("<i1", torch.int8),
        "Byte": ("<u1", torch.uint8),
        "Bool": ("<u1", torch.bool),
    }.items()
}
"""Storage class -> how numpy reads its bytes, and what torch calls them."""
_REBUILD = re.compile(r"torch\..*\b_rebuild")
"""What makes tensors, of all kinds."""
NUMBERS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "?"}
"""numpy's name of a scalar type -> the same for struct."""


@dataclass(frozen=True, slots=True)
class _View:
    """Numbers of the file that a tensor is to hold."""

    tensor: torch.Tensor
    """Empty until `Tensors.fill`."""
    bits: Bits
    start: int
    """Of the storage in the file, bytes."""
    offset: int
    """From there to the first number, elements; as strides."""
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Tensors:
    """Makes the tensors of one file: empty while its pickle runs, filled when all of it is sound.

    So a file that is refused has cost no memory for its tensors, however many it describes.
    """

    def __init__(self, data: bytes, archive: Archive, name: str) -> None:
        self.data, self.archive, self.name = data, archive, name
        self.views: list[_View] = []
        self.bytes = 0
        self.handlers: dict[Symbol, Handler] = {
            **PLAIN,
            Symbol("torch._utils", "_rebuild_tensor_v2"): self.rebuild,
            Symbol("torch._utils", "_rebuild_parameter"): self.parameter,
            Symbol("torch._utils", "_rebuild_parameter_with_state"): self.parameter,
        }

    def resolve(self, function: Symbol) -> Handler | None:
        """What stands for `function`; raises TD4011 if called for another kind of tensor."""
        known = self.handlers.get(function)
        if known is None and _REBUILD.match(str(function)):
            raise self.not_dense(f"{quoted(str(function), 80)} makes")
        return known

    def rebuild(self, args: tuple[Any, ...]) -> torch.Tensor:
        """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, _, _[, metadata])."""
        if not 6 <= len(args) <= 7 or not isinstance(args[0], Storage):
            raise self.geometry(f"is made with {len(args)} arguments, expected a storage and 5")
        storage, offset, size, stride = args[:4]
        if len(args) == 7 and not (isinstance(args[6], dict) and len(args[6]) == 0):
            raise self.not_dense("a conjugate or negative view is")
        if storage.kind not in STORAGES:
            raise self.not_dense(f"{quoted(str(storage.kind), 80)} holds")
        bits = STORAGES[storage.kind]
        start = self.storage_start(storage, bits)
        self.check_geometry(storage, offset, size, stride)
        self.bytes += math.prod(size) * bits[1].itemsize
        if self.bytes > MAX_GROWTH * len(self.data):
            raise self.geometry(
                f"of shape {size} takes the tensors to {self.bytes} bytes, more than "
                f"{MAX_GROWTH} times the {len(self.data)} of the file"
            )
        tensor = torch.empty(0, dtype=bits[1])
        self.views.append(_View(tensor, bits, start, offset, size, stride))
        return tensor

    def parameter(self, args: tuple[Any, ...]) -> torch.Tensor:
        """torch._utils._rebuild_parameter(tensor, requires_grad, hooks[, attributes])."""
        if not args or not isinstance(args[0], torch.Tensor):
            raise self.geometry("is wanted as a parameter, but made without a tensor")
        return args[0]

    def storage_start(self, storage: Storage, bits: Bits) -> int:
        entry = self.archive.entries.get(f"data/{storage.key}")
        shown = f"storage {quoted(storage.key)}"
        if entry is None:
            raise self.geometry(f"needs {shown}, which the zip does not have")
        if entry.size != storage.numel * bits[1].itemsize:
            kind = str(bits[1]).removeprefix("torch.")
            raise self.geometry(
                f"needs {shown} of {_number(storage.numel)} {kind}, but it has {entry.size} bytes"
            )
        return entry.start

    def check_geometry(self, storage: Storage, offset: Any, size: Any, stride: Any) -> None:
        """Every element lies in the storage."""
        for what, values in (("size", size), ("stride", stride), ("offset", (offset,))):
            if type(values) is not tuple or len(values) > MAX_DIMS:
                raise self.geometry(f"has a {what} that is no tuple of up to {MAX_DIMS} numbers")
            for value in values:
                if type(value) is not int or not 0 <= value <= MAX_EXTENT:
                    raise self.geometry(f"has {what} {_number(value)}, expected 0 to {MAX_EXTENT}")
        if len(size) != len(stride):
            raise self.geometry(f"has {len(size)} sizes and {len(stride)} strides")
        if math.prod(n or 1 for n in size) > MAX_EXTENT:
            raise self.geometry(f"has shape {size}, at most {MAX_EXTENT} elements are read")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if (0 in size and offset > storage.numel) or (0 not in size and last >= storage.numel):
            raise self.geometry(
                f"of shape {size}, stride {stride} and offset {offset} reaches beyond the "
                f"{storage.numel} elements of storage {quoted(storage.key)}"
            )

    def fill(self) -> None:
        """Gives every tensor its own, contiguous copy of its numbers."""
        for view in self.views:
            numbers = torch.from_numpy(self.copied(view))
            if view.tensor.dtype != numbers.dtype:
                numbers = numbers.view(view.tensor.dtype)
            view.tensor.set_(numbers.untyped_storage(), 0, view.size, numbers.stride())

    def copied(self, view: _View) -> np.ndarray:
        kind, dtype = view.bits
        if 0 in view.size:
            return np.empty(view.size, kind)
        step = dtype.itemsize
        numbers = np.ndarray(
            view.size,
            kind,
            buffer=self.data,
            offset=view.start + view.offset * step,
            strides=[n * step for n in view.stride],
        )
        # A byte other than 0 and 1 in a torch.bool makes operations disagree about it.
        return np.array(numbers != 0 if dtype == torch.bool else numbers, order="C")

    def geometry(self, what: str) -> ModelFileError:
        return ModelFileError(
            "TD4010",
            f"a tensor {what}",
            where=self.name,
            fix="the file is damaged or was made by hand; save the state dict again",
        )

    def not_dense(self, what: str) -> ModelFileError:
        return ModelFileError(
            "TD4011",
            f"{what} no dense tensor of float, integer or bool numbers; sparse, quantised, "
            "nested, complex and meta tensors, and subclasses of torch.Tensor, are not read",
            where=self.name,
            fix="save dense tensors: {k: v.detach().float() for k, v in state.items()}",
        )


def _number(value: object) -> str:
    """A number as messages show it; those of a stranger may have a thousand digits."""
    if type(value) is not int:
        return type(value).__name__
    return str(value) if abs(value) < 2**64 else f"of {value.bit_length()} bits"


def _ordered_dict(args: tuple[Any, ...]) -> dict[Any, Any] | None:
    return None if args else {}


def _size(args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return args[0] if len(args) == 1 and type(args[0]) is tuple else None


def _scalar(args: tuple[Any, ...]) -> float | int | bool | None:
    """numpy's scalar(dtype, bytes), where the dtype is a call and a state of its own."""
    if len(args) != 2 or not isinstance(args[0], Inert) or args[0].name != "numpy.dtype":
        return None
    kind, order = _text(args[0].args, 0), _text(args[0].state, 1)
    if kind not in NUMBERS or order not in ("<", "|"):
        return None
    raw = _bytes(args[1])
    form = NUMBERS[kind]
    return struct.unpack(form, raw)[0] if len(raw) == struct.calcsize(form) else None


def _text(values: object, index: int) -> str:
    """The text at `index` of a tuple; empty if there is none. Other values are not touched."""
    found = values[index] if isinstance(values, tuple) and len(values) > index else ""
    return found if isinstance(found, str) else ""


def _bytes(value: object) -> bytes:
    """Bytes as protocols 3 to 5 write them, or as protocol 2 does: a call that encodes a text."""
    if isinstance(value, Inert) and value.name == "_codecs.encode":
        text = _text(value.args, 0)
        if _text(value.args, 1) == "latin1" and len(text) <= 8 and max(text, default="") <= "ÿ":
            return text.encode("latin1")
    return value if isinstance(value, bytes) else b""


PLAIN: dict[Symbol, Callable[[tuple[Any, ...]], Any]] = {
    Symbol("collections", "OrderedDict"): _ordered_dict,
    Symbol("torch", "Size"): _size,
    Symbol("numpy.core.multiarray", "scalar"): _scalar,
    Symbol("numpy._core.multiarray", "scalar"): _scalar,
}
"""What needs nothing of the file."""
