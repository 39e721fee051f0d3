"""An exported PyTorch program: compiled for one bucket at a time on a GPU, eager on a CPU."""

import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from tadiff_rt.backends import HALF_FIRST
from tadiff_rt.backends.program_denoiser import ProgramDenoiser, guarded
from tadiff_rt.backends.tensors import through_host
from tadiff_rt.bundle import Bundle
from tadiff_rt.certificate import Precision
from tadiff_rt.errors import TadiffError
from tadiff_rt.manifest import Artefact

Float32Array = NDArray[np.float32]


def unavailable(name: str) -> str:
    """Why this backend cannot run here: on a GPU its operators are Triton kernels."""
    if torch.cuda.is_available() and find_spec("triton") is None:
        return "the package triton is not installed"
    return ""


def precisions() -> tuple[Precision, ...]:
    """See `Kind.module`. Few processors compute in half precision, and others crawl."""
    return HALF_FIRST if torch.cuda.is_available() else ("fp32",)


class ProgramBackend:
    """The denoiser of a bundle as a PyTorch module on `device`, "cuda:0" or "cpu"."""

    name = "torch"
    partial = False  # buckets of other sizes may have other bits

    def __init__(self, bundle: Bundle, artefact: Artefact, threads: int, device: str) -> None:
        self.artefact = artefact
        self.batch = artefact.batch or 1
        self._dynamic = artefact.dynamic_batch
        # Other threads and, on a GPU, other buckets give other bits.
        where, how = f"cpu {platform.machine()}", f"{threads} threads"
        if device != "cpu":
            where = f"triton {version('triton')}, {torch.cuda.get_device_name(device)}"
            how = f"batch {self.batch}"
        self.runtime = f"torch {torch.__version__}, {where}, {artefact.precision}, {how}"
        self.description = self.runtime
        self._threads = threads
        self._arrays = ProgramDenoiser(bundle, artefact, torch.device(device), self.runtime)
        self._tensors = self._arrays.twin()  # of which whoever prepares it is the only user
        # One thread, whoever calls: one bucket is ready at a time, cuDNN chooses algorithms for
        # each thread anew, and the number of threads is the process's own.
        self._caller = ThreadPoolExecutor(1)

    def on_device(self) -> ProgramDenoiser | None:
        """See `Backend.on_device`; None on a CPU, where arrays are as good as tensors."""
        return self._tensors if self._tensors.capturable else None

    def halve(self) -> bool:
        """See `Backend.halve`."""
        if self.batch == 1 or not self._dynamic:
            return False
        self.batch //= 2
        return True

    def condition(
        self, t: NDArray[np.float64], days: Sequence[float], treatments: Sequence[float]
    ) -> Float32Array:
        """See `Backend.condition`; by onnxruntime, as on every backend."""
        return self._arrays.on_cpu.condition(t, days, treatments)

    def denoise(
        self, sources: Float32Array, x: Float32Array, shifts: Float32Array
    ) -> tuple[Float32Array, Float32Array]:
        """See `Backend.denoise`."""
        return self._caller.submit(self._denoise, (sources, x, shifts)).result()

    def _denoise(self, arrays: Sequence[Float32Array]) -> tuple[Float32Array, Float32Array]:
        before = torch.get_num_threads()
        if not self._arrays.capturable:  # on a GPU another number would be compiled for
            torch.set_num_threads(self._threads)
        try:
            self._arrays.prepare(self.batch)
            run = partial(through_host, torch, self._arrays, arrays)
            return guarded(self.batch, run, (TadiffError, ValueError))  # of another shape
        finally:
            torch.set_num_threads(before)


def device_denoiser(backend: ProgramBackend) -> ProgramDenoiser:
    """What `on_device` gives on a GPU, and on a CPU too: eager, for tests of the device loop."""
    return backend._tensors


def load(bundle: Bundle, artefact: Artefact, threads: int) -> ProgramBackend:
    """A backend on the GPU where there is one, else on `threads` CPU threads."""
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    return ProgramBackend(bundle, artefact, threads, device)
