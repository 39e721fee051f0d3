"""Runs of `tadiff-rt` in forked children of a process that has imported everything.

A fresh interpreter takes a second to import what a forecast needs, a fork milliseconds; so a fault
can be tried at hundreds of moments. The child runs `run_app` of the command line as it is. Two
things are different from a fresh process: the child ends by `os._exit`, since onnxruntime cannot
be unloaded in a fork, and with `pictures=False` a fixed picture stands in for the overview, which
takes longer to draw than all the rest.
"""

import importlib
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60
"""A run that takes longer hangs."""

MODULES = (
    *("tadiff_rt.cli", "tadiff_rt.commands", "tadiff_rt.backends.ort", "rich.progress"),
    *("matplotlib.backends.backend_agg", "matplotlib.figure", "PIL.PngImagePlugin"),
    "tests.faults.inject",
)

Fault = tuple[str, dict[str, Any]]
"""A function of `tests.faults.inject` and its arguments; called before the command."""


class Ended(NamedTuple):
    """How a run ended."""

    code: int
    """Exit code; below 0 the signal that killed it."""
    seconds: float
    out: str
    err: str
    fired: str
    """Where the fault was met, for faults that say so; empty if it was not."""


class ForkServer:
    """One run at a time: `run`, or `start`, signals to the process id it returns, and `wait`."""

    def __init__(self, *, pictures: bool = False) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="tadiff-faults-")
        self.folder = Path(self._scratch.name)
        # Faults may ask for another user, who must be able to look into it.
        self.folder.chmod(0o755)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server", "real" if pictures else "fixed"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TADIFF_CACHE": f"{self.folder}/cache"},
        )
        self._pid = 0
        self._answer(PATIENCE_S)

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._scratch.cleanup()

    def start(self, argv: Sequence[str], *faults: Fault, **options: str) -> int:
        """Starts a command; returns its process id, valid until `wait`.

        Options: `stdout`, a path; `cwd`, a folder.
        """
        for name in ("out", "err", "fired"):
            (self.folder / name).unlink(missing_ok=True)
        request = {"argv": list(argv), "faults": faults, "folder": str(self.folder), **options}
        self._ask(request)
        self._pid = self._answer(PATIENCE_S)
        return self._pid

    def wait(self, patience_s: float = PATIENCE_S) -> Ended:
        """The ending of the command that was started.

        Raises:
            AssertionError: it hangs, or left a process behind.
        """
        self._ask({"wait": self._pid})
        code, seconds = self._answer(patience_s)
        assert not (left := session_members(self._pid)), f"processes are left: {left}"
        paths = [self.folder / name for name in ("out", "err", "fired")]
        said = [path.read_text(errors="replace") if path.exists() else "" for path in paths]
        return Ended(code, seconds, *said)

    def run(self, argv: Sequence[str], *faults: Fault, **options: str) -> Ended:
        """A command from its start to its end."""
        self.start(argv, *faults, **options)
        return self.wait()

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def _answer(self, patience_s: float) -> Any:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], patience_s)[0]:
            if self._pid:
                os.kill(self._pid, 9)
            raise AssertionError(f"no ending within {patience_s} s")
        line = self._process.stdout.readline()
        assert line, "the fork server has died"
        return json.loads(line)


def session_members(session: int) -> list[int]:
    """Process ids of a session: a command starts one, and all it starts belong to it."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(name))
    return found


def _serve() -> None:
    _say(0)
    started = 0.0
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            _say([os.waitstatus_to_exitcode(status), time.monotonic() - started])
            continue
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _child(request)
        _say(pid)


def _say(answer: Any) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _child(request: dict[str, Any]) -> None:
    """Runs the command; does not return."""
    from tadiff_rt.cli import app
    from tadiff_rt.console import run_app
    from tests.faults import inject

    code: Any = 99
    try:
        os.setsid()
        folder = request["folder"]
        _redirect(0, os.devnull, os.O_RDONLY)
        _redirect(1, request.get("stdout", f"{folder}/out"), os.O_WRONLY | os.O_CREAT)
        _redirect(2, f"{folder}/err", os.O_WRONLY | os.O_CREAT)
        os.chdir(request.get("cwd", folder))
        inject.FIRED = f"{folder}/fired"
        for name, arguments in request["faults"]:
            getattr(inject, name)(**arguments)
        run_app(app, "tadiff-rt", request["argv"])
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        if threading.active_count() > 1:  # an interpreter that ends would wait for them
            print(f"threads are left: {threading.enumerate()}", file=sys.stderr)  # noqa: T201
            code = 97
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 98)


def _redirect(descriptor: int, path: str, flags: int) -> None:
    opened = os.open(path, flags, 0o644)
    os.dup2(opened, descriptor)
    os.close(opened)


def _import_all(pictures: str) -> None:
    if pictures == "fixed":
        from tadiff_rt import overview  # before anything takes the names from it

        drawn = overview._thumbnail()
        overview.check_drawing = lambda: None
        overview.comparison_png = lambda comparison: drawn
    for name in MODULES:
        importlib.import_module(name)


if __name__ == "__main__":
    _import_all(sys.argv[1])
    _serve()
