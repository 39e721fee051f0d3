"""What backends of arrays share: a bucket, its halves, and a graph for the last rows."""

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.backends import no_memory
from tadiff_rt.bundle import Bundle
from tadiff_rt.manifest import Artefact

if TYPE_CHECKING:
    from tadiff_rt.device.denoiser import DeviceDenoiser

Float32Array = NDArray[np.float32]


class Conditioner(Protocol):
    """What makes the shifts."""

    def condition(
        self, t: NDArray[np.float64], days: Sequence[float], treatments: Sequence[float]
    ) -> Float32Array:
        """See `Backend.condition`."""


class Last:
    """The session for the last batch of a forecast, which has fewer rows than the bucket.

    Made when it is first needed: most of its time is what padding would cost in one evaluation.
    One is kept, because each holds memory of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows, self._session = 0, None

    def session(self, rows: int, load: Callable[[int], Any]) -> Any:
        """That for exactly `rows` rows."""
        with self._lock:
            if self._rows != rows:
                self._rows, self._session = 0, None  # before the next takes memory
                self._session = load(rows)
                self._rows = rows
            return self._session


class BucketBackend:
    """A `Backend` of arrays; a subclass brings the runtime.

    Args:
        runtime: and its version and device, for `Backend.runtime`.
    """

    name: str
    failures: tuple[type[Exception], ...]
    """What a call raises where memory ran out."""

    def __init__(
        self,
        bundle: Bundle,
        artefact: Artefact,
        threads: int,
        runtime: str,
        conditioner: Conditioner,
    ) -> None:
        self._bundle = bundle
        self.artefact = artefact
        self._threads = threads
        self.batch = artefact.batch or 1
        self.partial = artefact.dynamic_batch
        self.runtime = runtime
        if artefact.precision != "fp32":
            self.runtime += f", {artefact.precision}"
        self.description = f"{self.runtime}, {threads} threads"
        self._conditioner = conditioner
        self._denoiser = self._load_denoiser(self.batch)
        self._last = Last()

    def _load_denoiser(self, rows: int) -> Any:
        """The denoiser for exactly `rows` rows."""
        raise NotImplementedError

    def _call(self, denoiser: Any, feed: dict[str, Float32Array]) -> list[Float32Array]:
        """Noise estimate and mask logits of what `_load_denoiser` gave; from several threads."""
        raise NotImplementedError

    def halve(self) -> bool:
        """See `Backend.halve`."""
        if self.batch == 1 or not self.artefact.dynamic_batch:
            return False
        self.batch //= 2
        del self._denoiser  # before the next is loaded: memory is what there is none of
        self._last = Last()
        self._denoiser = self._load_denoiser(self.batch)
        return True

    def condition(
        self, t: NDArray[np.float64], days: Sequence[float], treatments: Sequence[float]
    ) -> Float32Array:
        """See `Backend.condition`."""
        return self._conditioner.condition(t, days, treatments)

    def denoise(
        self, sources: Float32Array, x: Float32Array, shifts: Float32Array
    ) -> tuple[Float32Array, Float32Array]:
        """See `Backend.denoise`."""
        try:
            eps, logits = self._run({"sources": sources, "x_t": x, "shifts": shifts})
            return eps, logits
        except self.failures as e:
            error = no_memory(self.name, self.batch, e)
        # Out here: an error with `e` behind it would keep the session, which `halve` must free.
        raise error

    def on_device(self) -> "DeviceDenoiser | None":
        """See `Backend.on_device`."""
        return None

    def _run(self, feed: dict[str, Float32Array]) -> list[Float32Array]:
        rows = len(feed["x_t"])
        if rows < self.batch:
            denoiser = self._last.session(rows, self._load_denoiser)
        else:
            denoiser = self._denoiser
        return self._call(denoiser, feed)
