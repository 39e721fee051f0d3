"""TensorRT and TensorRT for RTX on an NVIDIA GPU: the denoiser as an engine, one profile a bucket.

The conditioner runs once a request, in onnxruntime on the CPU. No engine computes an embedding.
"""

import importlib
import threading
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.backends import ort
from tadiff_rt.bundle import Bundle
from tadiff_rt.engines import (
    EXTRAS,
    MODULES,
    OTHER_BACKEND,
    OUT_OF_MEMORY,
    TITLES,
    Build,
    check_build,
    require_device,
    trial_load,
)
from tadiff_rt.errors import EngineError, ResourceError
from tadiff_rt.manifest import Artefact

LESS_MEMORY = "free memory on the GPU, or export with a smaller --batch"
Float32Array = NDArray[np.float32]
INPUTS = ("sources", "x_t", "shifts")
OUTPUTS = ("eps", "mask_logits")


def unavailable(name: str) -> str:
    """Why the runtime called `name` cannot run here; empty if it can."""
    try:
        import_runtime(name)
        require_device(name)
    except EngineError as e:
        return e.message
    return ""


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
    """A bundle's denoiser engine on the GPU, in one execution context for the bucket in use."""

    def __init__(self, bundle: Bundle, artefact: Artefact, build: Build, data: bytes) -> None:
        self._trt = import_runtime(build.runtime)
        self._torch = _import_torch(build.runtime)
        self._build = build
        self._conditioner = ort.load_conditioner(bundle)
        self._lock = threading.Lock()
        self._log = runtime_log(self._trt)
        self._log.problems.clear()
        self._runtime = self._trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            self._must(False, f"load {artefact.file}")
        manifest = bundle.manifest
        self._shapes = _shapes(manifest.card.data.size, manifest.conditioning_width)
        self._check_interface(artefact, str(bundle.path))
        device = require_device(build.runtime)
        self.name = build.runtime
        self.runtime = (
            f"{TITLES[build.runtime]} {build.version}, {device.name}, {artefact.precision}"
        )
        self.description = f"{self.runtime}, driver {device.driver or device.cuda}"
        self._stream = self._torch.cuda.Stream()
        self._prepare(build.bucket_for(artefact.batch or build.buckets[-1]))

    def _check_interface(self, artefact: Artefact, where: str) -> None:
        engine, found = self._engine, {}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            shape = list(engine.get_tensor_shape(name))
            found[name] = (shape[1:], engine.get_tensor_dtype(name) == self._trt.float32)
        if found != {name: (shape[1:], True) for name, shape in self._shapes.items()}:
            raise EngineError(
                "TD4108",
                f"the inputs and outputs of {artefact.file} are {found}, the manifest implies "
                f"{self._shapes} of float32",
                where=where,
                fix="export the checkpoint again",
            )

    def _prepare(self, bucket: int) -> None:
        """A context and buffers for calls of exactly `bucket` rows."""
        torch, self.batch = self._torch, bucket
        self._log.problems.clear()
        context = self._engine.create_execution_context()
        self._must(context is not None, f"prepare for {bucket} rows")
        stream, profile = self._stream.cuda_stream, self._build.buckets.index(bucket)
        ok = context.set_optimization_profile_async(profile, stream)
        self._must(ok, f"choose the profile for {bucket} rows")
        shapes = {n: [bucket if d < 0 else d for d in s] for n, s in self._shapes.items()}
        for name in INPUTS:
            self._must(context.set_input_shape(name, shapes[name]), f"set the shape of {name}")
        missing = context.infer_shapes()
        self._must(not missing, f"infer its shapes, for lack of {missing}")
        try:
            self._buffers = {
                name: torch.empty(shape, dtype=torch.float32, device="cuda")
                for name, shape in shapes.items()
            }
            what = ""
        except torch.cuda.OutOfMemoryError as e:
            what = f"the GPU has no memory for buffers of {bucket} rows: {str(e)[:200]}"
        if what:  # out here, as in `denoise`
            raise ResourceError("TD7001", what, fix=LESS_MEMORY)
        for name, buffer in self._buffers.items():
            same = list(context.get_tensor_shape(name)) == shapes[name]
            self._must(same, f"give {name} the shape {shapes[name]}")
            ok = context.set_tensor_address(name, buffer.data_ptr())
            self._must(ok, f"take the buffer of {name}")
        self._context = context

    def halve(self) -> bool:
        """Goes on with the next smaller bucket of the engine; False on the smallest."""
        with self._lock:
            smaller = [b for b in self._build.buckets if b < self.batch]
            if not smaller:
                return False
            # Before the next are made: memory is what there is none of.
            self._context, self._buffers = None, {}
            self._torch.cuda.empty_cache()
            self._prepare(smaller[-1])
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
                with torch.cuda.stream(self._stream):
                    return self._run(sources, x, shifts)
            except torch.cuda.OutOfMemoryError as e:
                memory, what = True, str(e)[:200]
            except RuntimeError as e:  # of the driver, found when the results are fetched
                memory, what = False, str(e)[:200]
        # Out here: an error with `e` behind it would keep the buffers, which `halve` must free.
        what = f"the GPU failed on a batch of {self.batch}: {what}"
        if memory:
            raise ResourceError("TD7001", what, fix=LESS_MEMORY)
        raise EngineError("TD5022", what, fix=f"run it again, or {OTHER_BACKEND}")

    def _run(self, *inputs: Float32Array) -> tuple[Float32Array, Float32Array]:
        for name, array in zip(INPUTS, inputs, strict=True):
            buffer = self._buffers[name]
            if array.shape != tuple(buffer.shape):  # a copy would repeat rows to fit
                raise ValueError(
                    f"{name} must have shape {tuple(buffer.shape)}, got {array.shape}"
                )
            buffer.copy_(self._torch.from_numpy(np.ascontiguousarray(array)))
        self._log.problems.clear()
        ok = self._context.execute_async_v3(self._stream.cuda_stream)
        self._must(ok, f"run a batch of {self.batch}")
        eps, logits = (self._buffers[name].cpu().numpy() for name in OUTPUTS)
        return eps, logits

    def _must(self, ok: bool, what: str) -> None:
        """Every call of TensorRT that fails says so by what it returns, and only there."""
        if ok:
            return
        said = self._log.tail()
        message = f"{TITLES[self._build.runtime]} could not {what}: {said}"
        if OUT_OF_MEMORY.search(said):
            raise ResourceError("TD7001", message, fix=LESS_MEMORY)
        raise EngineError("TD5022", message, fix=OTHER_BACKEND)


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


def _shapes(size: int, width: int) -> dict[str, list[int]]:
    """Inputs and outputs of a denoiser; -1 for the number of rows."""
    return {
        "sources": [-1, 9, size, size],
        "x_t": [-1, 3, size, size],
        "shifts": [1, width],
        "eps": [-1, 3, size, size],
        "mask_logits": [-1, 4, size, size],
    }


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
