"""Runs cases in child interpreters, one a mode, and collects how they ended."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tests.corpus.case import CorpusCase
from tests.corpus.cases import CASES
from tests.corpus.names import MUTATIONS

ROOT = Path(__file__).parents[2]
MODES = {"command": (), "optimised": ("-O",), "api": ()}
"""The command, the same under `python -O`, and the Python API; with what the interpreter gets."""


@contextmanager
def server(mode: str, engine: Path, mutations: int = MUTATIONS) -> Iterator["Asker"]:
    """A child that answers for one mode.

    Args:
        mutations: how many mutated headers N38 reads.
    """
    with tempfile.TemporaryDirectory(prefix="tadiff-corpus-") as folder:
        command = [sys.executable, *MODES[mode], "-m", "tests.corpus.server"]
        errors = Path(folder, "errors")
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                [*command, mode, str(engine), folder, str(mutations)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
                env=_environment(folder),
            )
        try:
            yield Asker(process, errors)
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()
            process.wait(timeout=60)


def _environment(folder: str) -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    own = {"TADIFF_CACHE": f"{folder}/cache", "MPLCONFIGDIR": f"{folder}/matplotlib"}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    path = os.pathsep.join(filter(None, paths))
    return {**os.environ, **own, **threads, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


class Asker:
    """One question at a time to a child."""

    def __init__(self, process: "subprocess.Popen[str]", errors: Path) -> None:
        self._process = process
        self._errors = errors

    def ask(self, case: CorpusCase) -> dict[str, Any]:
        """How a case ended: `complaints`, empty if as required, and codes, seconds, memory."""
        stdin, stdout = self._pipes()
        stdin.write(case.key + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            code = self._process.wait(timeout=60)
            what = self._errors.read_text()[-3000:]
            raise RuntimeError(f"the child ended with {code} at {case.key}:\n{what}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the child has no pipes")
        return self._process.stdin, self._process.stdout


def applies(case: CorpusCase, mode: str) -> bool:
    """Whether a case can be run in a mode."""
    return case.api or mode != "api"


def run_all(
    mode: str, engine: Path, cases: Sequence[CorpusCase] = CASES, mutations: int = MUTATIONS
) -> Iterator[tuple[CorpusCase, dict[str, Any]]]:
    """Every case that applies and how it ended, as they end."""
    with server(mode, engine, mutations) as child:
        for case in cases:
            if applies(case, mode):
                yield case, child.ask(case)
