"""The build of an engine in a thread of its own, which reports progress and can be cancelled.

The thread is there because TensorRT's callbacks swallow exceptions, and Ctrl-C is one: it arrives
in the main thread, which waits outside TensorRT. A cancelled build ends at its next step.
"""

import threading
from collections.abc import Callable
from typing import Any

from tadiff_rt.errors import EngineError

Progress = Callable[[str, int, int], None]
"""(phase, steps done, steps in all); called from other threads, and phases nest."""


def run_builder(
    trt: Any, builder: Any, network: Any, config: Any, progress: Progress | None, log: Any
) -> bytes:
    """The engine of `network`, serialised; no build goes on after this has returned or raised.

    Args:
        trt: the runtime's module.
        builder, network, config: its objects; `config` is given a progress monitor.
        progress: an exception that it raises, or Ctrl-C, cancels the build and is raised here.
        log: the builder's logger; its last lines are the reason that an error states.

    Raises:
        EngineError: TD5021, the build fails.
    """
    monitor = _monitor(trt, progress or (lambda phase, step, of: None))
    config.progress_monitor = monitor
    plans: list[Any] = []
    done = threading.Event()

    def build() -> None:
        try:
            if not monitor.cancelled:
                plans.append(builder.build_serialized_network(network, config))
        except BaseException as e:
            monitor.error = e
        finally:
            done.set()

    thread = threading.Thread(target=build)
    try:
        thread.start()
        done.wait()  # an interrupted join would call the thread ended (Python 3.11)
    except BaseException:
        monitor.cancelled = True
        raise
    finally:
        if thread.ident is not None:  # it runs, and must not outlive this call
            done.wait()
    if monitor.error is not None:
        raise monitor.error
    if not plans or plans[0] is None:
        raise EngineError(
            "TD5021",
            f"the engine cannot be built: {log.tail()}",
            fix="where memory is short, allow a larger workspace or export with a smaller --batch",
        )
    return bytes(plans[0])


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Passes phases on; ends the build, at its next step, once it is cancelled."""

        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}
            self.cancelled = False
            self.error: BaseException | None = None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            self._tell(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self._tell(phase, step + 1)
            return not self.cancelled

        def phase_finish(self, phase: str) -> None:
            self._tell(phase, self.steps.get(phase, 0))

        def _tell(self, phase: str, done: int) -> None:
            if self.cancelled:
                return
            try:
                progress(phase, done, self.steps.get(phase, 0))
            except BaseException as e:
                self.error, self.cancelled = e, True

    return Monitor()
