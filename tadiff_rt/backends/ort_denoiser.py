"""The denoiser in ONNX Runtime on a GPU, reading and writing PyTorch's tensors where they lie."""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from tadiff_rt.backends import CPU, no_memory
from tadiff_rt.backends.ort import (
    OUT_OF_MEMORY,
    OUTPUTS,
    denoiser_session,
    load_conditioner,
    session_options,
)
from tadiff_rt.backends.tensors import BUCKETS, INPUTS, of_memory, readable, shapes
from tadiff_rt.bundle import Bundle
from tadiff_rt.errors import EngineError, TadiffError
from tadiff_rt.manifest import Artefact

if TYPE_CHECKING:  # optional here
    from torch import Tensor

Providers = Sequence[tuple[str, Mapping[str, Any]]]


class OrtDenoiser:
    """The denoiser for tensors on the first GPU; see `DeviceDenoiser`.

    A session keeps to one stream, and takes stream 0, PyTorch's usual one, for none. So it has a
    stream of its own; on the GPU that waits for the caller's, and the caller's for it.

    It cannot be captured: onnxruntime may allocate in every run, and captures graphs only itself.
    """

    capturable = False

    def __init__(
        self, bundle: Bundle, artefact: Artefact, threads: int, providers: Providers, torch: Any
    ) -> None:
        self._bundle, self._artefact, self._threads = bundle, artefact, threads
        self._torch = torch
        self._session: Any = None
        self._binding: Any = None
        self._rows = 0
        self._shapes: dict[str, list[int]] = {}
        self._bound: dict[str, int] = {}
        self._outputs: list[Tensor] = []
        self.device = torch.device("cuda", 0)
        self.description = described(artefact, providers)
        self.buckets: tuple[int, ...] = (artefact.batch or 1,)
        if artefact.dynamic_batch:
            self.buckets = BUCKETS
        self._stream = torch.cuda.Stream(self.device)
        stream = {"user_compute_stream": str(self._stream.cuda_stream)}
        self._providers = [(name, {**options, **stream}) for name, options in providers]
        self._conditioner = load_conditioner(bundle)
        # Without this onnxruntime ends every run by waiting for the stream.
        self._no_wait = ort.RunOptions()
        self._no_wait.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def twin(self) -> "OrtDenoiser":
        """The same graph, prepared for nothing."""
        twin = copy.copy(self)
        twin.release()
        return twin

    def prepare(self, rows: int) -> None:
        """See `DeviceDenoiser.prepare`; chooses algorithms, or builds an engine.

        Raises:
            ValueError: the graph is for another number of rows.
            EngineError: TD5013, it cannot be loaded; TD5022, it fails.
            ResourceError: TD7001.
        """
        if rows < 1 or not (self._artefact.dynamic_batch or rows in self.buckets):
            raise ValueError(f"rows must be one of {self.buckets}, got {rows}")
        if rows == self._rows:
            return
        self.release()
        error: TadiffError
        try:
            self._open(rows)
            return
        except EngineError as e:
            error = no_memory("onnxruntime", rows, e) if of_memory(e) else e
            error = error.with_traceback(None)  # its frames hold what `release` must free
        except (*OUT_OF_MEMORY, self._torch.cuda.OutOfMemoryError) as e:
            error = failed(rows, e)
        self.release()
        raise error

    def _open(self, rows: int) -> None:
        torch, manifest = self._torch, self._bundle.manifest
        options = session_options(self._threads)
        self._session = denoiser_session(
            self._bundle, self._artefact, rows, options, self._providers
        )
        self._binding = self._session.io_binding()
        self._shapes = shapes(manifest.card.data.size, manifest.conditioning_width, rows)
        for name in OUTPUTS:
            held = torch.empty(self._shapes[name], dtype=torch.float32, device=self.device)
            at = ("cuda", 0, np.float32, self._shapes[name], held.data_ptr())
            self._binding.bind_output(name, *at)
            self._outputs.append(held)
        given = [torch.zeros(self._shapes[name], device=self.device) for name in INPUTS]
        self._enqueue(given)
        self._stream.synchronize()  # what fails later fails here
        self._rows = rows

    def release(self) -> None:
        """Frees what was prepared."""
        self._torch.cuda.synchronize()  # the GPU may still be at work in what goes
        self._session, self._binding, self._rows = None, None, 0
        self._shapes, self._bound, self._outputs = {}, {}, []
        self._torch.cuda.empty_cache()  # onnxruntime has an allocator of its own

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
            EngineError: TD5022, onnxruntime fails.
            ResourceError: TD7001.
        """
        try:
            self._enqueue(readable(self._torch, self._shapes, self.device, (sources, x, shifts)))
            eps, logits = self._outputs
            return eps, logits
        except (*OUT_OF_MEMORY, self._torch.cuda.OutOfMemoryError) as e:
            error = failed(self._rows, e)
        raise error

    def _enqueue(self, given: "Sequence[Tensor]") -> None:
        for name, tensor in zip(INPUTS, given, strict=True):
            address = tensor.data_ptr()
            if self._bound.get(name) != address:
                at = ("cuda", 0, np.float32, self._shapes[name], address)
                self._binding.bind_input(name, *at)
                self._bound[name] = address
        caller = self._torch.cuda.current_stream(self.device)
        self._stream.wait_stream(caller)
        self._session.run_with_iobinding(self._binding, self._no_wait)
        caller.wait_stream(self._stream)


def described(artefact: Artefact, providers: Providers) -> str:
    """Runtime, provider and precision."""
    return f"onnxruntime {ort.__version__}, {providers[0][0]}, {artefact.precision}"


def failed(rows: int, error: Exception) -> TadiffError:
    """For what a run raised: TD7001 where memory ended, else TD5022."""
    if of_memory(error):
        return no_memory("onnxruntime", rows, error)
    what = f"onnxruntime failed on a batch of {rows}: {str(error)[:200]}"
    return EngineError("TD5022", what, fix=f"run it again, or choose --backend {CPU}")
