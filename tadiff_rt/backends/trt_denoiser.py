"""The denoiser as a TensorRT engine, reading and writing PyTorch's tensors where they lie."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.backends import no_memory
from tadiff_rt.backends.tensors import INPUTS, readable, shapes
from tadiff_rt.engines import OTHER_BACKEND, OUT_OF_MEMORY, TITLES, Build
from tadiff_rt.errors import EngineError, ResourceError, TadiffError

if TYPE_CHECKING:  # a missing one is named when a backend is loaded
    from torch import Tensor

LESS_MEMORY = "free memory on the GPU, or export with a smaller --batch"
OUTPUTS = ("eps", "mask_logits")


class TrtDenoiser:
    """An engine for tensors, in one execution context for the bucket in use; see `DeviceDenoiser`.

    Every profile is for one shape, so a capture holds what every replay needs. It also holds the
    addresses of the context's own memory: graphs go before another bucket is prepared.
    """

    def __init__(
        self,
        torch: Any,
        build: Build,
        data: bytes,
        *,
        trt: Any,
        log: Any,
        conditioner: Any,
        description: str,
    ) -> None:
        """`trt`: the package of the build's runtime; `log`: its `runtime_log`."""
        self._trt, self._torch, self._build = trt, torch, build
        self._conditioner, self.description = conditioner, description
        self.buckets = build.buckets
        self.capturable = False  # until one is prepared
        self.device = torch.device("cuda", 0)
        self._log = log
        self._log.problems.clear()
        self._runtime = self._trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        self._must(self._engine is not None, "load the engine")
        self._stream = torch.cuda.Stream(self.device)
        self._size = self._width = self._rows = 0
        self._context: Any = None
        self._outputs: list[Tensor] = []
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, list[int]] = {}

    def require_interface(self, size: int, width: int, file: str, where: str) -> None:
        """The engine takes and gives images of this size, in float32.

        Raises:
            EngineError: TD4108, it does not.
        """
        engine, found = self._engine, {}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            shape = list(engine.get_tensor_shape(name))
            found[name] = (shape[1:], engine.get_tensor_dtype(name) == self._trt.float32)
        implied = shapes(size, width, -1)
        if found != {name: (shape[1:], True) for name, shape in implied.items()}:
            raise EngineError(
                "TD4108",
                f"the inputs and outputs of {file} are {found}, the manifest implies {implied} "
                "of float32",
                where=where,
                fix="export the checkpoint again",
            )
        self._size, self._width = size, width

    def twin(self) -> "TrtDenoiser":
        """The same engine in the same memory, prepared for nothing."""
        twin = copy.copy(self)
        twin.release()
        return twin

    def prepare(self, rows: int) -> None:
        """See `DeviceDenoiser.prepare`.

        Raises:
            ValueError: the engine has no profile of so many rows.
            EngineError: TD5022, TensorRT fails.
            ResourceError: TD7001.
        """
        if rows not in self.buckets:
            raise ValueError(f"rows must be one of {self.buckets}, got {rows}")
        if rows == self._rows:
            return
        self.release()
        error: TadiffError
        try:
            self._open(rows)
            return
        except TadiffError as e:
            error = e.with_traceback(None)  # its frames hold what `release` must free
        except self._torch.cuda.OutOfMemoryError as e:
            error = no_memory(TITLES[self._build.runtime], rows, e)
        self.release()
        raise error

    def _open(self, rows: int) -> None:
        torch, stream = self._torch, self._stream.cuda_stream
        self._log.problems.clear()
        context = self._new_context()
        self._must(context is not None, f"prepare for {rows} rows")
        profile = self._build.buckets.index(rows)
        ok = context.set_optimization_profile_async(profile, stream)
        self._must(ok, f"choose the profile for {rows} rows")
        self._shapes = shapes(self._size, self._width, rows)
        for name in INPUTS:
            ok = context.set_input_shape(name, self._shapes[name])
            self._must(ok, f"set the shape of {name}")
        missing = context.infer_shapes()
        self._must(not missing, f"infer its shapes, for lack of {missing}")
        for name in OUTPUTS:
            same = list(context.get_tensor_shape(name)) == self._shapes[name]
            self._must(same, f"give {name} the shape {self._shapes[name]}")
        self._context = context
        made = {"dtype": torch.float32, "device": self.device}
        self._outputs = [torch.empty(self._shapes[name], **made) for name in OUTPUTS]
        with torch.cuda.stream(self._stream):
            # The first run after shapes change does more than a capture may hold.
            self._enqueue([torch.zeros(self._shapes[name], **made) for name in INPUTS])
        self._stream.synchronize()
        # TensorRT for RTX can where no layer needs memory that the runtime allocates.
        own = self._build.runtime == "tensorrt"
        self.capturable = own or bool(context.is_stream_capturable(stream))
        self._rows = rows

    def _new_context(self) -> Any:
        if self._build.runtime == "tensorrt":
            return self._engine.create_execution_context()
        # By default kernels for a shape are compiled beside the first runs, and then replace
        # those that ran: the bits of a result would depend on when.
        config = self._engine.create_runtime_config()
        eager = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        return self._engine.create_execution_context(runtime_config=config)

    def release(self) -> None:
        """Frees what was prepared."""
        self._torch.cuda.synchronize()  # the GPU may still be at work in what goes
        self._context, self._rows = None, 0
        self._outputs, self._addresses, self._shapes = [], {}, {}
        self._torch.cuda.empty_cache()  # TensorRT has an allocator of its own

    def condition(
        self, t: NDArray[np.float64], days: Sequence[float], treatments: Sequence[float]
    ) -> "Tensor":
        """See `DeviceDenoiser.condition`; by onnxruntime on the CPU."""
        shifts = self._torch.from_numpy(self._conditioner.condition(t, days, treatments))
        moved: Tensor = shifts.to(self.device)
        return moved

    def __call__(
        self, sources: "Tensor", x: "Tensor", shifts: "Tensor"
    ) -> "tuple[Tensor, Tensor]":
        """See `DeviceDenoiser.__call__`.

        Raises:
            ValueError: these are no tensors that were prepared for.
            EngineError: TD5022, TensorRT fails.
            ResourceError: TD7001.
        """
        error: TadiffError
        try:
            self._enqueue(readable(self._torch, self._shapes, self.device, (sources, x, shifts)))
            eps, logits = self._outputs
            return eps, logits
        except TadiffError as e:
            error = e.with_traceback(None)  # its frames hold the outputs
        except self._torch.cuda.OutOfMemoryError as e:
            error = no_memory(TITLES[self._build.runtime], self._rows, e)
        raise error

    def _enqueue(self, given: "Sequence[Tensor]") -> None:
        tensors = dict(zip((*INPUTS, *OUTPUTS), (*given, *self._outputs), strict=True))
        for name, tensor in tensors.items():
            address = tensor.data_ptr()
            if self._addresses.get(name) != address:
                ok = self._context.set_tensor_address(name, address)
                self._must(ok, f"take the address of {name}")
                self._addresses[name] = address
        self._log.problems.clear()
        caller = stream = self._torch.cuda.current_stream(self.device)
        if not stream.cuda_stream:  # on stream 0 TensorRT waits for the GPU in every call
            stream = self._stream
            stream.wait_stream(caller)
        ok = self._context.execute_async_v3(stream.cuda_stream)
        self._must(ok, f"run a batch of {self._shapes['x_t'][0]}")
        if stream is not caller:
            caller.wait_stream(stream)

    def _must(self, ok: bool, what: str) -> None:
        """Every call of TensorRT that fails says so by what it returns, and only there."""
        if ok:
            return
        said = self._log.tail()
        message = f"{TITLES[self._build.runtime]} could not {what}: {said}"
        if OUT_OF_MEMORY.search(said):
            raise ResourceError("TD7001", message, fix=LESS_MEMORY)
        raise EngineError("TD5022", message, fix=OTHER_BACKEND)
