"""The runner of a request: the loop on a device where the backend has one, else `BatchRunner`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from tadiff_rt.backends import Backend
from tadiff_rt.batches import BatchRunner, Float32Array, Progress, Sampling
from tadiff_rt.runner import Runner, SampleSize

if TYPE_CHECKING:  # needs torch
    from tadiff_rt.device.loop import DeviceLoop


_LOOPS: "WeakValueDictionary[int, DeviceLoop]" = WeakValueDictionary()
"""Loops in use by the identity of their denoiser, which is ready for one bucket at a time: all
that use a backend share one loop."""


class Runners:
    """Makes the runner of every request on one backend.

    What the device holds stays for the next request; one is served at a time.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._loop: DeviceLoop | None = None
        self._asked = False

    def runner(
        self,
        sampling: Sampling,
        request: tuple[Sequence[float], Sequence[float]],
        sources: Float32Array,
        size: SampleSize,
        num_slices: int,
        *,
        workers: int = 1,
        progress: Progress | None = None,
    ) -> Runner:
        """The runner of one request.

        Noise that is coherent between slices is made on the host. A plan that draws it in every
        step would need it of all steps beforehand, so there the loop runs on the host.

        Args:
            request: days and treatment codes of the four slots.
            sources: (d, 9, size, size) clean source images.
            num_slices: that will be forecast.
            workers: of `BatchRunner`.

        Raises:
            ResourceError: the device has no memory for the smallest bucket (TD7001).
        """
        loop = self._device_loop()
        notes: list[str] = []
        if loop is not None:
            if not (sampling.noise.coherence > 0 and sampling.plan.coef_noise.any()):
                from tadiff_rt.device.runner import DeviceRunner

                runner = DeviceRunner(
                    loop,
                    sampling,
                    loop.denoiser.condition(sampling.plan.t, *request),
                    sources,
                    size,
                    num_slices,
                    runtime=self._backend.runtime,
                    progress=progress,
                )
                if workers > 1:
                    runner.notes.append(f"{workers} workers: not used on a device")
                return runner
            loop.release()  # the backend gets ready for other calls
            notes.append(
                f"solver {sampling.plan.solver!r} with coherent noise: the loop ran on the host"
            )
        shifts = self._backend.condition(sampling.plan.t, *request)
        return BatchRunner(self._backend, sampling, shifts, sources, workers, progress, notes)

    def _device_loop(self) -> "DeviceLoop | None":
        if not self._asked:
            on_device = getattr(self._backend, "on_device", None)
            denoiser = on_device() if on_device else None
            if denoiser is not None:
                from tadiff_rt.device.loop import DeviceLoop

                self._loop = _LOOPS.get(id(denoiser)) or DeviceLoop(denoiser)
                _LOOPS[id(denoiser)] = self._loop
            self._asked = True
        return self._loop
