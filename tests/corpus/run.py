"""One run of one case in this process: through the command, a new interpreter, or Python."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.corpus.case import Accepted, CorpusCase, Said
from tests.corpus.judge import CODE, Run, stderr_complaints
from tests.corpus.phantom import Data
from tests.corpus.results import from_forecast, read_folder

REQUEST: dict[str, Any] = {"day": "+90", "treatment": "TMZ", "samples": 1, "steps": 1}
BACKEND = "onnxruntime"
MAIN = "from tadiff_rt.cli import main; main()"
TIMEOUT_SECONDS = 120


def arguments(case: CorpusCase, data: Data, engine: str) -> list[str]:
    """The command line of a case."""
    if case.argv:
        return [str(part) for part in case.argv(data, engine)]
    return predict(data, engine, **case.options)


def predict(data: Data, engine: str, *flags: str, **options: Any) -> list[str]:
    """`predict` of the data; options by their Python names come after the request."""
    argv = ["predict", "--engine", engine, f"--case={data.case}", "--threads", "1"]
    argv += ["--backend", BACKEND, f"--out={data.out}", *flags]
    for name, value in (REQUEST | options).items():
        option = f"--{name.replace('_', '-')}"
        argv += [option] if value is True else [f"{option}={value}"]
    return argv


def run_command(case: CorpusCase, data: Data, engine: str) -> Run:
    """The command in this process, its streams taken at the level of descriptors."""
    from tadiff_rt.cli import app
    from tadiff_rt.console import run_app

    argv = arguments(case, data, engine)
    code: object = None
    with _streams_to(data.root / "streams"):
        with arranged(case, data):
            try:
                run_app(app, "tadiff-rt", argv)
            except SystemExit as ended:
                code = ended.code
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
    out, err = ((data.root / "streams" / n).read_bytes() for n in ("out", "err"))
    return ended_with(case, data, int(code) if isinstance(code, int) else -1, out, err)


@contextlib.contextmanager
def arranged(case: CorpusCase, data: Data) -> Iterator[None]:
    """The surroundings of a case, for a while."""
    undo = case.arrange(data)
    try:
        yield
    finally:
        if undo:
            undo()


@contextlib.contextmanager
def _streams_to(folder: Path) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    try:
        yield
    finally:
        for descriptor, old in zip((1, 2), kept, strict=True):
            os.dup2(old, descriptor)
            os.close(old)


def run_fresh(case: CorpusCase, data: Data, engine: str) -> Run:
    """The command in a new interpreter, optimised if this one is."""
    changed = {**os.environ, "HOME": str(data.root / "tmp"), **(case.fresh or {})}
    env = {name: value for name, value in changed.items() if value is not None}
    flags = [*case.interpreter, *(["-O"] if not __debug__ else [])]
    done = subprocess.run(
        [sys.executable, *flags, "-c", MAIN, *arguments(case, data, engine)],
        capture_output=True,
        env=env,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    return ended_with(case, data, done.returncode, done.stdout, done.stderr)


def ended_with(case: CorpusCase, data: Data, code: int, out: bytes, err: bytes) -> Run:
    """What a command's exit code, streams and folder say."""
    said = err.decode("utf-8", "backslashreplace")
    codes = CODE.findall(said)
    run = Run(code, codes, said, out.decode("utf-8", "backslashreplace"), said)
    if codes and not isinstance(case.ending, Accepted):
        run.complaints += stderr_complaints(said, len(codes))
    elif code and not codes and not isinstance(case.ending, Said):
        run.complaints.append("it ends without a code")
    elif "Traceback" in said:
        run.complaints.append("a traceback")
    if isinstance(case.ending, Accepted) or (data.out / "forecast.json").exists():
        run.result = read_folder(data.out)
    return run


def run_api(case: CorpusCase, data: Data, forecaster: Any) -> Run:
    """Reading and forecasting from Python."""
    from tadiff_rt.case import ReadOptions
    from tadiff_rt.errors import TadiffError
    from tadiff_rt.readers import read_case

    names = {field.name for field in dataclasses.fields(ReadOptions)}
    reading = {k: v for k, v in case.options.items() if k in names}
    asked = REQUEST | {k: v for k, v in case.options.items() if k not in names}
    try:
        with arranged(case, data):
            read = read_case(data.case, ReadOptions(**reading), last=3)
            forecast = forecaster.predict(read, **asked)
    except TadiffError as error:
        codes = [finding.code for finding in error.findings]
        said = " ".join(f"{f.message} {f.fix}" for f in error.findings)
        run = Run(error.exit_code, codes, said, kind=type(error).__name__)
        own = {getattr(finding, "exit_code", None) for finding in error.findings}
        if not all(CODE.fullmatch(code) for code in codes) or 70 in own:
            run.complaints.append(f"findings without a code or a type: {codes}")
        return run
    return Run(0, [], result=from_forecast(forecast))


def measured(run: Any, *args: Any) -> tuple[Run, float]:
    """A run and the processor seconds it took, those of its children included."""
    before = _cpu_seconds()
    ended = run(*args)
    return ended, _cpu_seconds() - before


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def usual_signals() -> None:
    """A shell starts what it runs in the background with Ctrl-C ignored; children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
