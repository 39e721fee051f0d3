"""The pickle opcodes that `torch.save` writes, and the check that every pickle passes first.

A pickle is a program for a stack machine (Python's Lib/pickletools.py documents it). Most of its
opcodes have a fixed effect on the stack, so that one pass over the bytes, which builds nothing,
tells whether the program is whole, never takes what is not there, and how much it can make. Only
then does `unpickle.run` execute it, with these properties to rely on.

The list holds what torch writes in pickle protocols 2 to 5; a test saves every kind of value
and compares. It leaves out all other ways to name or call something (EXT, INST, OBJ, NEWOBJ_EX,
PERSID), those no pickler needs for a tree (POP, DUP), and lengths of 8 bytes.
"""

from array import array
from dataclasses import dataclass

from tadiff_rt.errors import ModelFileError

MAX_PICKLE_BYTES = 64_000_000
MAX_OPCODES = 400_000
"""A TaDiff with averaged weights and optimiser takes 60,000."""
MAX_CALLS = 50_000
"""Of REDUCE, NEWOBJ, BUILD and BINPERSID: three or four a tensor."""
MAX_STACK = 50_000
MAX_MEMORY = 80_000_000
"""Bytes that the values of a pickle may take, by the upper bounds in `OPCODES`."""
MAX_NAME = 200
"""Bytes in the module, and in the qualified name, of a class or function."""

_CALL = 1024
_SLOT = 64  # of a value in a stack, list or half-full dict


@dataclass(frozen=True, slots=True)
class Opcode:
    """What can be known of an opcode without its values."""

    name: str
    size: int
    """Bytes of its argument, or of the length before a longer one."""
    pops: int
    """Values taken, after those above the mark where `mark` is set."""
    pushes: int
    bytes: int
    """Upper bound for the memory of what it makes, without the argument's own bytes."""
    mark: bool = False
    """Takes everything above the topmost mark, and the mark."""
    widest: int = 0
    """Memory for a byte of its argument, where the argument has a length."""


def _table() -> dict[int, Opcode]:
    small, box = _SLOT + 40, _SLOT + 256
    rows = {
        b"\x80": Opcode("PROTO", 1, 0, 0, 0),
        b"\x95": Opcode("FRAME", 8, 0, 0, 0),
        b".": Opcode("STOP", 0, 1, 0, 0),
        b"(": Opcode("MARK", 0, 0, 0, _SLOT),
        b"N": Opcode("NONE", 0, 0, 1, _SLOT),
        b"\x88": Opcode("NEWTRUE", 0, 0, 1, _SLOT),
        b"\x89": Opcode("NEWFALSE", 0, 0, 1, _SLOT),
        b"K": Opcode("BININT1", 1, 0, 1, _SLOT),
        b"M": Opcode("BININT2", 2, 0, 1, small),
        b"J": Opcode("BININT", 4, 0, 1, small),
        b"G": Opcode("BINFLOAT", 8, 0, 1, small),
        b"\x8a": Opcode("LONG1", 1, 0, 1, small, widest=2),
        # Text takes up to 4 bytes a character, and one character that needs them is enough.
        b"\x8c": Opcode("SHORT_BINUNICODE", 1, 0, 1, small + 40, widest=4),
        b"X": Opcode("BINUNICODE", 4, 0, 1, small + 40, widest=4),
        b"C": Opcode("SHORT_BINBYTES", 1, 0, 1, small, widest=1),
        b"B": Opcode("BINBYTES", 4, 0, 1, small, widest=1),
        b")": Opcode("EMPTY_TUPLE", 0, 0, 1, _SLOT),
        b"\x85": Opcode("TUPLE1", 0, 1, 1, small),
        b"\x86": Opcode("TUPLE2", 0, 2, 1, small),
        b"\x87": Opcode("TUPLE3", 0, 3, 1, small),
        b"t": Opcode("TUPLE", 0, 0, 1, small, mark=True),
        b"]": Opcode("EMPTY_LIST", 0, 0, 1, box),
        b"a": Opcode("APPEND", 0, 1, 0, 0),
        b"e": Opcode("APPENDS", 0, 0, 0, 0, mark=True),
        b"}": Opcode("EMPTY_DICT", 0, 0, 1, box),
        b"s": Opcode("SETITEM", 0, 2, 0, 0),
        b"u": Opcode("SETITEMS", 0, 0, 0, 0, mark=True),
        b"\x8f": Opcode("EMPTY_SET", 0, 0, 1, box),
        b"\x90": Opcode("ADDITEMS", 0, 0, 0, 0, mark=True),
        b"\x91": Opcode("FROZENSET", 0, 0, 1, box, mark=True),
        b"q": Opcode("BINPUT", 1, 0, 0, 2 * _SLOT),
        b"r": Opcode("LONG_BINPUT", 4, 0, 0, 2 * _SLOT),
        b"\x94": Opcode("MEMOIZE", 0, 0, 0, 2 * _SLOT),
        b"h": Opcode("BINGET", 1, 0, 1, _SLOT),
        b"j": Opcode("LONG_BINGET", 4, 0, 1, _SLOT),
        b"c": Opcode("GLOBAL", 0, 0, 1, box + 8 * MAX_NAME),
        b"\x93": Opcode("STACK_GLOBAL", 0, 2, 1, box),
        b"R": Opcode("REDUCE", 0, 2, 1, _CALL),
        b"\x81": Opcode("NEWOBJ", 0, 2, 1, _CALL),
        b"b": Opcode("BUILD", 0, 1, 0, _CALL),
        b"Q": Opcode("BINPERSID", 0, 1, 1, _CALL),
    }
    return {code[0]: opcode for code, opcode in rows.items()}


