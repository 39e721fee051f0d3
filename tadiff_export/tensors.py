"""A checkpoint file from anywhere -> plain values and tensors, with nothing in it executed.

Reads what `torch.save` writes since torch 1.6 (a zip with a pickle) and safetensors. The pickle is
run by a machine of our own (`unpickle`), which knows a few functions and imports none; tensors are
copied from the numbers of the zip after their geometry was checked against them.
"""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from tadiff_export.archive import MAX_FILE_BYTES, is_archive, open_archive
from tadiff_export.opcodes import scan
from tadiff_export.plain import Inert, as_mapping
from tadiff_export.rebuild import Tensors
from tadiff_export.safetensors_header import check_header, refusal
from tadiff_export.unpickle import run
from tadiff_rt.errors import ModelFileError
from tadiff_rt.readers.tables import quoted

__all__ = ["Contents", "Inert", "as_mapping", "parse", "read_contents"]


@dataclass(frozen=True)
class Contents:
    """What a checkpoint file holds.

    Attributes:
        format: "zip" from `torch.save`, or "safetensors".
        root: dict, list, tuple, str, bytes, int, float, bool, None and torch.Tensor, inside each
            other; tensors are dense, contiguous, and share no memory. (What was one object when
            it was saved is one object here, too.) Objects of any other class are `Inert`, names
            of classes and functions `plain.Symbol`. Of a safetensors file: name -> tensor.
        notes: what was not read, or read as plain data.
        sha256: of the bytes that were parsed, in hexadecimal.
    """

    format: Literal["zip", "safetensors"]
    root: Any
    notes: tuple[str, ...]
    sha256: str


def read_contents(path: Path) -> Contents:
    """Reads a checkpoint; the file is opened once.

    Raises:
        ModelFileError: TD4001 to TD4006, it is missing, damaged or of another format; TD4008 to
            TD4012 and TD4016, it is unsound or hostile.
    """
    return parse(_read(path), str(path))


def parse(data: bytes, name: str) -> Contents:
    """`read_contents` for the bytes of a file that messages call `name`."""
    digest = hashlib.sha256(data).hexdigest()
    if not data:
        raise _nothing("is empty", name)
    if is_archive(data):
        root, notes = _torch(data, name)
        return Contents("zip", root, notes, digest)
    _refuse_downloads(data, name)
    if data[8:9] == b"{" or name.endswith(".safetensors"):
        return Contents("safetensors", _safetensors(data, name), (), digest)
    raise _other_format(data, name)


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=_opened) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise _nothing("is a device or a pipe, expected a file", str(path))
            if about.st_size > MAX_FILE_BYTES:
                raise ModelFileError(
                    "TD4009",
                    f"has {about.st_size} bytes, at most {MAX_FILE_BYTES} are read",
                    where=str(path),
                    fix="save the weights alone, without the state of the optimiser",
                )
            return file.read(about.st_size)
    except OSError as error:
        raise _nothing(f"cannot be read: {error.strerror}", str(path)) from None
    except ValueError as error:
        raise _nothing(f"is not a file name: {error}", str(path)) from None


def _opened(path: str, flags: int) -> int:
    # O_NONBLOCK: opening a FIFO that nobody writes to must not hang.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _torch(data: bytes, name: str) -> tuple[Any, tuple[str, ...]]:
    archive = open_archive(data, name)
    order = archive.entries.get("byteorder")
    if order and (told := data[order.start : order.start + order.size]) != b"little":
        raise ModelFileError(
            "TD4010",
            f"the numbers are stored in byte order {told[:20]!r}, expected b'little'",
            where=name,
            fix="save the checkpoint again on a little-endian machine (x86, ARM)",
        )
    tensors = Tensors(data, archive, name)
    start = archive.pickle.start
    places = scan(data, start, start + archive.pickle.size, name)
    root, notes = run(places, data, tensors.resolve, name)
    tensors.fill()
    return root, notes


def _safetensors(data: bytes, name: str) -> dict[str, Any]:
    check_header(data, name)
    try:
        return dict(load_safetensors(data))
    except SafetensorError as error:
        raise refusal(f"the library refuses it: {str(error)[:200]}", name) from None


def _refuse_downloads(data: bytes, name: str) -> None:
    """Refuses what a download leaves in place of a file."""
    head = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise ModelFileError(
            "TD4002",
            f"is a web page ({len(data)} bytes of HTML or XML), expected a checkpoint",
            where=name,
            fix="the download gave a login or error page; download the file itself",
        )
    if head.startswith(b"version https://git-lfs"):
        raise ModelFileError(
            "TD4003",
            f"is a Git LFS pointer of {len(data)} bytes, not the file it stands for",
            where=name,
            fix="run `git lfs pull` in its repository, or download the file itself",
        )


_OTHERS = {
    b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19": "a file of torch before 1.6",
    b"\x80": "a bare pickle",
    b"\x93NUMPY": "an array of numpy",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip file",
}
"""First bytes -> what such a file is."""


def _other_format(data: bytes, name: str) -> ModelFileError:
    found = f"a file that begins with {data[:8]!r}"
    for first, kind in _OTHERS.items():
        if data.startswith(first):
            found = kind
            break
    if data[257:262] == b"ustar":
        found = "a tar file, as torch wrote in 2016"
    return ModelFileError(
        "TD4006",
        f"is {found}, expected the zip that torch.save writes since torch 1.6, or safetensors",
        where=name,
        fix="ask whoever made it to save its state dict again with torch 1.6 or later, or as "
        "safetensors; opening it in PyTorch may run whatever it holds",
    )


def _nothing(what: str, name: str) -> ModelFileError:
    return ModelFileError(
        "TD4001", what, where=name, fix=f"check the path, or copy {quoted(name, 80)} again"
    )
