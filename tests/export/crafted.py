"""Checkpoint files for the tests of the reader: honest ones by torch, and crafted ones by hand.

Nothing here reads a pickle: torch.save and Python's pickler only write.
"""

import argparse
import collections
import io
import os
import struct
import sys
import types
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


def saved(value: object, protocol: int = 2) -> bytes:
    """The file that torch.save writes of `value`."""
    file = io.BytesIO()
    torch.save(value, file, pickle_protocol=protocol)
    return file.getvalue()


def members(data: bytes) -> dict[str, bytes]:
    """Name -> contents of the entries of an honest zip."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


@dataclass
class Member:
    """An entry of a zip to be written, and the lies to be told about it.

    Lies are fields of the format by the names used in `pack`, in place of the honest values.
    """

    name: str | bytes
    data: bytes = b""
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    descriptor: dict[str, Any] = field(default_factory=dict)
    before: bytes = b""
    """Bytes between the entry before and this one."""
    only_listed: bool = False
    """In the directory; nothing is written where it should lie."""


def pack(
    entries: list[Member],
    *,
    end: dict[str, int] | None = None,
    zip64: bool = True,
    gap: bytes = b"",
) -> bytes:
    """A zip laid out as torch lays it out, with the lies of its entries and of `end`.

    `gap` stands between the last entry and the directory.
    """
    out = bytearray()
    directory = bytearray()
    for entry in entries:
        name = entry.name if isinstance(entry.name, bytes) else entry.name.encode()
        out += entry.before
        size, crc = len(entry.data), zlib.crc32(entry.data)
        plain = {"flags": 0x0808, "method": 0, "crc": crc, "packed": size, "size": size}
        c = {**plain, "name": name, "extra": b"", "comment": b"", "disk": 0, "offset": len(out)}
        c |= entry.central
        h = {**plain, "crc": 0, "packed": 0, "size": 0, "name": name, "extra": b"FB\2\0ZZ"}
        h |= entry.local
        fields = (0, h["flags"], h["method"], 0, 0, h["crc"], h["packed"], h["size"])
        lengths = (len(h["name"]), len(h["extra"]))
        written = struct.pack("<4s5H3L2H", b"PK\3\4", *fields, *lengths)
        written += h["name"] + h["extra"] + entry.data
        if h["flags"] & 8:
            d = {"crc": crc, "packed": size, "size": size, **entry.descriptor}
            written += struct.pack("<4s3L", b"PK\7\10", d["crc"], d["packed"], d["size"])
        out += b"" if entry.only_listed else written
        fields = (0, 0, c["flags"], c["method"], 0, 0, c["crc"], c["packed"], c["size"])
        lengths = (len(c["name"]), len(c["extra"]), len(c["comment"]))
        fields += (*lengths, c["disk"], 0, 0, c["offset"])
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", *fields)
        directory += c["name"] + c["extra"] + c["comment"]
    count = len(entries)
    out += gap
    e = {"count": count, "size": len(directory), "start": len(out), "comment": 0, **(end or {})}
    out += directory
    if zip64:
        at = len(out)
        sizes = (e.get("count64", count), e["size"], e["start"])
        out += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 0, 45, 0, 0, count, *sizes)
        out += struct.pack("<4sLQL", b"PK\6\7", 0, at + e.get("locator", 0), 1)
    fields = (e["count"], e["count"], e["size"], e["start"], e["comment"])
    return bytes(out + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *fields))


def zipped(pickle: bytes, storages: dict[str, bytes] | None = None, folder: str = "a") -> bytes:
    """A sound zip around any pickle."""
    entries = [Member(f"{folder}/data.pkl", pickle), Member(f"{folder}/byteorder", b"little")]
    entries += [Member(f"{folder}/data/{key}", raw) for key, raw in (storages or {}).items()]
    return pack(entries)


def text(value: str) -> bytes:
    """The opcode that pushes a text."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def whole(value: int) -> bytes:
    """The opcode that pushes a whole number."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def row(values: tuple[int, ...]) -> bytes:
    """Opcodes that push a tuple of whole numbers."""
    return b"(" + b"".join(map(whole, values)) + b"t"


def tensor(
    size: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int = 0,
    *,
    numel: int = 6,
    kind: str = "torch\nFloatStorage",
    key: str = "0",
    more: bytes = b"}",
) -> bytes:
    """Opcodes that push a tensor over a storage of `numel` numbers, as torch writes them."""
    pid = text("storage") + f"c{kind}\n".encode() + text(key) + text("cpu") + whole(numel)
    args = b"((" + pid + b"tQ" + whole(offset) + row(size) + row(stride) + b"\x89" + more + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + args + b"R"


def one_tensor(*args: Any, **kwargs: Any) -> bytes:
    """A file {"w": tensor(...)} whose storage "0" has the numbers 0 to 5 in float32."""
    pickle = b"\x80\2}" + text("w") + tensor(*args, **kwargs) + b"s."
    return zipped(pickle, {"0": np.arange(6, dtype="<f4").tobytes()})


class Call:
    """Pickles as a call of `function` with `args`: what an attacker sends."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def payload(canary: os.PathLike[str] | str) -> Call:
    """os.system, that would create the file `canary`."""
    return Call(os.system, f"touch '{canary}'")


def munch(**items: Any) -> dict[str, Any]:
    """An object that pickles like munch.DefaultMunch: a dict subclass with a state.

    For `saved_with_munch`; the module munch need not be installed.
    """
    return _munch_class()(items)


def _munch_class() -> type:
    def get_state(self: dict[str, Any]) -> dict[str, Any]:
        return dict(self)

    found = sys.modules.get("munch")
    if found is None:
        found = sys.modules["munch"] = types.ModuleType("munch")
        body = {"__getstate__": get_state, "__module__": "munch"}
        found.DefaultMunch = type("DefaultMunch", (dict,), body)  # type: ignore[attr-defined]
    return found.DefaultMunch


def lightning(state: dict[str, torch.Tensor], protocol: int = 2, **more: Any) -> bytes:
    """A checkpoint as Lightning writes it for upstream: the config is a DefaultMunch."""
    config = munch(num_heads=4, max_T=np.int64(1000), lr=np.float64(2.5e-4), model=munch(mc=32))
    try:
        return saved(
            {
                "epoch": 7,
                "pytorch-lightning_version": "2.2.0",
                "state_dict": collections.OrderedDict(state),
                "loops": {"fit_loop": {"state_dict": {}, "progress": (1, 2.5, None, True)}},
                "hyper_parameters": {"config": config, "args": argparse.Namespace(seed=-3)},
                **more,
            },
            protocol,
        )
    finally:
        del sys.modules["munch"]
