"""The values that a checkpoint may hold besides Python's own, and what is asked of all of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tadiff_export.opcodes import MAX_OPCODES, refusal
from tadiff_rt.errors import ModelFileError, printable
from tadiff_rt.readers.tables import quoted

MAX_DEPTH = 100
"""Containers inside containers; a whole pickled TaDiff has 19."""
MAX_NAMED = 5
"""Names that a note lists."""
UNNOTED = {"_codecs.encode", "numpy.dtype", "torch.device"}
"""Classes and functions that are part of how other values are written."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A class or function that a file names; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class Storage:
    """The numbers behind one or more tensors, by the name of their entry in the zip."""

    kind: Symbol
    key: str
    numel: int


@dataclass(slots=True, eq=False, repr=False)
class Inert:
    """An object of a class, or a result of a function, that is not read: a record, nothing more.

    Attributes:
        name: "module.qualname" as the file gives it: hostile text.
        args: what the class or function would have been called with.
        items: what would have been set with obj[key] = value; None if nothing.
        elements: what would have been appended or added; None if nothing.
        state: what __setstate__ or __dict__ would have got.
    """

    name: str
    args: tuple[Any, ...] = ()
    items: dict[Any, Any] | None = None
    elements: list[Any] | None = None
    state: Any = None

    def __repr__(self) -> str:
        return f"Inert({self.name!r})"


def as_mapping(value: object) -> dict[Any, Any] | None:
    """What `value` holds by name, for a dict, a dict subclass, or an object with attributes.

    So munch.DefaultMunch and argparse.Namespace are read like dicts. None for anything else.
    """
    if isinstance(value, Inert):
        value = value.state if value.items is None else value.items
    return value if isinstance(value, dict) else None


def check_tree(root: object, name: str) -> None:
    """Refuses what a program that walks `root` would not come to the end of.

    Afterwards containers lie at most MAX_DEPTH deep, none contains itself, and the values are no
    more than MAX_OPCODES even if those of a shared container are counted wherever it occurs. (Ten
    lists, each holding the one before ten times, are ten billion values.)

    Raises:
        ModelFileError: TD4012; TD4011, a storage that belongs to no tensor.
    """
    extent: dict[int, tuple[int, int]] = {}  # id -> (depth, number of values); (0, 0) when begun
    stack: list[tuple[object, Sequence[Any] | None]] = [(root, None)]
    begun = 0
    while stack:
        value, inner = stack.pop()
        if inner is not None:
            begun -= 1
            extent[id(value)] = _extent(inner, extent, name)
        elif id(value) not in extent:
            inner = _inside(value, name)
            within = [(part, None) for part in inner if isinstance(part, _CONTAINERS) and part]
            if begun >= MAX_DEPTH:
                raise _too_deep(name)
            if not within:
                extent[id(value)] = (1, 1 + len(inner))
                continue
            begun += 1
            extent[id(value)] = (0, 0)
            stack.append((value, inner))
            stack += within
        elif extent[id(value)] == (0, 0):
            raise refusal("a container holds itself", name)


def _inside(value: object, name: str) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, Inert):
        parts = (value.args, value.items, value.elements, value.state)
        return [part for part in parts if part is not None]
    if isinstance(value, Storage):
        raise ModelFileError(
            "TD4011",
            f"storage {quoted(value.key)} of {quoted(str(value.kind))} belongs to no tensor",
            where=name,
            fix="save tensors, not their storages",
        )
    return []


_CONTAINERS = (dict, list, tuple, Inert, Storage)


def _extent(
    inner: Sequence[Any], extent: dict[int, tuple[int, int]], name: str
) -> tuple[int, int]:
    parts = [extent.get(id(part), (0, 1)) for part in inner]
    depth = 1 + max((depth for depth, _ in parts), default=0)
    count = 1 + sum(count for _, count in parts)
    if depth > MAX_DEPTH:
        raise _too_deep(name)
    if count > MAX_OPCODES:
        raise refusal(f"more than {MAX_OPCODES} values, shared ones counted each time", name)
    return depth, count


def _too_deep(name: str) -> ModelFileError:
    return refusal(f"containers lie more than {MAX_DEPTH} deep", name)


def ignored(inerts: Sequence[Inert]) -> tuple[str, ...]:
    """Notes on objects that were not read; those with contents by name (`as_mapping`) were."""
    notes = []
    unread = [i.name for i in inerts if as_mapping(i) is None and i.name not in UNNOTED]
    if unread:
        some = "1 object that is no tensor"
        if len(unread) > 1:
            some = f"{len(unread)} objects that are no tensors"
        notes.append(f"ignored {some}: {_listed(unread)}")
    plain = [i.name for i in inerts if as_mapping(i) is not None]
    if plain:
        notes.append(f"read as plain data: {_listed(plain)}")
    return tuple(notes)


def _listed(names: Sequence[str]) -> str:
    counts = Counter(names)
    shown = [
        printable(name[:80]) + (f" ({count} times)" if count > 1 else "")
        for name, count in counts.most_common(MAX_NAMED)
    ]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
