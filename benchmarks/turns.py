"""Contestants in processes of their own, which take turns step by step.

A process each, because allocators, pools of threads and caches of one must not serve another, and
because one variable of the environment decides how an allocator works. They take turns because
clocks drift and neighbours are noisy; only one of them works at a time.
"""

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "20000000000"}
"""Makes glibc's allocator keep what was freed, so that large buffers are not mapped anew."""

Gate = Callable[[], None]
"""Called by a contestant before every step; returns when it is its turn."""

Contest = Callable[..., dict[str, Any]]
"""(gate, **arguments) -> columns of its row. A step lies between two calls of the gate, or the
last and the end; what comes before the first is setting up: loading, compiling, warming up."""


@dataclass(eq=False)
class Contestant:
    """What is to be run, and what came of it."""

    contest: str
    """MODULE:FUNCTION, a `Contest`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    """Of every step."""
    setup_seconds: float = 0.0
    peak_mb: float = 0.0
    """Of the process, resident, with everything that it imports."""
    page_faults: int = 0
    """Of all steps; without reading."""
    columns: dict[str, Any] = field(default_factory=dict)

    def start(self) -> None:
        """Begins a process and waits until it is ready for its first step."""
        order = json.dumps({"contest": self.contest, "arguments": self.arguments})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.turns", order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **self.environment},
            text=True,
        )
        self.setup_seconds = self._answer()["setup_seconds"]

    def step(self) -> bool:
        """Takes one step; False where it was the last."""
        answer = self._ask("step")
        self.seconds.append(answer["seconds"])
        return not answer["done"]

    def finish(self) -> None:
        """Ends the process, with the columns where it has come to its end."""
        answer = self._ask("end")
        self.peak_mb, self.columns = answer["peak_mb"], answer["columns"]
        self.page_faults = answer["page_faults"]
        self.kill()

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        if (process := getattr(self, "_process", None)) is not None:
            process.kill()
            process.communicate()

    def _ask(self, what: str) -> dict[str, Any]:
        with suppress(BrokenPipeError):  # it has ended, which the answer says
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.contest} {self.arguments} ended: its error is above")
        return json.loads(line)


def take_turns(
    contestants: dict[str, Contestant],
    steps: dict[str, int],
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Runs `steps` steps of each, or all that it has, spread evenly over the same time.

    Raises:
        RuntimeError: a contestant failed; all processes are ended.
    """
    try:
        for name, contestant in contestants.items():
            contestant.start()
            say(f"{name}: ready after {contestant.setup_seconds:.1f} s")
        over: set[str] = set()
        for name in in_turn({name: steps[name] for name in contestants}):
            if name not in over and not contestants[name].step():
                over.add(name)
        for name, contestant in contestants.items():
            contestant.finish()
            say(f"{name}: {sum(contestant.seconds):.1f} s for {len(contestant.seconds)} steps")
    finally:
        for contestant in contestants.values():
            contestant.kill()


def in_turn(counts: dict[str, int]) -> list[str]:
    """Every name as often as its count, each spread evenly: two of four steps fall on 1 and 3.

    >>> in_turn({"a": 3, "b": 1})
    ['a', 'a', 'b', 'a']
    """
    # Stable, so that those at the same moment stay in the order they were given.
    moments = [
        ((step + 0.5) / count, name) for name, count in counts.items() for step in range(count)
    ]
    return [name for _, name in sorted(moments, key=lambda moment: moment[0])]


def peak_bytes() -> int:
    """Of this process since it began; getrusage would count what the parent had."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


class _Over(BaseException):
    """No more steps are wanted; not an Exception, which a contestant might catch."""


class Turn:
    """The gate of a contestant in its own process: answers the step before, awaits the next.

    The contestant stays in the main thread: glibc gives other threads arenas of their own, which
    work otherwise than what people run.
    """

    def __init__(self, commands: IO[str], answers: IO[str]) -> None:
        self._commands, self._answers = commands, answers
        self._since, self._first = time.perf_counter(), True

    def __call__(self) -> None:
        """Ends a step and waits for the command to begin another."""
        self.step_is_over(done=False)
        if self._commands.readline().strip() != "step":
            raise _Over
        self._since = time.perf_counter()

    def step_is_over(self, *, done: bool) -> None:
        """Answers with its seconds; what came before the first is setting up."""
        seconds = time.perf_counter() - self._since
        if self._first:
            self._faults = page_faults()
        answer = {"setup_seconds" if self._first else "seconds": seconds, "done": done}
        self._first = False
        self.answer(answer)

    def answer(self, what: dict[str, Any]) -> None:
        """A line of JSON."""
        self._answers.write(json.dumps(what) + "\n")
        self._answers.flush()

    def run(self, contest: Contest, arguments: dict[str, Any]) -> None:
        """The whole life of a contestant."""
        columns: dict[str, Any] = {}
        try:
            columns = contest(self, **arguments)
            self.step_is_over(done=True)
            self._commands.readline()
        except _Over:
            pass  # its columns are those of a run that came to its end
        faults = page_faults() - self._faults
        peak_mb = round(peak_bytes() / 1e6)
        self.answer({"peak_mb": peak_mb, "page_faults": faults, "columns": columns})


def page_faults() -> int:
    """Of this process so far, without reading from a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def serve(order: dict[str, Any]) -> None:
    """One contestant's process: answers a line of JSON to every line read."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    turn = Turn(sys.stdin, answers)
    module, _, name = order["contest"].partition(":")
    turn.run(getattr(importlib.import_module(module), name), order["arguments"])


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
