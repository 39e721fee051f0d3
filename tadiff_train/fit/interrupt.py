"""SIGINT and SIGTERM while training: the step is finished, the run saved, then it ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A run that was asked to end and has been saved; not an error."""

    def __init__(self, number: int, step: int) -> None:
        self.number = number
        """The signal."""
        self.step = step
        """The last step, which is saved."""
        super().__init__(f"signal {number} after step {step}")


class Asked:
    """The signal that came, 0 for none."""

    number = 0


@contextmanager
def asked_to_end() -> Iterator[Asked]:
    """Notes the first signal; a second one does what it did before, so that a user can insist.

    Signals that are ignored stay so, as nohup wants it. Outside the main thread, where Python
    delivers none, nothing is changed.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {n: signal.getsignal(n) for n in SIGNALS}
    before = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}

    def restore() -> None:
        for n, handler in before.items():
            signal.signal(n, handler)

    def note(number: int, frame: FrameType | None) -> None:
        asked.number = number
        restore()

    for n in before:
        signal.signal(n, note)
    try:
        yield asked
    finally:
        restore()


def leave_signals_to_parent(worker: int) -> None:
    """For loader workers: a signal to the whole group must not end them before the step does."""
    for n in SIGNALS:
        signal.signal(n, signal.SIG_IGN)
