"""The stack machine that turns a checked pickle into plain values, importing and calling nothing.

Names of classes and functions become `Symbol`s. Calling one gives a value where the caller of
`run` knows what it stands for (a tensor, an OrderedDict), and otherwise an `Inert`: a record of
the name and of everything the file wanted to give it.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any

from tadiff_export.opcodes import MAX_NAME, OPCODES, refusal
from tadiff_export.plain import Inert, Storage, Symbol, check_tree, ignored
from tadiff_rt.readers.tables import quoted

MAX_ODD_KEYS = 1000
"""Keys that are neither strings nor small numbers. Python hashes strings with a secret, but keys
such as large integers can be chosen to collide, which makes a dict quadratic."""
SMALL_KEY = 2**20
MAX_KEY = 1024
"""Characters. A dict may compare a key with another each time it is used."""

Handler = Callable[[tuple[Any, ...]], Any]
"""Arguments of a call -> its value, or None for what shall stay inert."""


def run(
    places: Sequence[int], data: bytes, resolve: Callable[[Symbol], Handler | None], name: str
) -> tuple[Any, tuple[str, ...]]:
    """Executes a checked pickle.

    Args:
        places: of the opcodes, from `opcodes.scan` of the same `data`.
        resolve: what stands for a function of the file; None for all it does not know.

    Returns:
        The value, checked by `plain.check_tree`: dict, list, tuple, str, bytes, int, float, bool,
        None, `Symbol`, `Inert`, and what handlers gave. And notes on what was left inert.

    Raises:
        ModelFileError: TD4012; and what handlers raise.
    """
    machine = _Machine(data, resolve, name)
    for at in places:
        _STEPS[data[at]](machine, at + 1)
    root = machine.stack.pop()
    check_tree(root, name)
    return root, ignored(machine.inerts)


class _Machine:
    """Trusts what `opcodes.scan` checked: operands exist, arguments lie inside the file."""

    def __init__(
        self, data: bytes, resolve: Callable[[Symbol], Handler | None], name: str
    ) -> None:
        self.data, self.resolve, self.name = data, resolve, name
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.inerts: list[Inert] = []
        self.odd_keys = 0

    def number(self, at: int, size: int) -> int:
        return int.from_bytes(self.data[at : at + size], "little")

    def above_mark(self) -> list[Any]:
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def take(self, count: int) -> tuple[Any, ...]:
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def text(self, at: int, size: int) -> None:
        start = at + size
        raw = self.data[start : start + self.number(at, size)]
        self.stack.append(self.decoded(raw))

    def raw(self, at: int, size: int) -> None:
        start = at + size
        self.stack.append(self.data[start : start + self.number(at, size)])

    def decoded(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            what = f"text with byte 0x{raw[error.start]:02x} that is not UTF-8"
            raise refusal(what, self.name) from None

    def long(self, at: int) -> None:
        raw = self.data[at + 1 : at + 1 + self.data[at]]
        self.stack.append(int.from_bytes(raw, "little", signed=True))

    def symbol_by_line(self, at: int) -> None:
        middle = self.data.index(b"\n", at)
        end = self.data.index(b"\n", middle + 1)
        module, name = self.decoded(self.data[at:middle]), self.data[middle + 1 : end]
        self.stack.append(Symbol(module, self.decoded(name)))

    def symbol(self) -> None:
        parts = self.take(2)
        if not all(type(part) is str and len(part) <= MAX_NAME for part in parts):
            raise refusal(f"a name of {_kinds(parts)}, expected two short texts", self.name)
        self.stack.append(Symbol(*parts))

    def extend(self, values: Sequence[Any]) -> None:
        target = self.stack[-1]
        if type(target) is Inert:
            target.elements = [] if target.elements is None else target.elements
            target.elements.extend(values)
        elif type(target) is list:
            target.extend(values)
        else:
            raise refusal(f"values are appended to {_kinds([target])}", self.name)

    def set_items(self, pairs: Sequence[Any]) -> None:
        target = self.stack[-1]
        if type(target) is Inert:
            target.items = {} if target.items is None else target.items
            target = target.items
        if type(target) is not dict or len(pairs) % 2:
            what = f"{len(pairs)} keys and values are set on {_kinds([self.stack[-1]])}"
            raise refusal(what, self.name)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) is not str or len(key) > MAX_KEY:
                self.check_key(key)
            target[key] = value

    def check_key(self, key: object) -> None:
        if type(key) is int and 0 <= key < SMALL_KEY:
            return
        self.odd_keys += 1
        parts = key[:17] if type(key) is tuple else (key,)
        if len(parts) > 16 or not all(map(_may_be_key, parts)):
            raise refusal(f"a dict has a key of {_kinds(parts)}", self.name)
        if self.odd_keys > MAX_ODD_KEYS:
            what = f"over {MAX_ODD_KEYS} keys that are no text and no number below {SMALL_KEY}"
            raise refusal(what, self.name)

    def call(self) -> None:
        function, args = self.take(2)
        handler = self.resolve(function) if type(function) is Symbol else None
        value = handler(args) if handler and type(args) is tuple else None
        self.stack.append(self.inert(function, args) if value is None else value)

    def new(self) -> None:
        self.stack.append(self.inert(*self.take(2)))

    def inert(self, function: object, args: object) -> Inert:
        if type(args) is not tuple or type(function) not in (Symbol, Inert):
            raise refusal(f"{_kinds([function])} is called with {_kinds([args])}", self.name)
        name = function.name if isinstance(function, Inert) else str(function)
        made = Inert(name, args)
        self.inerts.append(made)
        return made

    def empty_set(self) -> None:
        # Hashing is left out: the elements may be anything, and no checkpoint needs a set.
        self.stack.append(Inert("builtins.set", elements=[]))

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is Inert:
            target.state = state
        elif type(target) is not dict:  # an OrderedDict, whose attributes are not needed
            raise refusal(f"a state is set on {_kinds([target])}", self.name)

    def persistent(self) -> None:
        pid = self.stack.pop()
        parts = pid if type(pid) is tuple else (pid,)
        if tuple(type(part) for part in parts) != (str, Symbol, str, str, int):
            raise refusal(f"a storage is given by {_kinds(parts)}", self.name)
        word, kind, key, _, numel = parts
        if word != "storage":
            raise refusal(f"it refers to {quoted(word)}, expected 'storage'", self.name)
        self.stack.append(Storage(kind, key, numel))


def _may_be_key(part: object) -> bool:
    if isinstance(part, str | bytes):
        return len(part) <= MAX_KEY
    return part is None or isinstance(part, int | float)


def _kinds(values: Sequence[object]) -> str:
    """Types in words, not values: those of a stranger may take hours to print."""
    return ", ".join(type(value).__name__ for value in values[:6]) or "nothing"


def _double(m: _Machine, at: int) -> None:
    m.stack.append(struct.unpack_from(">d", m.data, at)[0])


def _four_bytes(m: _Machine, at: int) -> None:
    m.stack.append(struct.unpack_from("<i", m.data, at)[0])


def _steps() -> dict[int, Callable[[_Machine, int], Any]]:
    """Opcode -> what it does to a machine, given where its argument begins."""
    steps: dict[str, Callable[[_Machine, int], Any]] = {
        "PROTO": lambda m, at: None,
        "FRAME": lambda m, at: None,
        "STOP": lambda m, at: None,
        "MARK": lambda m, at: m.marks.append(len(m.stack)),
        "NONE": lambda m, at: m.stack.append(None),
        "NEWTRUE": lambda m, at: m.stack.append(True),
        "NEWFALSE": lambda m, at: m.stack.append(False),
        "BININT1": lambda m, at: m.stack.append(m.data[at]),
        "BININT2": lambda m, at: m.stack.append(m.number(at, 2)),
        "BININT": _four_bytes,
        "BINFLOAT": _double,
        "LONG1": _Machine.long,
        "SHORT_BINUNICODE": lambda m, at: m.text(at, 1),
        "BINUNICODE": lambda m, at: m.text(at, 4),
        "SHORT_BINBYTES": lambda m, at: m.raw(at, 1),
        "BINBYTES": lambda m, at: m.raw(at, 4),
        "EMPTY_TUPLE": lambda m, at: m.stack.append(()),
        "TUPLE1": lambda m, at: m.stack.append(m.take(1)),
        "TUPLE2": lambda m, at: m.stack.append(m.take(2)),
        "TUPLE3": lambda m, at: m.stack.append(m.take(3)),
        "TUPLE": lambda m, at: m.stack.append(tuple(m.above_mark())),
        "EMPTY_LIST": lambda m, at: m.stack.append([]),
        "APPEND": lambda m, at: m.extend(m.take(1)),
        "APPENDS": lambda m, at: m.extend(m.above_mark()),
        "EMPTY_DICT": lambda m, at: m.stack.append({}),
        "SETITEM": lambda m, at: m.set_items(m.take(2)),
        "SETITEMS": lambda m, at: m.set_items(m.above_mark()),
        "EMPTY_SET": lambda m, at: m.empty_set(),
        "ADDITEMS": lambda m, at: m.extend(m.above_mark()),
        "FROZENSET": lambda m, at: m.stack.append(
            Inert("builtins.frozenset", (tuple(m.above_mark()),))
        ),
        "BINPUT": lambda m, at: m.memo.__setitem__(m.data[at], m.stack[-1]),
        "LONG_BINPUT": lambda m, at: m.memo.__setitem__(m.number(at, 4), m.stack[-1]),
        "MEMOIZE": lambda m, at: m.memo.__setitem__(len(m.memo), m.stack[-1]),
        "BINGET": lambda m, at: m.stack.append(m.memo[m.data[at]]),
        "LONG_BINGET": lambda m, at: m.stack.append(m.memo[m.number(at, 4)]),
        "GLOBAL": _Machine.symbol_by_line,
        "STACK_GLOBAL": lambda m, at: m.symbol(),
        "REDUCE": lambda m, at: m.call(),
        "NEWOBJ": lambda m, at: m.new(),
        "BUILD": lambda m, at: m.build(),
        "BINPERSID": lambda m, at: m.persistent(),
    }
    return {code: steps[opcode.name] for code, opcode in OPCODES.items()}


_STEPS = _steps()
