"""Ways to run a bundle's network. Each is imported only when it is chosen."""

import importlib
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.bundle import Bundle
from tadiff_rt.errors import EngineError, UsageError

BACKENDS = {"onnxruntime": "tadiff_rt.backends.ort"}
"""Name -> module with `load(bundle, threads) -> Backend`."""


class Backend(Protocol):
    """A loaded bundle on this machine."""

    name: str
    runtime: str
    """Runtime, version and device: what the bits of a result depend on beside the bundle."""
    description: str
    """The same with the threads, for reports."""
    batch: int
    """Rows of every call of `denoise`, the bucket; callers pad."""

    def condition(
        self, t: NDArray[np.float64], days: Sequence[float], treatments: Sequence[float]
    ) -> NDArray[np.float32]:
        """(n, p) shifts for n one-based timesteps of one request: four days, four codes."""

    def denoise(
        self, sources: NDArray[np.float32], x: NDArray[np.float32], shifts: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(batch, 9, h, w), (batch, 3, h, w), (1, p) -> noise like x, logits (batch, 4, h, w).

        May be called from several threads at a time.
        """

    def halve(self) -> bool:
        """Goes on with half the bucket, to use less memory; False where that cannot be done."""


def load_backend(name: str, bundle: Bundle, threads: int | None = None) -> Backend:
    """The backend called `name`, or for "auto" the fastest that this machine and bundle have.

    A named backend is never replaced by another.

    Raises:
        UsageError: no such backend (TD3050).
        EngineError: it cannot run here (TD5008), or the bundle is unfit for it.
    """
    chosen = "onnxruntime" if name == "auto" else name
    if chosen not in BACKENDS:
        raise UsageError(
            "TD3050", f"unknown backend {name!r}; choose from auto, {', '.join(BACKENDS)}"
        )
    try:
        module = importlib.import_module(BACKENDS[chosen])
    except ModuleNotFoundError as e:
        raise EngineError(
            "TD5008",
            f"backend {chosen!r} needs the package {e.name}, which is not installed",
            fix="pip install 'tadiff[cpu]'",
        ) from None
    backend: Backend = module.load(bundle, threads or available_cores())
    return backend


def available_cores() -> int:
    """Cores this process may use: fewer than the machine has in a container or a batch job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
