"""Runs what a page of docs/ shows: blocks of `$ command` with what each prints, and of `>>>`.

What a page says is compared with what comes out with numbers masked; a line `...` stands for any
number of lines. Between blocks a comment `<!-- then: name -->` does by `tests.walk.name` what the
reader does with another program.
"""

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tadiff_rt.cli import app
from tadiff_rt.console import run_app

ANY = "..."
BLOCKS = re.compile(r"^```console\n(.*?)^```$|<!-- then: (\w+) -->", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![A-Za-z0-9.])(?<![A-Za-z]-)[+-]?\d[\d.,]*(?<![.,])")
"""Those that are no part of a name, as ses-01 or day58."""


@dataclass
class Step:
    """A command of a page, or what a comment asks for."""

    command: str = ""
    shown: list[str] = field(default_factory=list)
    """Lines that it prints, as the page says."""
    then: str = ""
    """Name of a function of `tests.walk`."""


def steps(page: str) -> list[Step]:
    """What a page does, in order."""
    found = []
    for block in BLOCKS.finditer(page):
        if block[2]:
            found.append(Step(then=block[2]))
            continue
        for line in block[1].splitlines():
            if line.startswith("$ "):
                found.append(Step(line[2:]))
            elif found[-1].command.endswith("\\") and not found[-1].shown:
                found[-1].command = found[-1].command[:-1] + line.strip()
            else:
                found[-1].shown.append(line)
    return found


def masked(line: str) -> str:
    """A line without its numbers and the width of its gaps."""
    return " ".join(NUMBER.sub("#", line).split())


def matches(shown: list[str], printed: list[str]) -> bool:
    """Whether the lines of a page are those that were printed."""
    if not shown:
        return not printed
    if shown[0].strip() == ANY:
        return any(matches(shown[1:], printed[n:]) for n in range(len(printed) + 1))
    same = bool(printed) and masked(shown[0]) == masked(printed[0])
    return same and matches(shown[1:], printed[1:])


def run_here(command: str, read: Callable[[], Any]) -> tuple[int, list[str]]:
    """Exit code and lines of a command, `tadiff-rt` in this process, others in a shell.

    `NAME=...` sets a variable of the environment, as it would for the commands that follow.

    Args:
        read: of pytest's capsys, `readouterr`.
    """
    words = os.path.expandvars(command).split()
    if words[0] == "tadiff-rt":
        read()
        code = 0
        try:
            run_app(app, "tadiff-rt", words[1:])
        except SystemExit as ended:
            code = int(ended.code or 0)
        streams = read()
        return code, (streams.err + streams.out).splitlines()
    name = re.match(r"(\w+)=", command)
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    script = f'{command}; printf %s "${name[1]}"' if name else command
    result = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    if name:
        os.environ[name[1]] = result.stdout
        return result.returncode, []
    return result.returncode, (result.stderr + result.stdout).splitlines()


class _Masked(doctest.OutputChecker):
    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return matches(want.splitlines(), got.splitlines())


def sessions_of_python(page: Path) -> Iterator[str]:
    """Runs the `>>>` of a page as one session; yields what does not print what the page says."""
    text = re.sub(r"^```.*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    said: list[str] = []
    doctest.DocTestRunner(_Masked(), verbose=False).run(test, out=said.append)
    yield from said
