"""One .npy file: its header, judged before anything is read, and one entry of its first axis.

numpy's own reader parses the header as a Python literal and, if asked to, unpickles objects; this
one matches the three fields that numpy writes and refuses everything else (numpy.lib.format,
"Format Version 1.0" and "2.0").
"""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.errors import NiftiError
from tadiff_rt.readers.gzipped import open_regular
from tadiff_rt.readers.nifti_header import LFS_MAGIC

MAGIC = b"\x93NUMPY"
LENGTH_BYTES = {1: 2, 2: 4}
"""Of the field that gives the length of the header, by major version."""
MAX_HEADER_BYTES = 4096
MAX_AXES = 8

_DTYPE = re.compile(r"'descr':\s*'([<>|=][a-zA-Z][0-9]{1,3})'")
_ORDER = re.compile(r"'fortran_order':\s*(True|False)")
_SHAPE = re.compile(r"'shape':\s*\(([0-9]{1,12}(?:,\s*[0-9]{1,12})*)?,?\s*\)")


@dataclass(frozen=True)
class NpyFile:
    """A .npy file that holds as many bytes as its header says."""

    path: Path
    label: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    """Of the first element from the start of the file."""

    def read(self, first: int = 0, count: int | None = None) -> NDArray[Any]:
        """Entries [first, first + count) along axis 0; all for None.

        Raises:
            NiftiError: TD3123, TD3103, the file has changed since it was opened.
        """
        entries = self.shape[0] if count is None else count
        size = math.prod(self.shape[1:])
        with _opened(self.path, self.label) as file:
            file.seek(self.offset + first * size * self.dtype.itemsize)
            data = file.read(entries * size * self.dtype.itemsize)
        if len(data) < entries * size * self.dtype.itemsize:
            raise _cut(f"{len(data)} bytes from entry {first}", self.label)
        return np.frombuffer(data, self.dtype).reshape(entries, *self.shape[1:])

    def planes(self, entry: int, step: int) -> NDArray[Any]:
        """Every `step`-th plane along axis 1 of one entry, without reading those between."""
        size = math.prod(self.shape[2:])
        num_bytes = size * self.dtype.itemsize
        start = self.offset + entry * self.shape[1] * num_bytes
        kept = range(step // 2, self.shape[1], step)
        with _opened(self.path, self.label) as file:
            planes = []
            for plane in kept:
                file.seek(start + plane * num_bytes)
                planes.append(file.read(num_bytes))
        data = b"".join(planes)
        if len(data) < len(kept) * num_bytes:
            raise _cut(f"{len(data)} bytes of entry {entry}", self.label)
        return np.frombuffer(data, self.dtype).reshape(len(kept), *self.shape[2:])


def open_npy(path: Path, label: str) -> NpyFile:
    """The header of a .npy file.

    Raises:
        NiftiError: TD3101 empty, TD3102 the header is damaged, TD3103 and TD3106 fewer or more
            bytes than it declares, TD3108 a Git LFS pointer, TD3109 another kind of file, TD3112
            no extent, TD3115 not numbers in C order, TD3121 to TD3123 not a readable file.
    """
    with _opened(path, label) as file:
        header, offset = _header(file, label)
        got = os.fstat(file.fileno()).st_size - offset
    dtype, shape = _fields(header, label)
    expected = math.prod(shape) * dtype.itemsize
    if got < expected:
        raise _cut(f"{got} of {expected} bytes", label)
    if got > expected:
        what = f"{got - expected} bytes follow the last element that the header declares"
        raise NiftiError("TD3106", what, where=label, fix="save the array again")
    return NpyFile(path, label, dtype, shape, offset)


@contextmanager
def _opened(path: Path, label: str) -> Iterator[BinaryIO]:
    """A regular file, opened for reading; a pipe or folder is refused."""
    try:
        with os.fdopen(open_regular(path, label), "rb") as file:
            yield file
    except OSError as error:
        what = f"the file cannot be read: {error.strerror or error}"
        raise NiftiError("TD3123", what, where=label) from error


def _cut(what: str, label: str) -> NiftiError:
    fix = "copy or save the array again"
    return NiftiError("TD3103", f"the array is cut off: {what}", where=label, fix=fix)


def _header(file: BinaryIO, label: str) -> tuple[str, int]:
    start = file.read(256)
    if not start:
        raise NiftiError("TD3101", "the file is empty", where=label, fix="copy the file again")
    if start.startswith(LFS_MAGIC):
        what = "this is a Git LFS pointer, not the array itself"
        raise NiftiError("TD3108", what, where=label, fix="run git lfs pull")
    if not start.startswith(MAGIC):
        what = f"not an .npy array: it starts with {start[:16]!r}"
        raise NiftiError("TD3109", what, where=label, fix="save the array with numpy.save")
    major = start[6] if len(start) > 6 else 0
    if major not in LENGTH_BYTES:
        raise _damaged(f"has version {major}, known are 1 and 2", label)
    begin = 8 + LENGTH_BYTES[major]
    length = int.from_bytes(start[8:begin], "little")
    if length > MAX_HEADER_BYTES:
        raise _damaged(f"declares {length} bytes, at most {MAX_HEADER_BYTES} are read", label)
    file.seek(begin)
    text = file.read(length)
    if len(text) < length:
        raise _damaged(f"is cut off: {len(text)} of {length} bytes", label)
    return text.decode("latin-1"), begin + length


def _fields(header: str, label: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    dtype, order, shape = (pattern.search(header) for pattern in (_DTYPE, _ORDER, _SHAPE))
    if "'descr'" in header and not dtype:
        raise _unsupported("elements are not plain numbers", label)
    if not (dtype and order and shape):
        raise _damaged("lacks one of descr, fortran_order and shape", label)
    if dtype[1][1] not in "fiub":
        raise _unsupported(f"elements are {dtype[1]}, which is no kind of real number", label)
    extents = tuple(int(n) for n in re.findall("[0-9]+", shape[1] or ""))
    if order[1] == "True" and len(extents) > 1:
        raise _unsupported("elements are in Fortran order", label)
    if not extents or len(extents) > MAX_AXES or min(extents) == 0:
        what = f"the array has shape {extents}, expected at least one element on each axis"
        raise NiftiError("TD3112", what, where=label)
    try:
        return np.dtype(dtype[1]), extents
    except TypeError:
        raise _unsupported(f"numpy has no elements {dtype[1]}", label) from None


def _damaged(what: str, label: str) -> NiftiError:
    return NiftiError("TD3102", f"the header {what}", where=label, fix="save the array again")


def _unsupported(what: str, label: str) -> NiftiError:
    fix = "save numpy.ascontiguousarray of a plain array of numbers; pickled objects are not read"
    return NiftiError("TD3115", what, where=label, fix=fix)
