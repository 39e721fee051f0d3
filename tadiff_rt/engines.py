"""TensorRT engines: the record of a build, and the checks between an engine's bytes and its use.

An engine is native code for one version of TensorRT and one kind of GPU, and a damaged or foreign
one can end the process. So nothing here is loaded that was not hashed, compared with its record,
and loaded once in a child process before. An engine from a stranger stays a stranger's program: no
check makes one safe whose hash you did not get from someone you trust.
"""

import ctypes
import platform
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tadiff_rt.errors import EngineError, ResourceError, TadiffError

Runtime = Literal["tensorrt", "tensorrt-rtx"]
MODULES: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Runtime -> the Python package that it is."""
TITLES: dict[str, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
EXTRAS: dict[str, str] = {"tensorrt": "tadiff[tensorrt]", "tensorrt-rtx": "tadiff[rtx]"}
OTHER_BACKEND = "choose --backend onnxruntime"

Version = Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.+_-]{0,40}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ComputeCapability = Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")]
Bucket = Annotated[int, Field(ge=1, le=1024)]


def this_platform() -> str:
    """Operating system and processor, such as "linux-x86_64"."""
    return f"{sys.platform}-{platform.machine().lower()}"


class Build(BaseModel):
    """What an engine was built with and for; without this record no engine is loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: Runtime
    version: Version
    """Full version of the runtime: an engine of another one is refused."""
    platform: str = Field(pattern=r"^[a-z0-9_-]{1,60}$")
    """See `this_platform`. Engines of TensorRT for RTX run on every platform."""
    compute_capabilities: tuple[ComputeCapability, ...] = Field(min_length=1)
    """Of the GPUs that it runs on; for TensorRT exactly the one that it was built on."""
    gpu: str | None = Field(None, max_length=100)
    """Name of the GPU it was built on; None without one."""
    driver: Version | None = None
    """Release of the NVIDIA driver at the time of the build."""
    cuda: Version | None = None
    """CUDA version of that driver."""
    onnx_sha256: Sha256
    weights_sha256: Sha256
    buckets: tuple[Bucket, ...] = Field(min_length=1)
    """Rows a call, increasing: one optimisation profile each, of this shape alone."""
    workspace_bytes: int = Field(ge=1)
    """Most scratch memory that a layer was allowed."""
    strongly_typed: Literal[True] = True
    """Precisions are those that the ONNX graph states."""
    layers: int = Field(ge=1)
    """Layers of the engine, over all profiles."""
    plugins: tuple[str, ...] = ()
    """Plugin layers: their code is not part of the engine. Our builder makes none."""

    @field_validator("buckets")
    @classmethod
    def _increasing(cls, buckets: tuple[int, ...]) -> tuple[int, ...]:
        if list(buckets) != sorted(set(buckets)):
            raise ValueError(f"buckets must increase, got {buckets}")
        return buckets

    def bucket_for(self, rows: int) -> int:
        """The smallest bucket that holds `rows`.

        Raises:
            EngineError: TD5006, the engine has no profile as large.
        """
        for bucket in self.buckets:
            if rows <= bucket:
                return bucket
        raise EngineError(
            "TD5006",
            f"no profile of the engine holds {rows} rows; it has them for "
            f"{', '.join(map(str, self.buckets))}",
            fix=f"use at most {self.buckets[-1]} rows a call, or export with a larger --batch",
        )

    def describe(self) -> str:
        """Runtime, version and GPUs, such as "TensorRT 10.9.0.34 for sm_90"."""
        return f"{TITLES[self.runtime]} {self.version} for {_sm(self.compute_capabilities)}"


def _sm(compute_capabilities: tuple[str, ...]) -> str:
    return ", ".join("sm_" + c.replace(".", "") for c in compute_capabilities)


def check_build(
    build: Build,
    *,
    version: str,
    compute_capability: str | None,
    weights_sha256: str,
    onnx_sha256: str | None,
) -> None:
    """Whether an engine may be loaded here, from its record alone.

    Args:
        version: of the installed runtime.
        compute_capability: of this machine's GPU, such as "8.9"; None without one.
        weights_sha256: of the weights that the bundle is for.
        onnx_sha256: of the ONNX graph that the engine must have been made from; None if the bundle
            does not say.

    Raises:
        EngineError: TD5003, it is for another version, platform or GPU; TD5005, it is of other
            weights or another graph; TD5009, it needs a plugin library.
    """
    if build.plugins:
        raise EngineError(
            "TD5009",
            f"the engine needs code outside it, for its plugin layers {', '.join(build.plugins)}",
            fix="plugin libraries are never loaded; build the engine with `tadiff-export`",
        )
    differs = build.version != version
    if compute_capability is not None:
        differs |= compute_capability not in build.compute_capabilities
    if build.runtime == "tensorrt":
        differs |= build.platform != this_platform()
    if differs:
        gpu = _sm((compute_capability,)) if compute_capability else "a machine without a GPU"
        raise EngineError(
            "TD5003",
            f"engine built with {build.describe()} ({build.platform}), "
            f"this is {version} on {gpu} ({this_platform()})",
            fix=f"rebuild: tadiff-export CKPT --target {build.runtime}; or {OTHER_BACKEND}",
        )
    for what, recorded, expected in (
        ("weights", build.weights_sha256, weights_sha256),
        ("ONNX graph", build.onnx_sha256, onnx_sha256),
    ):
        if expected is not None and recorded != expected:
            raise EngineError(
                "TD5005",
                f"the engine was built from the {what} {recorded[:12]}..., "
                f"the bundle is for {expected[:12]}...",
                fix=f"rebuild: tadiff-export CKPT --target {build.runtime}",
            )


