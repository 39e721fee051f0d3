"""ONNX Runtime's TensorRT provider: engines are built on first use and kept in the cache."""

from tadiff_rt.backends.ort_cuda import (
    CUDA,
    OrtCudaBackend,
    OrtTorchBackend,
    missing_provider,
    on_gpu,
    precisions,
)
from tadiff_rt.backends.ort_denoiser import Providers
from tadiff_rt.bundle import Bundle
from tadiff_rt.cache import cache_folder
from tadiff_rt.manifest import Artefact

__all__ = ["load", "precisions", "unavailable"]

TENSORRT = "TensorrtExecutionProvider"


def unavailable(name: str) -> str:
    """Why the TensorRT provider cannot run here."""
    return missing_provider(TENSORRT)


def load(bundle: Bundle, artefact: Artefact, threads: int) -> OrtTorchBackend | OrtCudaBackend:
    """A backend for `bundle` on the first GPU; the first load builds an engine, which is slow."""
    folder = str(cache_folder("onnxruntime-tensorrt", artefact.sha256))
    # Precision is in the graph: the provider's own fp16 mode would ignore its fp32 islands.
    options = {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": folder,
        "trt_fp16_enable": False,
    }
    providers: Providers = [(TENSORRT, options), (CUDA, {"use_tf32": "0"})]
    return on_gpu("onnxruntime-tensorrt", bundle, artefact, threads, providers)
