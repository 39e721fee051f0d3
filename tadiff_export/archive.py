"""The zip file that `torch.save` writes, read more strictly than any zip program reads it.

Programs disagree about damaged or crafted zip files: which of two entries with one name counts,
where data start, whether what lies between entries exists (differential parsing). Here all
descriptions of an entry - central directory, local header, data descriptor - must say the same,
and the entries must tile the file: no byte is left over, none belongs to two entries.
Format: PKWARE, APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.9 (data descriptor),
4.3.12 (central directory), 4.3.14 to 4.3.16 (zip64 and end records).
"""

import struct
import zlib
from dataclasses import dataclass

from tadiff_rt.errors import ModelFileError
from tadiff_rt.readers.tables import quoted

MAX_FILE_BYTES = 2**32 - 1
"""Of a whole checkpoint; the largest TaDiff with its optimiser is under 1 GB. No field of such a
file needs its zip64 form, so none is accepted."""
MAX_ENTRIES = 20_000
MAX_NAME_BYTES = 1024

START = b"PK\x03\x04"
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_DESCRIPTOR = struct.Struct("<4s3L")
_DESCRIPTOR_FLAG = 0x0008
_KNOWN_FLAGS = _DESCRIPTOR_FLAG | 0x0800  # data descriptor follows; name is UTF-8
_ENCRYPTED_FLAG = 0x0001


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one stored file lies in the zip."""

    start: int
    """First byte of its data, counted from the beginning of the zip."""
    size: int


@dataclass(frozen=True, slots=True)
class _Described:
    """An entry as the central directory gives it."""

    name: bytes
    flags: int
    crc: int
    size: int
    header: int
    """Where its local header begins."""


@dataclass(frozen=True)
class Archive:
    """A checked zip of `torch.save`: every entry, by its name without the common folder."""

    entries: dict[str, Entry]

    @property
    def pickle(self) -> Entry:
        return self.entries["data.pkl"]


def is_archive(data: bytes) -> bool:
    """Whether `data` begins or ends like a zip, or is the first bytes of one."""
    return START.startswith(data[:4]) or data[-_END.size :].startswith(b"PK\x05\x06")


def open_archive(data: bytes, name: str) -> Archive:
    """Checks structure, names and the CRC-32 of every entry.

    Args:
        data: the whole file.
        name: what messages call it.

    Raises:
        ModelFileError: TD4004 cut off; TD4005 an entry is damaged; TD4008 TorchScript; TD4009
            not the zip of a checkpoint, or one that programs may read differently.
    """
    count, start, end = _directory_range(data, name)
    described = _central_directory(data, count, start, end, name)
    entries = _local_entries(data, described, start, name)
    archive = Archive(_without_folder(entries, name))
    for (text, entry), told in zip(entries.items(), described, strict=True):
        if zlib.crc32(memoryview(data)[entry.start : entry.start + entry.size]) != told.crc:
            raise _damaged(text, entry, name)
    return archive


def _central_directory(data: bytes, count: int, at: int, end: int, name: str) -> list[_Described]:
    """The entries in the order of their local headers."""
    found: list[_Described] = []
    for _ in range(count):
        if at + _CENTRAL.size > end:
            raise _structure(f"the directory ends within entry {len(found)} of {count}", name)
        fields = _CENTRAL.unpack_from(data, at)
        magic, _, _, flags, method, _, _, crc, packed, size, long, *rest = fields
        extra, comment, disk, _, _, header = rest
        at += _CENTRAL.size
        entry = _Described(data[at : at + long], flags, crc, size, header)
        at += long
        if magic != b"PK\x01\x02" or at > end:
            raise _structure(f"entry {len(found)} of the directory is malformed", name)
        _check_storage(entry, method, packed, name)
        if extra or comment or disk:
            what = f"entry {_shown(entry.name)} has extra fields, a comment or another disk"
            raise _structure(what, name)
        found.append(entry)
    if at != end:
        raise _structure(f"{end - at} bytes follow entry {count}, the last of the directory", name)
    return sorted(found, key=lambda entry: entry.header)


def _directory_range(data: bytes, name: str) -> tuple[int, int, int]:
    """Number of entries, start and end of the central directory."""
    at = data.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(data):
        raise ModelFileError(
            "TD4004",
            f"the file is cut off: {len(data)} bytes without the end record of a zip",
            where=name,
            fix="copy or download it again and compare the sizes",
        )
    _, disk, first, here, count, size, start, comment = _END.unpack_from(data, at)
    if comment or at + _END.size != len(data):
        extra = len(data) - at - _END.size
        raise _structure(f"{extra} bytes and a comment of {comment} follow the end record", name)
    if not data.startswith(START):
        raise _structure(f"it begins with {data[:4]!r}, expected {START!r}", name)
    end = at
    if data[max(at - _LOCATOR.size, 0) : at].startswith(b"PK\x06\x07"):
        end = at - _LOCATOR.size - _END64.size
        _check_zip64(data, end, (disk, first, here, count, size, start), name)
    if disk or first or here != count or start + size != end:
        what = f"the end record gives a directory of {size} bytes at {start}, it ends at {end}"
        raise _structure(what, name)
    if not 1 <= count <= MAX_ENTRIES:
        raise _structure(f"the zip has {count} entries, expected 1 to {MAX_ENTRIES}", name)
    return count, start, end


def _check_zip64(data: bytes, at: int, plain: tuple[int, ...], name: str) -> None:
    """torch adds the zip64 end records to every file; they must repeat the plain one."""
    if at < 0:
        raise _structure("the zip64 end record lies before the file", name)
    record = _END64.unpack_from(data, at)
    locator = _LOCATOR.unpack_from(data, at + _END64.size)
    if record[:2] != (b"PK\x06\x06", _END64.size - 12) or locator[1:] != (0, at, 1):
        raise _structure("the zip64 end record is not where its locator says", name)
    if record[4:] != plain:
        what = f"zip64 end record says {record[4:]}, the plain one {plain}; expected the same"
        raise _structure(what, name)


def _check_storage(entry: _Described, method: int, packed: int, name: str) -> None:
    shown = _shown(entry.name)
    if entry.flags & _ENCRYPTED_FLAG:
        raise _structure(f"entry {shown} is encrypted", name)
    if method or packed != entry.size:
        raise _structure(f"entry {shown} is compressed (method {method}), expected stored", name)
    if entry.flags & ~_KNOWN_FLAGS:
        raise _structure(f"entry {shown} has flags {entry.flags:#06x}, none of torch's", name)


def _local_entries(
    data: bytes, described: list[_Described], stop: int, name: str
) -> dict[str, Entry]:
    """Name -> place of the entries: their local headers agree, and they tile `data` to `stop`."""
    entries: dict[str, Entry] = {}
    end = 0
    for entry in described:
        if entry.header != end:
            kind = "overlaps the one before it" if entry.header < end else "leaves a gap before it"
            what = f"entry {_shown(entry.name)} at {entry.header} {kind}, expected at {end}"
            raise _structure(what, name)
        start = _data_start(data, entry, stop, name)
        end = start + entry.size
        if entry.flags & _DESCRIPTOR_FLAG:
            end += _DESCRIPTOR.size
        if end > stop:
            raise _structure(f"entry {_shown(entry.name)} reaches into the directory", name)
        if entry.flags & _DESCRIPTOR_FLAG:
            expected = (b"PK\x07\x08", entry.crc, entry.size, entry.size)
            if _DESCRIPTOR.unpack_from(data, start + entry.size) != expected:
                raise _disagree(entry, "data descriptor", name)
        text = _checked_name(entry.name, name)
        if text in entries:
            raise _structure(f"two entries are called {quoted(text)}", name)
        entries[text] = Entry(start, entry.size)
    if end != stop:
        raise _structure(f"{stop - end} bytes before the directory belong to no entry", name)
    return entries


def _data_start(data: bytes, entry: _Described, stop: int, name: str) -> int:
    if entry.header + _LOCAL.size > stop:
        raise _structure(f"entry {_shown(entry.name)} reaches into the directory", name)
    fields = _LOCAL.unpack_from(data, entry.header)
    magic, _, flags, method, _, _, crc, packed, size, long, extra = fields
    at = entry.header + _LOCAL.size
    told = (crc, packed, size)
    later = bool(entry.flags & _DESCRIPTOR_FLAG) and told == (0, 0, 0)
    if (
        (magic, flags, method) != (START, entry.flags, 0)
        or data[at : at + long] != entry.name
        or not (later or told == (entry.crc, entry.size, entry.size))
    ):
        raise _disagree(entry, "local header", name)
    return int(at + long + extra)


def _checked_name(raw: bytes, name: str) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise _structure(f"the name of entry {_shown(raw)} is not UTF-8", name) from None
    bad_part = {"", ".", ".."}.intersection(text.split("/"))
    if len(raw) > MAX_NAME_BYTES or bad_part or "\\" in text or not text.isprintable():
        what = f"entry {_shown(raw)} is not called FOLDER/FILE: absolute, '..' or odd characters"
        raise _structure(what, name)
    return text


def _without_folder(entries: dict[str, Entry], name: str) -> dict[str, Entry]:
    """The entries by their names in the one folder of the checkpoint."""
    pickles = [text for text in entries if text.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1 or pickles[0].count("/") != 1:
        what = f"the zip has {len(pickles)} entries FOLDER/data.pkl, expected 1"
        raise _structure(what, name)
    folder = pickles[0].removesuffix("data.pkl")
    for text in entries:
        if not text.startswith(folder):
            raise _structure(f"entry {quoted(text)} lies outside {quoted(folder)}", name)
    inner = {text.removeprefix(folder): entry for text, entry in entries.items()}
    if any(text == "constants.pkl" or text.startswith("code/") for text in inner):
        raise ModelFileError(
            "TD4008",
            "is a TorchScript program (it holds code), expected a checkpoint of tensors",
            where=name,
            fix="save the weights: torch.save(module.state_dict(), 'weights.pt')",
        )
    return inner


def _shown(raw: bytes) -> str:
    return quoted(raw[:80].decode(errors="replace"))


def _structure(what: str, name: str) -> ModelFileError:
    return ModelFileError(
        "TD4009",
        f"not the zip that torch.save writes: {what}",
        where=name,
        fix="use the file as torch.save or the download wrote it, not packed or edited again",
    )


def _disagree(entry: _Described, other: str, name: str) -> ModelFileError:
    what = f"directory and {other} of entry {_shown(entry.name)} disagree"
    return _structure(what, name)


def _damaged(text: str, entry: Entry, name: str) -> ModelFileError:
    return ModelFileError(
        "TD4005",
        f"entry {quoted(text)} is damaged: its {entry.size} bytes do not have the CRC-32 "
        "that was recorded when it was written",
        where=name,
        fix="copy or download the file again; if it was saved with "
        "torch.serialization.set_crc32_options(False), save it again without",
    )
