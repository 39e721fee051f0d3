"""TensorRT and TensorRT for RTX on an NVIDIA GPU: the denoiser as an engine, one profile a bucket.

It reads and writes PyTorch's tensors where they lie, on PyTorch's current stream. The conditioner
runs once a request, in onnxruntime on the CPU. No engine computes an embedding.
"""

import importlib
import threading
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.backends import HALF_FIRST, ort
from tadiff_rt.backends.tensors import through_host
from tadiff_rt.backends.trt_denoiser import LESS_MEMORY, TrtDenoiser
from tadiff_rt.bundle import Bundle
from tadiff_rt.certificate import Precision
from tadiff_rt.engines import (
    EXTRAS,
    MODULES,
    OTHER_BACKEND,
    TITLES,
    Build,
    check_build,
    require_device,
    trial_load,
)
from tadiff_rt.errors import EngineError, ResourceError
from tadiff_rt.manifest import Artefact

Float32Array = NDArray[np.float32]


def unavailable(name: str) -> str:
    """Why the runtime called `name` cannot run here; empty if it can."""
    try:
        import_runtime(name)
        require_device(name)
    except EngineError as e:
        return e.message
    return ""


def precisions() -> tuple[Precision, ...]:
    """See `Kind.module`."""
    return HALF_FIRST


def load(bundle: Bundle, artefact: Artefact, threads: int) -> "TrtBackend":
    """A backend for an engine of `bundle`, on the first GPU.

    The engine is hashed, compared with the record of its build, loaded once in a child process,
    and only then loaded here.

    Args:
        threads: not used: the CPU has one small graph to run, once a request.

    Raises:
        EngineError: TD5001, the file is not the one exported; TD5002, it has no record of its
            build; TD5003 to TD5009, see `tadiff_rt.engines`; TD5022, TensorRT fails.
        ResourceError: TD7001, the GPU has no memory for it.
    """
    data = bundle.read(artefact)
    build = artefact.build
    if build is None:
        raise EngineError(
            "TD5002",
            f"{artefact.file} (sha256 {artefact.sha256}) has no record of its build",
            where=str(bundle.path),
            fix="export the checkpoint again on this machine, or get the bundle with its manifest",
        )
    trt = import_runtime(build.runtime)
    check_build(
        build,
        version=trt.__version__,
        compute_capability=require_device(build.runtime).compute_capability,
        weights_sha256=bundle.manifest.weights_sha256,
        onnx_sha256=None,  # the graph it was built from is not in the bundle
    )
    trial_load(data, build.runtime)
    return TrtBackend(bundle, artefact, build, data)


class TrtBackend:
    """A bundle's denoiser engine on the GPU."""

    partial = False  # an engine is built for certain buckets

    def __init__(self, bundle: Bundle, artefact: Artefact, build: Build, data: bytes) -> None:
        self.artefact = artefact
        self._torch = _import_torch(build.runtime)
        self._conditioner = ort.load_conditioner(bundle)
        self._buckets = build.buckets
        self._lock = threading.Lock()
        device = require_device(build.runtime)
        self.name = build.runtime
        self.runtime = (
            f"{TITLES[build.runtime]} {build.version}, {device.name}, {artefact.precision}"
        )
        self.description = f"{self.runtime}, driver {device.driver or device.cuda}"
        trt = import_runtime(build.runtime)
        self._arrays = TrtDenoiser(
            self._torch,
            build,
            data,
            trt=trt,
            log=runtime_log(trt),
            conditioner=self._conditioner,
            description=self.description,
        )
        size, width = bundle.manifest.card.data.size, bundle.manifest.conditioning_width
        self._arrays.require_interface(size, width, artefact.file, str(bundle.path))
        self.batch = build.bucket_for(artefact.batch or build.buckets[-1])
        self._arrays.prepare(self.batch)
        # A captured graph holds addresses within a context, so arrays must not replace it.
        self._tensors = self._arrays.twin()

    def on_device(self) -> TrtDenoiser:
        """See `Backend.on_device`; frees what arrays held, until the next of them come."""
        with self._lock:
            self._arrays.release()
        return self._tensors

    def halve(self) -> bool:
        """Goes on with the next smaller bucket of the engine; False on the smallest."""
        with self._lock:
            smaller = [b for b in self._buckets if b < self.batch]
            if not smaller:
                return False
            self.batch = smaller[-1]
            self._arrays.prepare(self.batch)
            return True

    def condition(
        self, t: NDArray[np.float64], days: Sequence[float], treatments: Sequence[float]
    ) -> Float32Array:
        """See `Backend.condition`."""
        shifts: Float32Array = self._conditioner.condition(t, days, treatments)
        return shifts

    def denoise(
        self, sources: Float32Array, x: Float32Array, shifts: Float32Array
    ) -> tuple[Float32Array, Float32Array]:
        """See `Backend.denoise`; calls of several threads run one after the other."""
        torch = self._torch
        with self._lock:
            try:
                self._arrays.prepare(self.batch)
                return through_host(torch, self._arrays, (sources, x, shifts))
            except torch.cuda.OutOfMemoryError as e:
                memory, what = True, str(e)[:200]
            except RuntimeError as e:  # of the driver, found when the results are fetched
                memory, what = False, str(e)[:200]
        # Out here: an error with `e` behind it would keep the buffers, which `halve` must free.
        what = f"the GPU failed on a batch of {self.batch}: {what}"
        if memory:
            raise ResourceError("TD7001", what, fix=LESS_MEMORY)
        raise EngineError("TD5022", what, fix=f"run it again, or {OTHER_BACKEND}")


def import_runtime(runtime: str) -> Any:
    """The Python package of a runtime.

    Raises:
        EngineError: TD5008, it is not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module(MODULES[runtime])
    except (ImportError, OSError) as e:  # OSError: a library that it links to is missing
        what = str(e)[:200]
    raise EngineError(
        "TD5008",
        f"{TITLES[runtime]} cannot be used: {what}",
        fix=f"pip install '{EXTRAS[runtime]}', or {OTHER_BACKEND}",
    )


def _import_torch(runtime: str) -> Any:
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as e:
        what = f"torch cannot be used: {str(e)[:200]}"
    else:
        if torch.cuda.is_available():
            return torch
        what = f"torch {torch.__version__} sees no GPU"
    fix = f"pip install 'tadiff[gpu]' '{EXTRAS[runtime]}', or {OTHER_BACKEND}"
    raise EngineError("TD5008", f"{TITLES[runtime]} needs torch with CUDA; {what}", fix=fix)


@cache
def runtime_log(trt: Any) -> Any:
    """The one logger that this process gives to a TensorRT package.

    TensorRT keeps the first logger that it is given for as long as any builder or runtime lives,
    and ignores every later one, so they share this one.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        """`problems`: warnings and errors. `layers`: the builder's list of an engine's layers."""

        def __init__(self) -> None:
            super().__init__()
            self.problems: deque[str] = deque(maxlen=50)
            self.layers = ""

        def clear(self) -> None:
            self.problems.clear()
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.WARNING):
                self.problems.append(message.strip())
            elif message.startswith("Layers:"):
                self.layers = message

        def tail(self, lines: int = 3) -> str:
            return "; ".join(list(self.problems)[-lines:])[:600] or "it gives no reason"

    return Log()
