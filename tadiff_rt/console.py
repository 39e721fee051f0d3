"""What the three commands share: errors to exit codes, progress on stderr, clean endings."""

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from tadiff_rt.errors import ResourceError, TadiffError, UsageError, describe, printable

EXIT_INTERNAL = 70


class _Terminated(BaseException):
    """SIGTERM, as an exception: `with` blocks clean up on the way out."""


def run_app(app: Any, command: str, argv: list[str] | None = None) -> NoReturn:
    """Runs a typer application and ends the process with the documented exit code.

    Errors are printed on stderr, as one JSON object a line with `--errors=json` anywhere among the
    arguments. A bug ends with 70 and the path of a crash record, never with a traceback, unless
    `--debug` is given.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--errors=json" in arguments
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a not in ("--errors=json", "--debug")]
    signal.signal(signal.SIGTERM, _terminate)
    code = _guarded(lambda: _invoke(app, command, arguments), command, as_json, debug)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(code)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _invoke(app: Any, command: str, arguments: list[str]) -> int:
    import typer

    try:
        result = typer.main.get_command(app).main(arguments, command, standalone_mode=False)
    except typer.Exit as e:
        return e.exit_code
    except typer.Abort:
        return 130
    except typer.TyperException as e:
        # Typer's own parser: unknown options, missing arguments, values of the wrong type.
        context = getattr(e, "ctx", None)
        path = context.command_path if context else command
        raise UsageError("TD3000", e.format_message(), fix=f"see `{path} --help`") from None
    return result if isinstance(result, int) else 0


def _guarded(action: Callable[[], int], command: str, as_json: bool, debug: bool) -> int:
    try:
        return action()
    except TadiffError as e:
        report(e, command, as_json)
        if debug:
            traceback.print_exc()
        return e.exit_code
    except MemoryError:
        report(ResourceError("TD7001", "out of memory", fix="use fewer slices"), command, as_json)
        return ResourceError.exit_code
    except KeyboardInterrupt:
        return 130
    except _Terminated:
        return 143
    except BrokenPipeError:
        return 0
    except Exception as e:
        if debug:
            traceback.print_exc()
        report(_internal(e), command, as_json)
        return EXIT_INTERNAL


def _internal(error: Exception) -> TadiffError:
    """A bug, with where its record lies. The record holds code locations, no values."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{os.path.basename(f.filename)}:{f.lineno} in {f.name}" for f in frames]
    with tempfile.NamedTemporaryFile(
        "w", prefix="tadiff-crash-", suffix=".txt", delete=False, encoding="ascii"
    ) as file:
        file.write(printable(type(error).__name__) + "\n" + "\n".join(lines) + "\n")
    return TadiffError(
        "TD7000",
        f"internal error: {type(error).__name__} in {lines[-1] if lines else 'unknown'}",
        where=file.name,
        fix="please report the file above; it holds code locations only",
    )


def report(error: TadiffError, command: str, as_json: bool) -> None:
    """Prints an error and all further findings on stderr."""
    if not as_json:
        say(describe(error, command))
        return
    for finding in error.findings:
        entry = {"code": finding.code, "message": finding.message, "exit": error.exit_code}
        say(json.dumps({**entry, "where": finding.where, "fix": finding.fix}))


def say(text: str) -> None:
    """One line for people, on stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


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
        tenth = 10 * done // total
        if tenth > self._said:
            self._said = tenth
            left = (time.monotonic() - self._start) * (total - done) / done
            say(f"{self._title}: {10 * tenth} %, {left:.0f} s left")