OPCODES = _table()
_CALLS = set(b"R\x81bQ")
_ONTO = set(b"aesu\x90b")
"""Opcodes that change the value below what they take."""
_PUT, _GET = set(b"qr\x94"), set(b"hj")
_GLOBAL, _MARK, _PROTO, _FRAME, _STOP = b"c(\x80\x95."
_SPECIAL = _CALLS | _PUT | _GET | {_GLOBAL, _PROTO, _FRAME}
_SPECIAL |= {code for code, opcode in OPCODES.items() if opcode.widest}


def refusal(what: str, name: str) -> ModelFileError:
    """TD4012: the pickle of a checkpoint does what `torch.save` never writes."""
    return ModelFileError(
        "TD4012",
        f"data.pkl is no pickle of a checkpoint: {what}",
        where=name,
        fix="ask whoever made the file to save only the state dict, with torch.save or as "
        "safetensors",
    )


def scan(data: bytes, start: int, end: int, name: str) -> "array[int]":
    """Checks the pickle in `data[start:end]` without building any of its values.

    Afterwards: arguments lie inside the pickle; the stack, and each part of it above a mark,
    always holds what an opcode takes; nothing is fetched from the memo before it is put there; one
    value is left at the end; opcodes, calls, stack and memory stay within the limits above.

    Returns:
        For every opcode in order, where it stands in `data`.

    Raises:
        ModelFileError: TD4012.
    """
    if end - start > MAX_PICKLE_BYTES:
        raise refusal(f"{end - start} bytes, at most {MAX_PICKLE_BYTES} are read", name)
    return _Scan(data, start, end, name).run()


class _Scan:
    def __init__(self, data: bytes, start: int, end: int, name: str) -> None:
        self.data, self.start, self.end, self.name = data, start, end, name
        self.memo: set[int] = set()
        self.memory = self.calls = 0

    def run(self) -> "array[int]":
        data, end, at = self.data, self.end, self.start
        places = array("Q")
        below: list[int] = []  # under each mark: values above the mark before it
        depth = stacked = 0  # values above the topmost mark; all values and marks
        code = -1
        while code != _STOP:
            opcode = OPCODES.get(code := data[at]) if at < end else None
            if opcode is None:
                raise self.unknown(at)
            places.append(at)
            if opcode.mark:
                if not below:
                    raise self.refusal(f"{opcode.name} without a mark", at)
                stacked -= depth + 1
                depth = below.pop()
            if depth < opcode.pops + (code in _ONTO):
                raise self.refusal(f"{opcode.name} with {depth} values on the stack", at)
            simple = code not in _SPECIAL
            at = at + 1 + opcode.size if simple else self.special(code, opcode, at, depth)
            depth += opcode.pushes - opcode.pops
            stacked += opcode.pushes - opcode.pops
            if code == _MARK:
                below.append(depth)
                depth = 0
                stacked += 1
            self.memory += opcode.bytes
            if stacked > MAX_STACK or self.memory > MAX_MEMORY or len(places) > MAX_OPCODES:
                raise self.too_large(at, stacked)
        if depth or below or at != end:
            left = f"{depth} values, {len(below)} marks and {end - at} bytes"
            raise self.refusal(f"{left} are left over at STOP, expected none", at)
        return places

    def special(self, code: int, opcode: Opcode, at: int, depth: int) -> int:
        """Checks what depends on an argument; returns where the next opcode is."""
        after = at + 1 + opcode.size
        value = int.from_bytes(self.data[at + 1 : after], "little")
        if opcode.widest:
            after += value
            self.memory += value * opcode.widest
            if after > self.end:
                raise self.refusal(f"{opcode.name} of {value} bytes reaches over the end", at)
        elif code in _PUT:
            self.put(value if opcode.size else len(self.memo), at, depth)
        elif code in _GET:
            if value not in self.memo:
                raise self.refusal(f"memo {value} is used before it is set", at)
        elif code in _CALLS:
            self.calls += 1
            if self.calls > MAX_CALLS:
                raise self.refusal(f"more than {MAX_CALLS} objects", at)
        elif code == _GLOBAL:
            after = self.line(self.line(after))
        elif code == _PROTO and (at != self.start or not 2 <= value <= 5):
            raise self.refusal(f"protocol {value}, expected 2 to 5 and at the beginning", at)
        elif code == _FRAME and after + value > self.end:
            raise self.refusal(f"a frame of {value} bytes reaches over the end", at)
        return after

    def put(self, index: int, at: int, depth: int) -> None:
        if not depth:
            raise self.refusal("a mark is put into the memo", at)
        if index >= MAX_OPCODES:
            raise self.refusal(f"memo {index}, expected less than {MAX_OPCODES}", at)
        self.memo.add(index)

    def line(self, at: int) -> int:
        """Where the line after the one at `at` begins."""
        newline = self.data.find(b"\n", at, min(at + MAX_NAME + 1, self.end))
        if newline < 0:
            raise self.refusal(f"a name of more than {MAX_NAME} bytes, or without an end", at)
        return newline + 1

    def unknown(self, at: int) -> ModelFileError:
        if at >= self.end:
            return self.refusal("it ends without STOP", at)
        return self.refusal(f"opcode 0x{self.data[at]:02x} is none that torch.save writes", at)

    def too_large(self, at: int, stacked: int) -> ModelFileError:
        if stacked > MAX_STACK:
            return self.refusal(f"more than {MAX_STACK} values on the stack", at)
        if self.memory > MAX_MEMORY:
            return self.refusal(f"its values may take more than {MAX_MEMORY} bytes", at)
        return self.refusal(f"more than {MAX_OPCODES} opcodes", at)

    def refusal(self, what: str, at: int) -> ModelFileError:
        return refusal(f"{what}, at byte {at - self.start}", self.name)
