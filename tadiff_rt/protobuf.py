"""Protocol Buffers' wire format, read strictly; ONNX files are written in it.

Parsers of this format forgive: a field that they do not know is skipped, of one that is given
twice the last counts or both are merged, a number that is too wide is cut. Two parsers that
forgive differently see two models in one file. What is ambiguous is therefore refused (TD4104),
and what is accepted means one thing. Source: the page "Encoding" of protobuf.dev.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tadiff_rt.errors import ModelFileError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types. 3 and 4, groups, are obsolete; 6 and 7 do not exist."""
_WIDTH = {FIXED64: 8, FIXED32: 4}
_WIRE = {"varint": VARINT, "double": FIXED64, "bytes": BYTES, "float": FIXED32}
MAX_VARINT_BYTES = 10
MAX_TAG_BYTES = 5
MAX_TEXT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message type."""

    name: str
    wire: int
    repeated: bool


Schema = Mapping[int, Field]


def schema(**fields: str) -> Schema:
    """The fields of a message type by their number.

    Args:
        fields: wire type -> "name=number name=number ..."; the types are `varint`, `double`,
            `bytes` and `float`, for a repeated field with `many_` before them.
    """
    table = {}
    for kind, entries in fields.items():
        wire = _WIRE[kind.removeprefix("many_")]
        for entry in entries.split():
            name, number = entry.split("=")
            table[int(number)] = Field(name, wire, kind.startswith("many_"))
    return table


class Message:
    """The fields of one message, still encoded: views of the file, no copies."""

    def __init__(self, what: str, found: dict[str, list[memoryview]]) -> None:
        self.what = what
        """The message in words, for errors."""
        self._found = found

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def views(self, name: str) -> list[memoryview]:
        """Contents of a field, one view for every time that it is given."""
        return self._found.get(name, [])

    def view(self, name: str) -> memoryview | None:
        """Content of a field that is not repeated; None where it is absent."""
        return self._found[name][0] if name in self._found else None

    def integer(self, name: str, *, bits: int = 64) -> int | None:
        """A signed integer; None where it is absent. Out of the range of `bits` is TD4104."""
        view = self.view(name)
        if view is None:
            return None
        value = _signed(varint(view, 0)[0])
        if not -(1 << bits - 1) <= value < 1 << bits - 1:
            raise ModelFileError(
                "TD4104", f"{self.what}: {name} is {value}, which {bits} bits do not hold"
            )
        return value

    def text(self, name: str) -> str:
        """A string, "" where it is absent, as the format has it."""
        return next(iter(self.texts(name)), "")

    def texts(self, name: str) -> list[str]:
        """Strings of a repeated field.

        Raises:
            ModelFileError: TD4104, one is longer than 64 KiB, not UTF-8, or has a NUL, at which
                C would end it.
        """
        texts = []
        for view in self.views(name):
            data = bytes(view[: MAX_TEXT_BYTES + 1])
            try:
                text = data.decode()
            except UnicodeDecodeError:
                text = "\0"
            if "\0" in text or len(data) > MAX_TEXT_BYTES:
                raise ModelFileError("TD4104", f"{self.what}: {name} is not text, or too long")
            texts.append(text)
        return texts


class Reader:
    """Reads the messages of one file, and of all of them together at most `limit` items.

    An item is a field or an element of a packed field. Bytes behind a length are skipped, so
    items are what time goes into.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = limit

    def message(self, data: memoryview, fields: Schema, what: str) -> Message:
        """Splits `data` into its fields.

        Args:
            data: the message without its tag and length; the result refers to it.
            what: the message in words, for errors.

        Raises:
            ModelFileError: TD4104, a field is cut off, unknown, of another wire type, or given
                twice but not repeated; or the file has more items than allowed.
        """
        found: dict[str, list[memoryview]] = {}
        at = 0
        while at < len(data):
            self._count()
            field, packed, at = _tag(data, at, fields, what)
            start = at
            if packed or field.wire == BYTES:
                size, start = varint(data, at)
                at = start + size
            elif field.wire == VARINT:
                _, at = varint(data, at)
            else:
                at += _WIDTH[field.wire]
            if at > len(data):
                raise ModelFileError("TD4104", f"{what} is cut off in its field {field.name}")
            if packed and (at - start) % _WIDTH.get(field.wire, 1):
                raise ModelFileError("TD4104", f"{what}: {field.name} ends within a number")
            if field.name in found and not field.repeated:
                raise ModelFileError("TD4104", f"{what} gives its field {field.name} twice")
            found.setdefault(field.name, []).append(data[start:at])
        return Message(what, found)

    def integers(self, views: Iterable[memoryview]) -> list[int]:
        """Signed elements of a repeated integer field, packed or not."""
        values = []
        for view in views:
            at = 0
            while at < len(view):
                self._count()
                value, at = varint(view, at)
                values.append(_signed(value))
        return values

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ModelFileError(
                "TD4104", f"the file holds more than {self._limit} fields and typed integers"
            )


def _tag(data: memoryview, at: int, fields: Schema, what: str) -> tuple[Field, bool, int]:
    """The field that starts at `at`, whether its elements are packed, where its content starts."""
    tag, after = varint(data, at)
    number, wire = tag >> 3, tag & 7
    field = fields.get(number)
    if field is None or after - at > MAX_TAG_BYTES:
        raise ModelFileError("TD4104", f"{what} has no field {number}")
    packed = wire == BYTES and field.repeated and field.wire != BYTES
    if wire != field.wire and not packed:
        raise ModelFileError("TD4104", f"{what}: {field.name} has wire type {wire}")
    return field, packed, after


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """The unsigned integer that starts at `at`, and where what follows it starts.

    Raises:
        ModelFileError: TD4104, `data` ends within it, or it does not fit 64 bits.
    """
    value = 0
    for i, byte in enumerate(data[at : at + MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if value >> 64:
                break
            return value, at + i + 1
    raise ModelFileError("TD4104", "an integer is cut off or longer than 64 bits")


def _signed(value: int) -> int:
    """Two's complement of 64 bits."""
    return value - (1 << 64) if value >> 63 else value
