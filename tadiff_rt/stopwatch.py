"""Where the time of a forecast goes, in stages that do not overlap."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

PARTS_OF_SAMPLING = ("denoise", "noise", "solve", "statistics")
"""In the network; drawing noise; in the solver, with its copies and checks, beside these two;
taking finished samples in. What is left of sampling is the stage "sample"."""


@dataclass
class Stopwatch:
    """Seconds spent in named stages, of which one is open at a time."""

    seconds: dict[str, float] = field(default_factory=dict)

    def copy(self) -> "Stopwatch":
        """One that goes on from here by itself."""
        return Stopwatch(dict(self.seconds))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to stage `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def split(self, name: str, parts: Mapping[str, float]) -> None:
        """Makes stages of `parts` of stage `name`, which keeps the rest."""
        self.seconds[name] -= sum(parts.values())
        self.seconds.update(parts)


class SharedStopwatch:
    """Wall time of stages that several threads are in at once.

    Every moment counts once, for the first of the stages in `order` that any thread is in then:
    two threads in the network for a second are one second, and so is a thread in the network
    beside one in the solver. A thread may be in a stage inside another.
    """

    def __init__(self, order: Iterable[str]) -> None:
        self._seconds = dict.fromkeys(order, 0.0)
        self._inside = dict.fromkeys(self._seconds, 0)
        self._lock = threading.Lock()
        self._since = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Of every stage that is over; a copy."""
        return dict(self._seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The calling thread is in stage `name`, one of `order`, during the block."""
        self._pass(name, 1)
        try:
            yield
        finally:
            self._pass(name, -1)

    def _pass(self, name: str, change: int) -> None:
        with self._lock:
            now = time.perf_counter()
            counted = next((stage for stage, count in self._inside.items() if count), None)
            if counted is not None:
                self._seconds[counted] += now - self._since
            self._since = now
            self._inside[name] += change


def of_all(once: Mapping[str, float], each: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Seconds of several forecasts together.

    Args:
        once: stages that all have in common.
        each: those of every forecast, with those of `once` among them.
    """
    total = dict(once)
    for seconds in each:
        for name, value in seconds.items():
            if name not in once:
                total[name] = total.get(name, 0.0) + value
    return total


def whole(seconds: Mapping[str, float], total: float) -> dict[str, float]:
    """`seconds` with "total", and with what no stage took of it as "other": the parts sum."""
    return {**seconds, "other": total - sum(seconds.values()), "total": total}
