"""What the three commands share: errors to exit codes, progress on stderr, clean endings."""

import atexit
import json
import mmap
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from tadiff_rt.errors import (
    OutputError,
    ResourceError,
    TadiffError,
    UsageError,
    describe,
    printable,
)

BY_SIGNAL = tuple(128 + n for n in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
"""Exit codes of a command that a signal ended."""

REPEAT_S = 5.0
"""A signal so soon after the last does not break into the clean-up: launchers send on what the
terminal has sent already, and people press Ctrl-C twice."""

RESERVE_BYTES = 128 << 20
"""To be had at the start, or a command is refused: with less, libraries end the process by
themselves, without a word, when an allocation fails. A small forecast takes more."""


def run_app(app: Any, command: str, argv: list[str] | None = None) -> NoReturn:
    """Runs a typer application and ends the process with the documented exit code.

    Errors are printed on stderr, as one JSON object a line with `--errors=json` anywhere among the
    arguments. A bug ends with 70 and the path of a crash record, never with a traceback, unless
    `--debug` is given.
    """
    _open_standard_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--errors=json" in arguments
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a not in ("--errors=json", "--debug")]
    received = _take_signals()
    try:
        code = _invoke(app, command, arguments)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except Exception as e:
        # An interrupted library fails as it likes: importing onnxruntime, by an ImportError.
        code = 128 + received[0] if received else _failed(e, command, as_json, debug)
    if received and code:  # SIGTERM, or what typer makes of an interrupt
        code = 128 + received[0]
    try:
        sys.stdout.flush()
    except OSError:  # said before, or the reader has gone and nothing is wrong
        _silence_stdout()
    raise SystemExit(code)


def run_main(app: Any, command: str, argv: list[str] | None = None) -> NoReturn:
    """`run_app` as the whole life of a process.

    The interpreter is not taken down in order: that takes a tenth of a second, and after a signal
    what an interrupted library has left half started, threads among it, can crash it. What is
    registered to be done at exit is done, unless a signal came.
    """
    try:
        run_app(app, command, argv)
    except SystemExit as end:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # it is over
        if end.code not in BY_SIGNAL:
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)


def _open_standard_streams() -> None:
    """Puts the null device where a stream was closed at the start (`tadiff-rt ... >&-`).

    Otherwise the next file opened becomes descriptor 1, and what a library prints lands in it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _silence_stdout() -> None:
    """Sends what is left in the buffer nowhere: the interpreter flushes it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _take_signals() -> list[int]:
    """Makes signals to end exceptions, so that `with` blocks clean up on the way out.

    Returns:
        The signals received, filled as they come.
    """
    received: list[int] = []
    raised = -REPEAT_S

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        received.append(number)
        if time.monotonic() - raised >= REPEAT_S:
            raised = time.monotonic()
            raise KeyboardInterrupt

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the last not on every system
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:  # as nohup and `&` ask for
            signal.signal(number, interrupt)
    return received


def _invoke(app: Any, command: str, arguments: list[str]) -> int:
    if not _memory_is_left():
        what = f"less than {RESERVE_BYTES >> 20} MiB of memory can be had"
        raise ResourceError("TD7001", what, fix="free memory, or raise the limit (ulimit -v)")
    import typer

    parser = typer.main.get_command(app)
    completing = f"_{command}_COMPLETE".replace("-", "_").upper() in os.environ
    if not arguments and not completing:
        with parser.make_context(command, [], resilient_parsing=True) as context:
            say(parser.get_help(context))
        return UsageError.exit_code
    try:
        result = parser.main(arguments, command, standalone_mode=False)
    except typer.Exit as e:
        return e.exit_code
    except SystemExit:  # how typer takes a reader of its --help that has gone
        return 0
    except typer.Abort:
        return 130
    except typer.TyperException as e:
        # Typer's own parser: unknown options, missing arguments, values of the wrong type.
        at = getattr(e, "ctx", None)
        path = at.command_path if at else command
        raise UsageError("TD3000", e.format_message(), fix=f"see `{path} --help`") from None
    return result if isinstance(result, int) else 0


def _failed(error: Exception, command: str, as_json: bool, debug: bool) -> int:
    """Says what went wrong; returns the exit code for it."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, MemoryError) or not (isinstance(error, TadiffError) or _memory_is_left()):
        error = ResourceError("TD7001", "out of memory", fix="use fewer slices")
    elif not isinstance(error, TadiffError):
        error = _internal(error)
    report(error, command, as_json)
    return error.exit_code


def _memory_is_left() -> bool:
    try:
        mmap.mmap(-1, RESERVE_BYTES).close()
    except OSError:
        return False
    return True


def _internal(error: Exception) -> TadiffError:
    """A bug, with where its record lies. The record holds code locations, no values."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{os.path.basename(f.filename)}:{f.lineno} in {f.name}" for f in frames]
    what = f"internal error: {type(error).__name__} in {lines[-1] if lines else 'unknown'}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="tadiff-crash-", suffix=".txt", delete=False, encoding="ascii"
        ) as file:
            file.write(printable(type(error).__name__) + "\n")
            file.writelines(printable(line) + "\n" for line in lines)
    except OSError:
        return TadiffError("TD7000", what, fix="please report it, with the output of --debug")
    fix = "please report the file above; it holds code locations only"
    return TadiffError("TD7000", what, where=file.name, fix=fix)


def report(error: TadiffError, command: str, as_json: bool) -> None:
    """Prints an error and all further findings on stderr."""
    if not as_json:
        say(describe(error, command))
        return
    for finding in error.findings:
        entry = {"code": finding.code, "message": finding.message, "exit": error.exit_code}
        say(json.dumps({**entry, "where": finding.where, "fix": finding.fix}))


def say(text: str) -> None:
    """One line for people, on stderr; stdout is for results.

    A log that is full or whose reader has gone does not stop a forecast.
    """
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def tell(text: str) -> None:
    """A result, on stdout; a reader that has gone (`| head -1`) is no error.

    Raises:
        OutputError: TD8009, standard output cannot be written.
    """
    try:
        print(text, flush=True)  # noqa: T201
    except BrokenPipeError:
        _silence_stdout()
    except OSError as e:
        _silence_stdout()
        what = f"standard output cannot be written: {e.strerror or e}"
        raise OutputError("TD8009", what, fix="redirect it to another place") from None


@contextmanager
def progress_bar(title: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A progress callback (done, total) that shows remaining time on stderr.

    A bar on a terminal; elsewhere a line at every tenth, so that logs stay short.
    """
    if quiet:
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        yield _TenthLines(title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn(title), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, Remaining(), console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _TenthLines:
    def __init__(self, title: str) -> None:
        self._title = title
        self._start = time.monotonic()
        self._said = 0

    def __call__(self, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth > self._said:
            self._said = tenth
            left = (time.monotonic() - self._start) * (total - done) / done
            say(f"{self._title}: {10 * tenth} %, {left:.0f} s left")
