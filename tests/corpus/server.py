"""A child interpreter that runs cases one after the other, each in a fork of its own.

    python [-O] -m tests.corpus.server MODE ENGINE FOLDER N    keys on stdin, a JSON line each back

N is how many mutated headers are read.

A fork has what the server imported, leaves nothing behind in it, and dies alone: of a signal, of
too much memory, or of its time limit.
"""

import json
import os
import pickle
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.corpus.case import GOOD, Accepted, CorpusCase
from tests.corpus.cases import BY_KEY
from tests.corpus.fuzz import run_files
from tests.corpus.judge import Run, changes, judge, listing
from tests.corpus.phantom import copy_of, write_good
from tests.corpus.results import Result
from tests.corpus.run import measured, run_api, run_command, run_fresh, usual_signals

TIMEOUT_SECONDS = 240
START_SECONDS = 2.0
MIB = 1 << 20


class Server:
    """The good data, references, and how a case is run in one mode."""

    def __init__(self, mode: str, engine: str, folder: Path, mutations: int) -> None:
        self.mode = mode
        self.mutations = mutations
        self.engine = engine
        self.folder = folder
        self.good = write_good(folder / "good")
        self.references: dict[str, Path] = {}
        self._preload()

    def _preload(self) -> None:
        """What every run needs, imported and loaded once."""
        import matplotlib.pyplot  # noqa: F401

        import tadiff_rt.backends.ort
        import tadiff_rt.commands  # noqa: F401
        from tadiff_rt.forecast import Forecaster
        from tests.corpus.run import BACKEND

        if self.mode == "api":
            self.forecaster = Forecaster.load(self.engine, BACKEND, threads=1)

    def answer(self, key: str) -> dict[str, Any]:
        """The outcome of a case; `complaints` is empty where it ended as required."""
        case = BY_KEY[key]
        reference = self._reference(case)
        if isinstance(reference, list):
            return {"key": key, "complaints": reference}
        seconds = TIMEOUT_SECONDS + (self.mutations // 20 if case.many_files else 0)
        outcome = forked(lambda: self._variants(case, reference), self._limit(case), seconds)
        outcome["complaints"] += over_limits(case, outcome, self.mode)
        return {"key": key, **outcome}

    def _limit(self, case: CorpusCase) -> int:
        """Bytes of address space: twice what the case may use, since not all of it is used."""
        return _pages(0) * resource.getpagesize() + 2 * case.memory_mb * MIB

    def _reference(self, case: CorpusCase) -> Path | list[str] | None:
        """Where the result lies that this one is compared with; complaints if there is none."""
        if not isinstance(case.ending, Accepted) or case.ending.how == "complete":
            return None
        like = case.ending.like or GOOD
        path = self.references.setdefault(like.key, self.folder / f"like-{len(self.references)}")
        if not path.exists():
            outcome = forked(lambda: self._keep(like, path), self._limit(like))
            if outcome["complaints"]:
                return [f"{like.key}: {what}" for what in outcome["complaints"]]
        return path

    def _keep(self, case: CorpusCase, path: Path) -> dict[str, Any]:
        outcome, result = self._once(case, 0, None)
        path.write_bytes(pickle.dumps(result))
        return outcome

    def _variants(self, case: CorpusCase, reference: Path | None) -> dict[str, Any]:
        like: Result | None = pickle.loads(reference.read_bytes()) if reference else None
        outcome: dict[str, Any] = {"complaints": [], "cpu_seconds": 0.0, "codes": []}
        if case.many_files and self.mode != "command":
            num_files = self.mutations if case.id == "N38" else case.many_files
            outcome = run_files(case, copy_of(self.good, self.folder / case.id), num_files)
            if self.mode == "api":
                return outcome
        for variant in range(max(case.many, 1)):
            one, _ = self._once(case, variant, like)
            prefix = f"variant {variant}: " if case.many else ""
            outcome["complaints"] += [prefix + what for what in one["complaints"]]
            outcome["codes"] += one["codes"]
            outcome["cpu_seconds"] = max(outcome["cpu_seconds"], one["cpu_seconds"])
        return outcome

    def _once(
        self, case: CorpusCase, variant: int, like: Result | None
    ) -> tuple[dict[str, Any], Result | None]:
        """Makes the case, runs it, judges it, and removes it."""
        root = self.folder / "run"
        shutil.rmtree(root, ignore_errors=True)
        data = copy_of(self.good, root)
        data.variant = variant
        case.spoil(data)
        os.environ["TMPDIR"] = str(root / "tmp")
        before = listing(root)
        run, cpu_seconds = self._run(case, data)
        allowed = ["streams"]
        if run.result is not None:
            allowed.append(data.out.relative_to(root).as_posix())
        complaints = judge(case, run, data, like)
        complaints += changes(before, listing(root), allowed)
        shutil.rmtree(root, ignore_errors=True)
        entry = {"complaints": complaints, "codes": run.codes, "cpu_seconds": cpu_seconds}
        return entry, run.result

    def _run(self, case: CorpusCase, data: Any) -> tuple[Run, float]:
        if self.mode == "api":
            return measured(run_api, case, data, self.forecaster)
        if case.fresh is not None:
            return measured(run_fresh, case, data, self.engine)
        return measured(run_command, case, data, self.engine)


def _pages(column: int) -> int:
    """Of this process: 0 those of its address space, 1 those in memory."""
    return int(Path("/proc/self/statm").read_text().split()[column])


def over_limits(case: CorpusCase, outcome: dict[str, Any], mode: str) -> list[str]:
    """Where a case took more memory or time than it may.

    A command also starts; the limit of a case is for reading it from Python.
    """
    complaints = []
    if outcome.get("memory_mb", 0) > case.memory_mb:
        complaints.append(f"{outcome['memory_mb']:.0f} MB, allowed are {case.memory_mb}")
    if outcome.get("cpu_seconds", 0) > case.cpu_seconds + (0 if mode == "api" else START_SECONDS):
        complaints.append(f"{outcome['cpu_seconds']:.2f} s of processor time")
    return complaints


def forked(
    work: Callable[[], dict[str, Any]], address_space: int, seconds: int = TIMEOUT_SECONDS
) -> dict[str, Any]:
    """What `work` returns in a fork of this process, and the memory it took.

    Args:
        address_space: bytes of it that the fork may use.
        seconds: after which it is killed.
    """
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        os.close(reader)
        _work(work, address_space, seconds, writer)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    _, status, usage = os.wait4(process, 0)
    if not text:
        return {
            "complaints": [f"the process ended with status {os.waitstatus_to_exitcode(status)}"]
        }
    outcome: dict[str, Any] = json.loads(text)
    outcome["memory_mb"] = max(0.0, usage.ru_maxrss / 1024 - outcome.pop("before_mb"))
    return outcome


def _work(
    work: Callable[[], dict[str, Any]], address_space: int, seconds: int, writer: int
) -> None:
    """Runs `work` in the fork and ends it; what escapes is said and no answer is given."""
    try:
        usual_signals()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        resource.setrlimit(resource.RLIMIT_AS, (address_space, resource.RLIM_INFINITY))
        before_mb = _pages(1) * resource.getpagesize() / MIB
        try:
            outcome = work()
        except BaseException as error:  # it escaped the run: the parent must hear of it
            at = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {error} ({at.filename}:{at.lineno})"
            outcome = {"complaints": [f"a traceback: {what}"]}
        with os.fdopen(writer, "w") as file:
            json.dump({**outcome, "before_mb": before_mb}, file)
    finally:
        os._exit(0)


def main(mode: str, engine: str, folder: str, mutations: str) -> None:
    """Answers every key on stdin."""
    server = Server(mode, engine, Path(folder), int(mutations))
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        start = time.monotonic()
        answer = server.answer(line.rstrip("\n"))
        answer["seconds"] = round(time.monotonic() - start, 3)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
