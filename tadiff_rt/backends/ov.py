"""OpenVINO on the CPU: bf16 on processors that multiply in it, for which onnxruntime has nothing.

Every operator computes in the type that the graph states, so what was kept in fp32 for a
certificate is fp32 here. In fp32 it is as fast as onnxruntime (`python -m benchmarks.network`).
"""

import importlib
import io
import sys
from functools import cache
from typing import Any

from tadiff_rt.backends import CPU, no_memory_to_load
from tadiff_rt.backends.bucket import BucketBackend, Float32Array
from tadiff_rt.backends.ort import OUTPUTS, denoiser_values, load_conditioner, verified
from tadiff_rt.backends.tensors import of_memory
from tadiff_rt.bundle import Bundle
from tadiff_rt.certificate import Precision
from tadiff_rt.errors import EngineError
from tadiff_rt.manifest import Artefact

DEVICE = "CPU"
CONVERTER = "openvino.tools.ovc"
SETTINGS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "PERFORMANCE_HINT": "LATENCY",
    "ENABLE_CPU_PINNING": False,
}


@cache
def library() -> Any:
    """OpenVINO without its converter, which reports its use from the moment it is imported."""
    hidden = CONVERTER not in sys.modules
    if hidden:
        sys.modules[CONVERTER] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        if hidden:
            del sys.modules[CONVERTER]


@cache
def core() -> Any:
    """What reads and compiles graphs."""
    return library().Core()


def unavailable(name: str) -> str:
    """Why this backend cannot run here.

    Raises:
        ResourceError: TD7001.
    """
    try:
        core().get_property(DEVICE, "FULL_DEVICE_NAME")
    except (RuntimeError, MemoryError) as e:
        if of_memory(e):
            raise no_memory_to_load("openvino") from None
        return f"OpenVINO has no {DEVICE}: {said(e)}"
    return ""


def precisions() -> tuple[Precision, ...]:
    """bf16 where the processor multiplies in it (AMX, AVX-512 BF16)."""
    try:
        able = core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    except RuntimeError:  # `unavailable` says so
        able = ()
    return ("bf16", "fp32") if "BF16" in able else ("fp32",)


def said(error: Exception) -> str:
    """The reason, without the lines that name OpenVINO's own sources."""
    lines = [x for x in str(error).splitlines() if x and not x.startswith("Exception from ")]
    return " ".join(lines)[:200]


class Requests:
    """A compiled graph, and another for every call that comes while all are busy.

    A request serves one call at a time, and those of one compiled graph wait for each other.

    Args:
        rows: of every call.

    Raises:
        RuntimeError, MemoryError: OpenVINO cannot load it.
    """

    def __init__(self, graph: bytes, rows: int, threads: int) -> None:
        self._settings = {**SETTINGS, "INFERENCE_NUM_THREADS": threads}
        self._model = core().read_model(io.BytesIO(graph))
        # For this number of rows alone: with any number, shapes are found again in every call.
        shapes = {}
        for value in self._model.inputs:
            shape = value.get_partial_shape()
            shapes[value.any_name] = [rows if d.is_dynamic else d.get_length() for d in shape]
        self._model.reshape(shapes)
        self._free = [self._compiled()]

    def run(self, feed: dict[str, Float32Array]) -> list[Float32Array]:
        """Noise estimate and mask logits."""
        try:
            request = self._free.pop()  # atomic, unlike a look before it
        except IndexError:
            request = self._compiled()
        found = request.infer(feed)
        self._free.append(request)
        return [found[name] for name in OUTPUTS]  # copies: the request keeps its own

    def _compiled(self) -> Any:
        return core().compile_model(self._model, DEVICE, self._settings).create_infer_request()


class OvBackend(BucketBackend):
    """A bundle's ONNX denoiser in OpenVINO."""

    name = "openvino"
    failures = (MemoryError,)

    def __init__(self, bundle: Bundle, artefact: Artefact, threads: int) -> None:
        runtime = f"openvino {library().get_version().partition('-')[0]}, {DEVICE}"
        super().__init__(bundle, artefact, threads, runtime, load_conditioner(bundle))
        # A product of few rows is cut otherwise: its bits may be others than in a full bucket.
        self.partial = False

    def _load_denoiser(self, rows: int) -> Requests:
        inputs, outputs = denoiser_values(self._bundle, self.artefact, rows)
        graph = verified(self._bundle, self.artefact, inputs=inputs, outputs=outputs)
        try:
            return Requests(graph, rows, self._threads)
        except (RuntimeError, MemoryError) as e:
            if of_memory(e):
                raise no_memory_to_load(self.artefact.file) from None
            raise EngineError(
                "TD5013",
                f"{self.runtime} cannot load {self.artefact.file}: {said(e)}",
                where=str(self._bundle.path),
                fix=f"upgrade openvino, or --backend {CPU}",
            ) from None

    def _call(self, denoiser: Any, feed: dict[str, Float32Array]) -> list[Float32Array]:
        error: Exception
        try:
            outputs: list[Float32Array] = denoiser.run(feed)
            return outputs
        except RuntimeError as e:
            what = f"{self.runtime} failed on a batch of {len(feed['x_t'])}: {said(e)}"
            error = EngineError("TD5022", what, fix=f"run it again, or choose --backend {CPU}")
            if of_memory(e):
                error = MemoryError(said(e))
        raise error  # without `e` behind it, whose frames hold the request


def load(bundle: Bundle, artefact: Artefact, threads: int) -> OvBackend:
    """A backend for `bundle` on `threads` CPU threads."""
    return OvBackend(bundle, artefact, threads)
