"""The runner of a request: the loop on a device where the backend has one, else `BatchRunner`."""

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from tadiff_rt.backends import Backend
from tadiff_rt.batches import BatchRunner, Float32Array, Progress, Sampling
from tadiff_rt.bundle import Bundle
from tadiff_rt.runner import Runner, SampleSize

if TYPE_CHECKING:  # needs torch
    from tadiff_rt.device.denoiser import DeviceDenoiser
    from tadiff_rt.device.loop import DeviceLoop


_LOOPS: "WeakValueDictionary[int, DeviceLoop]" = WeakValueDictionary()
"""Loops in use by the identity of their denoiser, which is ready for one bucket at a time: all
that use a backend share one loop."""


class Runners:
    """Makes the runner of every request on one backend.

    What the device holds stays for the next request; one is served at a time.
    """

    def __init__(self, backend: Backend, bundle: Bundle | None = None) -> None:
        """
        Args:
            bundle: with whose canary every bucket that is prepared on the device is compared: it
                is another program than the one that the backend runs on arrays.
        """
        self._backend, self._bundle = backend, bundle
        self._loop: DeviceLoop | None = None
        self._asked = False
        self._notes: list[str] = []

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
        keep: bool = False,
    ) -> Runner:
        """The runner of one request.

        Noise that is coherent between slices is made on the host. A plan that draws it in every
        step would need it of all steps beforehand, so there the loop runs on the host.

        Args:
            request: days and treatment codes of the four slots.
            sources: (d, 9, size, size) clean source images.
            num_slices: that will be forecast.
            workers: of `BatchRunner`.
            keep: the tumour probability of every sample.

        Raises:
            ResourceError: the device has no memory for the smallest bucket (TD7001).
        """
        loop = self._device_loop()
        notes = list(self._notes)
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
                    keep=keep,
                )
                if workers > 1:
                    runner.notes.append(f"{workers} workers: not used on a device")
                return runner
            loop.release()  # the backend gets ready for other calls
            notes.append(
                f"solver {sampling.plan.solver!r} with coherent noise: the loop ran on the host"
            )
        shifts = self._backend.condition(sampling.plan.t, *request)
        return BatchRunner(
            self._backend, sampling, shifts, sources, workers, progress, keep, notes
        )

    def _device_loop(self) -> "DeviceLoop | None":
        if not self._asked:
            on_device = getattr(self._backend, "on_device", None)
            denoiser = on_device() if on_device else None
            if denoiser is not None and denoiser.device.type == "cuda" and not has_triton():
                self._notes.append("the package triton is not installed: the loop ran on the host")
            elif denoiser is not None:
                self._loop = self._shared(denoiser)
            self._asked = True
        return self._loop

    def _shared(self, denoiser: "DeviceDenoiser") -> "DeviceLoop":
        from tadiff_rt.device.loop import DeviceLoop

        def check(rows: int) -> None:
            from tadiff_rt.canary import require_canary
            from tadiff_rt.device.denoiser import OnArrays

            artefact = getattr(self._backend, "artefact", None)
            if self._bundle is not None and artefact is not None:
                require_canary(self._bundle, artefact, OnArrays(denoiser, rows))

        loop = _LOOPS.get(id(denoiser)) or DeviceLoop(denoiser, check=check)
        _LOOPS[id(denoiser)] = loop
        return loop


def has_triton() -> bool:
    """Whether the kernels of the loop can run on a GPU."""
    return importlib.util.find_spec("triton") is not None
