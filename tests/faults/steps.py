"""A fault at the n-th call of the system, for n = 1, 2, ... until a run does not reach it.

After each what is left is looked at; the same command is run again after the first fault met at a
line of code, since files are written alike.
"""

import errno
import itertools
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults import check
from tests.faults.kill import OTHER, after_kill, goes_on
from tests.faults.server import Ended
from tests.faults.setting import Setting

SPACE = ("write", "fsync", "mkdir")
"""Calls that may need room on the disk."""


def with_earlier(setting: Setting, name: str, *more: str) -> tuple[Path, Any, Any]:
    """A place with an earlier result and no journal; contents of the new result and of that."""
    earlier, unbroken = setting.place(f"{name}-earlier"), setting.place(f"{name}-unbroken")
    assert setting.server.run(setting.plain(earlier, *more, *OTHER)).code == 0
    assert setting.server.run(setting.plain(unbroken, *more)).code == 0
    return earlier, check.content(unbroken / "out"), check.content(earlier / "out")


def restored(setting: Setting, earlier: Path | None, name: str = "faulty") -> Path:
    """An empty place, or one with an earlier result."""
    place = setting.place(name)
    if earlier:
        shutil.copytree(earlier / "out", place / "out")
    return place


def deaths(setting: Setting, replaces: bool, every: int = 1) -> Counter[str]:
    """Ends the process before its n-th call; `every` so many are tried.

    Raises:
        AssertionError: see `kill.kills`.
    """
    earlier, wanted, old = with_earlier(setting, "deaths")
    found: Counter[str] = Counter()
    met: set[str] = set()
    for n in itertools.count(1, every):
        place = restored(setting, earlier if replaces else None)
        argv = setting.forecast(place, *(["--overwrite"] if replaces else []))
        ended = setting.server.run(argv, ("die_before_call", {"n": n}))
        assert ended.code == (137 if ended.fired else 0), ended
        if not ended.fired:
            return found
        found.update(after_kill(place, wanted, old, replaces))
        if ended.fired not in met:
            goes_on(setting, place, argv, wanted)
        met.add(ended.fired)


def failures(
    setting: Setting, error: int, calls: tuple[str, ...], replaces: bool, every: int = 1
) -> Counter[str]:
    """Makes the n-th call fail.

    Returns:
        How often which ending was seen.

    Raises:
        AssertionError: an ending without its code, or anything left but a whole result and a
            journal from which the same command goes on.
    """
    earlier, wanted, old = with_earlier(setting, "failures")
    found: Counter[str] = Counter()
    met: set[str] = set()
    for n in itertools.count(1, every):
        place = restored(setting, earlier if replaces else None)
        argv = setting.forecast(place, *(["--overwrite"] if replaces else []))
        fault = ("fail_call", {"n": n, "error": error, "calls": calls})
        ended = setting.server.run(argv, fault)
        code = expected_code(error)
        assert ended.code in ((0, code) if ended.fired else (0,)), ended
        assert_clean(place, ended, wanted, old if replaces else None)
        if not ended.fired:
            return found
        found[f"exit {ended.code}"] += 1
        if ended.fired not in met:
            goes_on(setting, place, argv, wanted)
        met.add(ended.fired)


def expected_code(error: int) -> int:
    """Exit code of an error of the system while writing."""
    return 7 if error in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) else 8


def assert_clean(place: Path, ended: Ended, wanted: Any, old: Any) -> None:
    """After an ending that cleans up: a whole result or none, no temporary, no traceback.

    Args:
        old: content of an earlier result, which may be there still; None for none.
    """
    assert "Traceback" not in ended.err, ended.err
    assert not (left := check.temporaries(place)), (left, ended)
    assert set(os.listdir(place)) <= {"out", "work"}, ended
    if check.whole(place / "out"):
        assert check.content(place / "out") in ((wanted,) if old is None else (old, wanted)), ended
    else:
        assert old is None, ended
    if ended.code == 0:
        assert check.content(place / "out") == wanted, ended


def signals(
    setting: Setting, number: int, replaces: bool, every: int = 1, times: int = 1
) -> Counter[str]:
    """Sends a signal during the n-th call, and during the next until it was sent so many times.

    Raises:
        AssertionError: as for `failures`.
    """
    earlier, wanted, old = with_earlier(setting, "signals")
    found: Counter[str] = Counter()
    met: set[str] = set()
    for n in itertools.count(1, every):
        place = restored(setting, earlier if replaces else None)
        argv = setting.forecast(place, *(["--overwrite"] if replaces else []))
        fault = ("signal_after_call", {"n": n, "number": number, "times": times})
        ended = setting.server.run(argv, ("usual_signals", {}), fault)
        assert ended.code == (128 + number if ended.fired else 0), ended
        assert_clean(place, ended, wanted, old if replaces else None)
        if not ended.fired:
            return found
        found[f"exit {ended.code}"] += 1
        if ended.fired not in met:
            goes_on(setting, place, argv, wanted)
        met.add(ended.fired)
