"""Ways to run a bundle's network. Each is imported only when it is chosen."""

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.bundle import Bundle
from tadiff_rt.certificate import Precision
from tadiff_rt.errors import EngineError, ResourceError, UsageError
from tadiff_rt.manifest import Artefact, Format

if TYPE_CHECKING:  # needs torch
    from tadiff_rt.device.denoiser import DeviceDenoiser

AUTO = "auto"
MOST_EXACT: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
HALF_FIRST: tuple[Precision, ...] = ("fp16", "bf16", "fp32")
"""Of a GPU: tensor cores, and fp16 is nearer to fp32 than bf16."""

CPU = "onnxruntime"
"""The backend that bundles are certified on."""


class Backend(Protocol):
    """A loaded bundle on this machine."""

    name: str
    runtime: str
    """Runtime, version, device and precision: what the bits of a result depend on beside the
    bundle."""
    description: str
    """The same with the threads, for reports."""
    batch: int
    """Rows of a call of `denoise` at most, the bucket."""
    partial: bool
    """Calls may have fewer rows, with the same bits; where not, callers pad to the bucket."""

    def condition(
        self, t: NDArray[np.float64], days: Sequence[float], treatments: Sequence[float]
    ) -> NDArray[np.float32]:
        """(n, p) shifts for n one-based timesteps of one request: four days, four codes."""

    def denoise(
        self, sources: NDArray[np.float32], x: NDArray[np.float32], shifts: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(b, 9, h, w), (b, 3, h, w), (1, p) -> noise like x, logits (b, 4, h, w); b as `batch`.

        May be called from several threads at a time.
        """

    def halve(self) -> bool:
        """Goes on with half the bucket, to use less memory; False where that cannot be done."""

    def on_device(self) -> "DeviceDenoiser | None":
        """The same network on tensors of a GPU, for the loop that stays there; None on a CPU."""


@dataclass(frozen=True)
class Kind:
    """A backend before it is imported."""

    module: str
    """Has `load(bundle, artefact, threads) -> Backend`; `unavailable(name) -> str`: why it cannot
    run on this machine, empty if it can; and `precisions() -> tuple[Precision, ...]`: those that
    this machine has fast arithmetic for, the best first."""
    format: Format
    """Of the artefacts that it runs."""
    packages: tuple[str, ...]
    """What it imports."""
    extra: str
    """Of the installation: pip install 'tadiff[EXTRA]'."""
    auto: bool = True
    """Whether `auto` considers it."""
    alone: Precision | None = None
    """`auto` considers it in this precision only: in others it is no faster than `CPU`."""


BACKENDS: dict[str, Kind] = {
    "onnxruntime": Kind("tadiff_rt.backends.ort", "onnx", ("onnxruntime",), "cpu"),
    "openvino": Kind(
        "tadiff_rt.backends.ov", "onnx", ("openvino", "onnxruntime"), "openvino", alone="bf16"
    ),
    "onnxruntime-cuda": Kind("tadiff_rt.backends.ort_cuda", "onnx", ("onnxruntime",), "gpu"),
    "onnxruntime-tensorrt": Kind(
        # By name only: it builds engines on first use, may round to TF32, and has never been run.
        "tadiff_rt.backends.ort_tensorrt",
        "onnx",
        ("onnxruntime",),
        "gpu",
        auto=False,
    ),
    "tensorrt": Kind(
        "tadiff_rt.backends.trt",
        "tensorrt",
        ("tensorrt", "torch", "onnxruntime"),
        "tensorrt",
    ),
    "tensorrt-rtx": Kind(
        "tadiff_rt.backends.trt",
        "tensorrt-rtx",
        ("tensorrt_rtx", "torch", "onnxruntime"),
        "rtx",
    ),
    "torch": Kind("tadiff_rt.backends.program", "torch", ("torch", "onnxruntime"), "gpu"),
}


def load_backend(name: str, bundle: Bundle, threads: int | None = None) -> Backend:
    """A loaded backend, "NAME" or "NAME:PRECISION"; never another in its place.

    For "auto" see `choose.choose`.

    Raises:
        UsageError: no such backend (TD3050), or not this precision of it in the bundle (TD3061).
        EngineError: it cannot run here (TD5008), or the bundle is unfit for it.
    """
    return open_backend(*find_artefact(name, bundle), bundle, threads or available_cores())


def find_artefact(asked: str, bundle: Bundle) -> tuple[str, Artefact]:
    """Backend name and artefact of "NAME" or "NAME:PRECISION"."""
    name, _, precision = asked.partition(":")
    if name not in BACKENDS:
        raise UsageError(
            "TD3050", f"unknown backend {name!r}; choose from {AUTO}, {', '.join(BACKENDS)}"
        )
    kind = BACKENDS[name]
    held: dict[Precision, Artefact] = {
        a.precision: a for a in bundle.manifest.denoisers if a.format == kind.format
    }
    asked_for = next((p for p in held if p == precision), None)
    if not held:
        raise EngineError(
            "TD5012",
            f"the bundle holds nothing for backend {name!r}, which runs {kind.format} artefacts",
            where=str(bundle.path),
            fix=f"tadiff-export CKPT --target {kind.format}, or --backend {AUTO}",
        )
    if precision and asked_for is None:
        have = ", ".join(held)
        what = f"the bundle has no {kind.format} artefact in {precision!r}; it has {have}"
        raise UsageError("TD3061", what, where="--backend", fix=f"--backend {name}")
    return name, held[asked_for] if asked_for else usual(name, held)


def usual(name: str, held: Mapping[Precision, Artefact]) -> Artefact:
    """Of the artefacts of a backend, that of the precision which suits this machine.

    The fastest that it has arithmetic for, or else the most exact. No other is worth the minute
    that it takes to compile it: on tensor cores fp16 and bf16 cost the same, and fp32 more.
    """
    try:
        fast: tuple[Precision, ...] = importlib.import_module(BACKENDS[name].module).precisions()
    except ImportError:  # it cannot run here, and `open_backend` says so
        fast = ()
    return next(held[p] for p in (*fast, *MOST_EXACT) if p in held)


def open_backend(
    name: str, artefact: Artefact, bundle: Bundle, threads: int, *, canary: bool = True
) -> Backend:
    """One artefact on one backend.

    Args:
        canary: compare it with the bundle's canary, unless its certificate was measured on this
            very kind of backend: onnxruntime on a CPU, in fp32.
    """
    kind = BACKENDS[name]
    reason = unavailable(name)
    if reason:
        raise EngineError(
            "TD5008",
            f"backend {name!r} cannot run here: {reason}",
            fix=f"pip install 'tadiff[{kind.extra}]'"
            + (f", or --backend {CPU}" if name != CPU else ""),
        )
    backend: Backend = importlib.import_module(kind.module).load(bundle, artefact, threads)
    as_certified = name == CPU and artefact.precision == "fp32" and artefact.certificate
    if canary and not as_certified:
        from tadiff_rt.canary import require_canary

        require_canary(bundle, artefact, backend)
    return backend


def unavailable(name: str) -> str:
    """Why a backend cannot run on this machine; empty if it can."""
    kind = BACKENDS[name]
    packages = ", ".join(kind.packages)
    for package in kind.packages:
        # find_spec raises for a module that is None in sys.modules, as tests set it
        try:
            found = importlib.util.find_spec(package) is not None
        except ValueError:
            found = False
        if not found:
            return f"the package {package} is not installed"
    try:
        reason: str = importlib.import_module(kind.module).unavailable(name)
    except ImportError as e:  # installed, and broken
        # What the loader of libraries says without memory; where it may not execute, it adds that.
        if str(e).endswith("failed to map segment from shared object"):
            raise no_memory_to_load(packages) from None
        return f"{packages} cannot be imported: {str(e)[:200]}"
    return reason


def no_memory(runtime: str, rows: int, reason: Exception) -> ResourceError:
    """What a backend raises where a batch of `rows` does not fit; nothing of `reason` is kept."""
    return ResourceError(
        "TD7001",
        f"{runtime} could not run a batch of {rows}: {str(reason)[:200]}",
        fix="free memory, use fewer workers, or export with a smaller --batch",
    )


def no_memory_to_load(what: str) -> ResourceError:
    """What is raised where there is no memory for a library or a session."""
    return ResourceError(
        "TD7001", f"out of memory while loading {what}", fix="free memory, or raise the limit"
    )


def available_cores() -> int:
    """Cores this process may use: fewer than the machine has in a container or a batch job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
