"""Faults for the child of a `ForkServer`, set up before the command runs.

The n-th of all calls to the functions of `os` in `CALLS` fails, ends the process, or is followed
by a signal. A test loops n = 1, 2, ... until the fault is no longer met: no moment is left out,
also not one that the code gets later.
"""

import os
import resource
import signal
import subprocess
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tadiff_rt.backends.ort import OrtBackend
from tadiff_rt.forecast import Forecaster
from tests.faults import order

CALLS = ("open", "write", "fsync", "close", "replace", "rename", "mkdir", "unlink", "rmdir")
"""What the writer of results is made of; `shutil.rmtree` and `Path.mkdir` call them too."""

FIRED = ""
"""A file that comes into being when a fault is met; the server names it."""

_WRITING = os.O_CREAT | os.O_DIRECTORY
"""Flags of files that are made and of folders that are flushed; other calls of open only read."""

_open, _write, _close = os.open, os.write, os.close


def _fired(name: str) -> None:
    """Says where the fault was met: the call, and the lines of tadiff_rt that led to it."""
    lines = [f for f in traceback.extract_stack() if "tadiff_rt" in f.filename]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(lines[-4:]))
    descriptor = _open(FIRED, os.O_WRONLY | os.O_CREAT, 0o666)
    _write(descriptor, f"{name} {where}".encode())
    _close(descriptor)


def _wrap(n: int, calls: Sequence[str], met: Callable[..., Any], times: int = 1) -> None:
    """The n-th of all calls, and so many in all, become `met(function, name)`."""
    count = 0

    def wrapped(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if name == "open" and not args[1] & _WRITING:
                return function(*args, **kwargs)
            count += 1
            if not n <= count < n + times:
                return function(*args, **kwargs)
            _fired(name)
            return met(lambda: function(*args, **kwargs), name)

        return call

    for name in calls:
        setattr(os, name, wrapped(getattr(os, name), name))


def die_before_call(n: int, calls: Sequence[str] = CALLS) -> None:
    """As kill -9 at that moment: nothing is cleaned up."""
    _wrap(n, calls, lambda function, name: os._exit(137))


def fail_call(n: int, error: int, calls: Sequence[str] = CALLS) -> None:
    """An error of the system in place of the call; a failing close closes all the same."""

    def met(function: Callable[[], Any], name: str) -> None:
        if name == "close":
            function()
        raise OSError(error, os.strerror(error))

    _wrap(n, calls, met)


def signal_after_call(n: int, number: int, times: int = 1, calls: Sequence[str] = CALLS) -> None:
    """A signal that arrives during the call: Python answers it when the call returns.

    Args:
        times: launchers pass on what the terminal has sent already, and users press Ctrl-C again.
    """

    def met(function: Callable[[], Any], name: str) -> Any:
        result = function()
        os.kill(os.getpid(), number)
        return result

    _wrap(n, calls, met, times)


def run_before_call(n: int, command: Sequence[str], calls: Sequence[str] = CALLS) -> None:
    """A command of the system at that moment: someone else changes the disk."""

    def met(function: Callable[[], Any], name: str) -> Any:
        subprocess.run(command, check=True)
        return function()

    _wrap(n, calls, met)


def no_engine(loaded: bool = False) -> None:
    """Where an output is no good, that must be known before a network is loaded, or is run."""

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it is too late to find this out")

    if loaded:
        OrtBackend.denoise = never  # type: ignore[method-assign]
    else:
        Forecaster.load = never  # type: ignore[method-assign]


def limit(name: str, soft: int, above_present: bool = False) -> None:
    """A limit of resources; of RLIMIT_AS, where asked, counted from what is in use."""
    if above_present:
        with open("/proc/self/statm") as file:
            soft += int(file.read().split()[0]) * resource.getpagesize()
    kind = getattr(resource, name)
    resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))


def become(user: int) -> None:
    """Another user, since root may do anything."""
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def usual_signals() -> None:
    """As a terminal starts a command; in the background a shell has SIGINT ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def record_order(path: str) -> None:
    """No fault: writes down in which order files are flushed and named; see `order.problems`."""
    order.record(path)