@dataclass(frozen=True)
class Device:
    """The first GPU that this process sees."""

    name: str
    compute_capability: str
    """Such as "8.9"."""
    cuda: str
    """CUDA version of the driver, such as "13.0"."""
    driver: str | None
    """Release of the driver, where the system tells."""


def find_device() -> Device | None:
    """The first GPU, asked of the NVIDIA driver itself; None without a driver or a GPU."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    return describe_device(library)


def describe_device(cuda: Any) -> Device | None:
    """The first GPU of a loaded CUDA driver library; None if it has none."""
    handle, major, minor, version = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(100)
    calls = (
        (cuda.cuInit, (0,)),
        (cuda.cuDeviceGet, (ctypes.byref(handle), 0)),
        (cuda.cuDeviceGetName, (name, len(name), handle)),
        (cuda.cuDeviceGetAttribute, (ctypes.byref(major), 75, handle)),
        (cuda.cuDeviceGetAttribute, (ctypes.byref(minor), 76, handle)),
        (cuda.cuDriverGetVersion, (ctypes.byref(version),)),
    )
    if any(call(*arguments) != 0 for call, arguments in calls):  # up to the first that fails
        return None
    release = None
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(errors="replace")
        found = re.search(r"Module(?: for \S+)?\s+(\d[\d.]*)", text)
        release = found[1] if found else None
    return Device(
        name.value.decode(errors="replace"),
        f"{major.value}.{minor.value}",
        f"{version.value // 1000}.{version.value % 1000 // 10}",
        release,
    )


def require_device(runtime: str) -> Device:
    """The GPU that engines run on.

    Raises:
        EngineError: TD5008, there is no NVIDIA driver, or no GPU.
    """
    device = find_device()
    if device is None:
        raise EngineError(
            "TD5008",
            f"{TITLES[runtime]} needs an NVIDIA GPU with its driver, and finds none here",
            fix=f"{OTHER_BACKEND}; `nvidia-smi` shows what the driver sees",
        )
    return device


REFUSED = 3
CHILD = f"""
import importlib, sys
trt = importlib.import_module(sys.argv[1])
runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
engine = runtime.deserialize_cuda_engine(sys.stdin.buffer.read())
sys.exit({REFUSED} if engine is None else 0)
"""
"""What the worker runs; its argument is a package, its input the engine."""
NO_DRIVER = re.compile(r"cudaError (?:35|100)\b")
"""The driver is missing or too old for the runtime; there is no GPU."""
OUT_OF_MEMORY = re.compile(r"out ?of ?memory", re.IGNORECASE)


def trial_load(data: bytes, runtime: str, timeout_s: float = 60) -> None:
    """Loads an engine in a child process, so that a crash of native code is the child's.

    Args:
        data: an engine whose hash has been verified.
        timeout_s: after which the child is ended.

    Raises:
        EngineError: TD5004, the engine cannot be loaded; TD5008, there is no driver to load it
            with, or it is too old.
        ResourceError: TD7001, the GPU has no memory for it; TD7003, the child cannot be started,
            or the system killed it.
    """
    require_device(runtime)
    command = [sys.executable, "-P", "-c", CHILD, MODULES[runtime]]
    try:
        child = subprocess.run(
            command,
            input=data,
            stdout=subprocess.PIPE,  # TensorRT's own logger writes its errors there
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise _not_loaded(f"the worker had not loaded it after {timeout_s:g} s") from None
    except OSError as e:
        what = f"no worker can be started to try the engine: {e.strerror}"
        raise ResourceError("TD7003", what) from None
    if child.returncode != 0:
        raise _failure(child.returncode, child.stdout.decode(errors="replace"), runtime)


def _failure(code: int, output: str, runtime: str) -> TadiffError:
    """What the end of a worker means."""
    said = output.strip().splitlines() or ["it gives no reason"]
    errors = [line.split("[E] ")[-1] for line in said if "[E] " in line] or said[-1:]
    first = errors[0][:300]
    if code == REFUSED and NO_DRIVER.search(first):
        what = f"{TITLES[runtime]} finds no NVIDIA driver that is new enough: {first}"
        return EngineError("TD5008", what, fix=f"update the driver, or {OTHER_BACKEND}")
    if code == REFUSED and OUT_OF_MEMORY.search(first):
        what = f"the GPU has no memory for the engine: {first}"
        return ResourceError("TD7001", what, fix="free memory on the GPU")
    if code == -9:  # SIGKILL, which Windows does not have
        what = "the worker that loads the engine was killed (signal 9), as when memory runs out"
        return ResourceError("TD7003", what, fix="free memory")
    if code == REFUSED:
        return _not_loaded(f"{TITLES[runtime]} refuses it: {first}")
    if code == 1:  # an exception of Python
        return _not_loaded(f"the worker failed while loading: {said[-1][:300]}")
    how = f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"
    return _not_loaded(f"the worker died ({how}) while loading")


def _not_loaded(what: str) -> EngineError:
    return EngineError(
        "TD5004",
        f"the engine cannot be loaded: {what}",
        fix=f"build it again with `tadiff-export`, or {OTHER_BACKEND}",
    )
