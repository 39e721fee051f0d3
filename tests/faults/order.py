"""In which order a result reaches the disk, so that a power cut cannot tear it."""

import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Event = tuple[str, ...]
"""("fsync", path), ("rename", from, to) or ("mkdir", path), in the order of the calls."""

_LINE = re.compile(r"\b(fsync|rename|renameat2?|mkdir|mkdirat)\((.*)\)\s+= 0$")
_PATH = re.compile(r'<([^<>"]+)>|"([^"]+)"')


def record(path: str) -> None:
    """A fault that is none: writes the events of this process to `path`."""
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def wrapped(name: str, event: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            named = [a for a in args if isinstance(a, str | os.PathLike)]
            paths = [os.readlink(f"/proc/self/fd/{args[0]}")] if name == "fsync" else named
            write(out, (json.dumps([event, *map(os.fspath, paths)]) + "\n").encode())
            return result

        return call

    write = os.write
    for name in ("fsync", "rename", "replace", "mkdir"):
        event = "rename" if name == "replace" else name
        setattr(os, name, wrapped(name, event, getattr(os, name)))


def recorded(path: Path) -> list[Event]:
    """What `record` wrote."""
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()]


def traced(text: str) -> list[Event]:
    """The same from the output of `strace -f -y`, which names the file of a descriptor."""
    events: list[Event] = []
    for line in text.splitlines():
        if found := _LINE.search(line):
            paths = [a or b for a, b in _PATH.findall(found[2])]
            # Names of the current folder stand before relative paths alone.
            paths = [p for p in paths if p.startswith("/")][-2 if "rename" in found[1] else -1 :]
            events.append((found[1].rstrip("at2"), *paths))
    return events


def problems(events: Iterable[Event], out: Path, files: Iterable[str], manifest: str) -> list[str]:
    """What is wrong with the order in which the result `out` came to be.

    Every file is flushed, then gets its name, then its folder is flushed; folders are flushed in
    the folders above them; all that before the manifest is begun; the manifest likewise; then
    the result gets its name, and the folder it lies in is flushed.
    """
    events = list(events)
    (named,) = [i for i, e in enumerate(events) if e[0] == "rename" and e[2] == str(out)]
    built = Path(events[named][1])
    (last,) = [i for i, e in enumerate(events) if _becomes(e, built / manifest)]
    # The manifest is begun once everything else is flushed: before its own flush.
    begun = _index(events, ("fsync", events[last][1]))
    wrong = []
    for name in files:
        (at,) = [i for i, e in enumerate(events) if _becomes(e, built / name)]
        if not 0 <= _index(events, ("fsync", events[at][1])) < at:
            wrong.append(f"{name} has its name before it is flushed")
        if not at < _index(events, ("fsync", str((built / name).parent)), at) < begun:
            wrong.append(f"the folder of {name} is not flushed before the manifest is begun")
    for event in events:
        if event[0] == "mkdir" and built in Path(event[1]).parents:
            made = events.index(event)
            if not made < _index(events, ("fsync", str(Path(event[1]).parent)), made) < begun:
                wrong.append(f"the folder above {Path(event[1]).name} is not flushed")
    if not 0 <= begun < last < _index(events, ("fsync", str(built)), last) < named:
        wrong.append("the manifest is not flushed before the result has its name")
    if _index(events, ("fsync", str(out.parent)), named) < 0:
        wrong.append("the folder of the result is not flushed")
    return wrong


def _becomes(event: Event, path: Path) -> bool:
    return event[0] == "rename" and event[2] == str(path)


def _index(events: list[Event], event: Event, after: int = 0) -> int:
    """Index of the first such event from `after` on; -1 where there is none."""
    return next((i for i in range(after, len(events)) if events[i] == event), -1)
