"""ONNX Runtime's CUDA provider, with inputs and outputs bound to device memory."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from tadiff_rt.backends.ort import OUTPUTS, OrtBackend, denoiser_session, session_options
from tadiff_rt.bundle import Bundle
from tadiff_rt.manifest import Artefact

CUDA = "CUDAExecutionProvider"
Providers = Sequence[str | tuple[str, Mapping[str, Any]]]


def unavailable(name: str) -> str:
    """Why the CUDA provider cannot run here."""
    return missing_provider(CUDA)


def missing_provider(provider: str) -> str:
    """Why this onnxruntime does not offer `provider`."""
    if provider in ort.get_available_providers():
        return ""
    return f"onnxruntime {ort.__version__} has no {provider}"


class OrtCudaBackend(OrtBackend):
    """The denoiser on one GPU, with buffers there that stay."""

    name = "onnxruntime-cuda"

    def __init__(
        self, bundle: Bundle, artefact: Artefact, threads: int, providers: Providers
    ) -> None:
        self._providers = providers
        self._turn = threading.Lock()
        super().__init__(bundle, artefact, threads)
        first = providers[0] if isinstance(providers[0], str) else providers[0][0]
        self.runtime = f"onnxruntime {ort.__version__}, {first}, {artefact.precision}"
        self.description = self.runtime

    def _load_denoiser(self) -> Any:
        options = session_options(self._threads)
        loaded = denoiser_session(
            self._bundle, self._artefact, self.batch, options, self._providers
        )
        self._binding = loaded.io_binding()
        shapes = {v.name: v.shape for v in loaded.get_inputs()}
        self._held = {
            name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32), "cuda", 0)
            for name, shape in shapes.items()
        }
        for name, value in self._held.items():
            self._binding.bind_ortvalue_input(name, value)
        for name in OUTPUTS:
            self._binding.bind_output(name, "cuda")
        return loaded

    def halve(self) -> bool:
        """See `Backend.halve`; buffers and binding go before the next session comes."""
        if self.batch == 1 or not self._artefact.dynamic_batch:
            return False
        del self._binding, self._held
        return super().halve()

    def _run(self, feed: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        with self._turn:
            for name, array in feed.items():
                self._held[name].update_inplace(np.ascontiguousarray(array))
            self._denoiser.run_with_iobinding(self._binding)
            return list(self._binding.copy_outputs_to_cpu())


def load(bundle: Bundle, artefact: Artefact, threads: int) -> OrtCudaBackend:
    """A backend for `bundle` on the first GPU."""
    # Exhaustive: algorithms are chosen once, for a bucket whose shape never changes. TF32 would
    # be a precision that no certificate covers.
    options = {"cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "0"}
    return OrtCudaBackend(bundle, artefact, threads, [(CUDA, options)])
