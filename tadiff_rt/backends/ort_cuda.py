"""ONNX Runtime's CUDA provider, with inputs and outputs bound to device memory.

With PyTorch beside it, it reads and writes PyTorch's tensors where they lie and waits for nothing;
without, arrays go through buffers of its own.
"""

import importlib
import threading
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from tadiff_rt.backends import HALF_FIRST
from tadiff_rt.backends.ort import OUTPUTS, OrtBackend, denoiser_session, session_options
from tadiff_rt.backends.ort_denoiser import OrtDenoiser, Providers, described, failed
from tadiff_rt.backends.tensors import through_host
from tadiff_rt.bundle import Bundle
from tadiff_rt.certificate import Precision
from tadiff_rt.manifest import Artefact

CUDA = "CUDAExecutionProvider"
Float32Array = NDArray[np.float32]


def unavailable(name: str) -> str:
    """Why the CUDA provider cannot run here."""
    return missing_provider(CUDA)


def precisions() -> tuple[Precision, ...]:
    """See `Kind.module`."""
    return HALF_FIRST


def missing_provider(provider: str) -> str:
    """Why this onnxruntime does not offer `provider`."""
    if provider in ort.get_available_providers():
        return ""
    return f"onnxruntime {ort.__version__} has no {provider}"


class OrtTorchBackend(OrtBackend):
    """The denoiser on one GPU beside PyTorch: arrays become tensors."""

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        artefact: Artefact,
        threads: int,
        providers: Providers,
        torch: Any,
    ) -> None:
        self.name, self._torch, self._turn = name, torch, threading.Lock()
        self._arrays = OrtDenoiser(bundle, artefact, threads, providers, torch)
        self._tensors = self._arrays.twin()  # of which whoever prepares it is the only user
        super().__init__(bundle, artefact, threads)
        self.partial = False  # buckets of other sizes may have other bits
        self.runtime = self.description = self._arrays.description

    def on_device(self) -> OrtDenoiser:
        """See `Backend.on_device`; frees what arrays held, until the next of them come."""
        with self._turn:
            self._arrays.release()
        return self._tensors

    def _load_denoiser(self, rows: int) -> None:
        self._arrays.prepare(rows)

    def _run(self, feed: dict[str, Float32Array]) -> list[Float32Array]:
        with self._turn:
            try:
                self._arrays.prepare(self.batch)
                return [*through_host(self._torch, self._arrays, list(feed.values()))]
            except RuntimeError as e:  # of PyTorch: no memory, or found when results are fetched
                error = failed(self.batch, e)
        raise error


class OrtCudaBackend(OrtBackend):
    """The denoiser on one GPU without PyTorch, which tensors need, with buffers that stay."""

    def __init__(
        self, name: str, bundle: Bundle, artefact: Artefact, threads: int, providers: Providers
    ) -> None:
        self.name, self._turn, self._providers = name, threading.Lock(), providers
        super().__init__(bundle, artefact, threads)
        self.partial = False  # buckets of other sizes may have other bits
        self.runtime = self.description = described(artefact, providers)

    def _load_denoiser(self, rows: int) -> Any:
        options = session_options(self._threads)
        loaded = denoiser_session(self._bundle, self.artefact, rows, options, self._providers)
        self._binding = loaded.io_binding()
        self._held = {
            v.name: ort.OrtValue.ortvalue_from_numpy(np.zeros(v.shape, np.float32), "cuda", 0)
            for v in loaded.get_inputs()
        }
        for name, value in self._held.items():
            self._binding.bind_ortvalue_input(name, value)
        for name in OUTPUTS:
            self._binding.bind_output(name, "cuda")
        return loaded

    def halve(self) -> bool:
        """See `Backend.halve`; buffers and binding go before the next session comes."""
        if self.batch == 1 or not self.artefact.dynamic_batch:
            return False
        del self._binding, self._held
        return super().halve()

    def _run(self, feed: dict[str, Float32Array]) -> list[Float32Array]:
        with self._turn:
            for name, array in feed.items():
                self._held[name].update_inplace(np.ascontiguousarray(array))
            self._denoiser.run_with_iobinding(self._binding)
            return list(self._binding.copy_outputs_to_cpu())


def load(bundle: Bundle, artefact: Artefact, threads: int) -> OrtTorchBackend | OrtCudaBackend:
    """A backend for `bundle` on the first GPU."""
    # By heuristics: a search by timing may end otherwise in the next process. TF32 would be a
    # precision that no certificate covers.
    options = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    return on_gpu("onnxruntime-cuda", bundle, artefact, threads, [(CUDA, options)])


def on_gpu(
    name: str, bundle: Bundle, artefact: Artefact, threads: int, providers: Providers
) -> OrtTorchBackend | OrtCudaBackend:
    """The backend called `name`, beside PyTorch where that sees a GPU."""
    try:
        torch = importlib.import_module("torch")
        found = torch.cuda.is_available()
    except (ImportError, OSError):  # not installed, or a library of it is missing
        found = False
    if found:
        return OrtTorchBackend(name, bundle, artefact, threads, providers, torch)
    return OrtCudaBackend(name, bundle, artefact, threads, providers)
