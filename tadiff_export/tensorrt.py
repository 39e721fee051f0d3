"""ONNX -> an engine of TensorRT 10 or 11 or of TensorRT for RTX.

The three differ in what `APIS` says and in nothing else. Precision is what the ONNX graph states:
networks are strongly typed and TF32, which would round fp32 to ten bits, is off. Engines hold no
plugins, no host code and no second runtime, and run on the version that built them alone.

Proven with TensorRT for RTX 1.7, which builds without a GPU. The path of TensorRT was written from
its documentation and has been run against a stand-in only.
"""

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tadiff_export.build_thread import Progress, run_builder
from tadiff_export.layers import inspected_layers, is_plugin, layers_of, logged_layers
from tadiff_rt.atomic import atomic_file, output_error
from tadiff_rt.backends.trt import import_runtime, runtime_log
from tadiff_rt.engines import TITLES, Build, find_device, require_device, this_platform
from tadiff_rt.errors import EngineError, UsageError


@dataclass(frozen=True)
class Api:
    """What one runtime does otherwise than the other."""

    portable: bool
    """Builds without a GPU, for a list of compute capabilities; else for the GPU it runs on."""
    timing_cache: bool
    """Times candidates on the GPU and can keep the times; the other compiles on the GPU later."""
    inspector: bool
    """Built engines are opened and inspected; else the builder's own list is read from its log,
    because an engine cannot be opened without a GPU."""


APIS = {
    "tensorrt": Api(portable=False, timing_cache=True, inspector=True),
    "tensorrt-rtx": Api(portable=True, timing_cache=False, inspector=False),
}
RTX_COMPUTE_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Ampere, Ada and Blackwell: what TensorRT for RTX builds for unless told otherwise."""

_BUILDING = threading.Lock()
"""Builders of one process share a log, and concurrent ones have crashed (TensorRT 10.16)."""


@dataclass(frozen=True)
class BuiltEngine:
    """An engine and what is known of it."""

    data: bytes
    build: Build
    inspector: str
    """JSON: {"Layers": [...]}, with the field names of TensorRT's engine inspector."""
    warnings: tuple[str, ...]
    """What the builder warned of."""


def build_engine(
    onnx_bytes: bytes,
    *,
    runtime: str,
    buckets: tuple[int, ...],
    workspace_bytes: int,
    weights_sha256: str,
    compute_capabilities: tuple[str, ...] | None = None,
    timing_cache: Path | None = None,
    progress: Progress | None = None,
) -> BuiltEngine:
    """An engine with one optimisation profile a bucket, each for exactly that many rows.

    Args:
        onnx_bytes: a graph whose inputs have the number of rows, if any, as first dimension.
        runtime: "tensorrt" or "tensorrt-rtx".
        buckets: rows a call, increasing.
        workspace_bytes: scratch memory allowed to a layer.
        weights_sha256: of the checkpoint; goes into the record.
        compute_capabilities: GPUs to build for, such as "8.9"; TensorRT for RTX only.
        timing_cache: file that is read if it is there and of this version and GPU, and written
            anew; not used by TensorRT for RTX, which has none.
        progress: an exception that it raises cancels the build.

    Raises:
        UsageError: TD3059, the compute capabilities cannot be built for.
        EngineError: TD5008, the runtime or its GPU is missing; TD5009, a layer is a plugin;
            TD5020, the graph cannot be parsed; TD5021, the build fails.
        OutputError, ResourceError: the timing cache cannot be written.
    """
    trt, api = import_runtime(runtime), APIS[runtime]
    device = find_device() if api.portable else require_device(runtime)
    capabilities = _capabilities(runtime, compute_capabilities, device)
    with _BUILDING:
        log = runtime_log(trt)
        log.clear()
        builder = trt.Builder(log)
        network = builder.create_network(
            1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # implied since 11
        )
        parser = _parse(trt, network, onnx_bytes, log)  # kept: it owns the weights
        config = _configure(trt, builder, network, buckets, workspace_bytes)
        if api.portable:
            _target(trt, config, capabilities)
        if timing_cache and api.timing_cache:
            _load_timings(config, timing_cache)
        data = run_builder(trt, builder, network, config, progress, log)
        del parser
        if timing_cache and api.timing_cache:
            _save_timings(config, timing_cache)
        warnings = tuple(log.problems)
        if api.inspector:
            inspector = inspected_layers(trt, data, log)
        else:
            inspector = logged_layers(log.layers)
    layers = layers_of(inspector)
    if plugins := [layer["Name"] for layer in layers if is_plugin(layer)]:
        raise EngineError("TD5009", f"the engine has plugin layers: {', '.join(plugins)}")
    build = Build(
        runtime=runtime,
        version=trt.__version__,
        platform=this_platform(),
        compute_capabilities=capabilities,
        gpu=device.name if device else None,
        driver=device.driver if device else None,
        cuda=device.cuda if device else None,
        onnx_sha256=hashlib.sha256(onnx_bytes).hexdigest(),
        weights_sha256=weights_sha256,
        buckets=buckets,
        workspace_bytes=workspace_bytes,
        layers=len(layers),
    )
    return BuiltEngine(data, build, inspector, warnings)


def check_builder(runtime: str, compute_capabilities: tuple[str, ...] | None) -> None:
    """What can be known before a build: the runtime loads, its GPU is there, GPUs are known.

    Raises:
        UsageError, EngineError: as `build_engine`.
    """
    trt, portable = import_runtime(runtime), APIS[runtime].portable
    device = find_device() if portable else require_device(runtime)
    for capability in _capabilities(runtime, compute_capabilities, device):
        if portable:
            _member(trt, capability)


def _member(trt: Any, capability: str) -> Any:
    known = trt.ComputeCapability.__members__
    member = known.get("SM" + capability.replace(".", ""))
    if member is None:
        numbers = sorted(int(name[2:]) for name in known if name.startswith("SM"))
        raise UsageError(
            "TD3059",
            f"TensorRT for RTX does not build for compute capability {capability}; it does "
            f"for {', '.join(f'{n // 10}.{n % 10}' for n in numbers)}",
            fix="for other GPUs build with --target tensorrt, on the GPU itself",
        )
    return member


def _capabilities(runtime: str, asked: tuple[str, ...] | None, device: Any) -> tuple[str, ...]:
    if APIS[runtime].portable:
        return asked or RTX_COMPUTE_CAPABILITIES
    if asked:
        raise UsageError(
            "TD3059",
            f"{TITLES[runtime]} builds for the GPU that it runs on, not for {', '.join(asked)}",
            fix="build on each kind of GPU, or use --target tensorrt-rtx",
        )
    return (device.compute_capability,)


def _parse(trt: Any, network: Any, onnx_bytes: bytes, log: Any) -> Any:
    """Fills `network` from the graph; returns the parser, which owns the weights."""
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse(onnx_bytes)
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if not parsed or errors or not network.num_outputs:
        found = [
            f"{e.node_name() or 'the model'} ({e.node_operator()}): {e.desc()}" for e in errors
        ]
        raise EngineError(
            "TD5020",
            f"the ONNX graph cannot be used: {'; '.join(found)[:600] or 'it has no outputs'}",
            fix="this is a defect of the exporter, or an operator that this version lacks",
        )
    return parser


def _configure(
    trt: Any, builder: Any, network: Any, buckets: tuple[int, ...], workspace_bytes: int
) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    if not any(shape[0] == -1 for shape in shapes.values()):
        raise EngineError(
            "TD5020",
            f"the graph fixes the number of rows: its inputs are {shapes}",
            fix="export the graph for any number of rows",
        )
    for bucket in buckets:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            exact = tuple(bucket if n == -1 else n for n in shape)
            profile.set_shape(name, exact, exact, exact)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError("TD5021", f"the profile for {bucket} rows is refused: {shapes}")
    return config


def _target(trt: Any, config: Any, capabilities: tuple[str, ...]) -> None:
    config.num_compute_capabilities = len(capabilities)
    for i, capability in enumerate(capabilities):
        if not config.set_compute_capability(_member(trt, capability), i):
            what = f"TensorRT for RTX refuses compute capability {capability}"
            raise UsageError("TD3059", what, fix="give fewer or other GPUs")


def _load_timings(config: Any, path: Path) -> None:
    """Starts from the file, or from nothing where it is missing, damaged or of another GPU."""
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        stored = b""
    except OSError as e:
        raise output_error(e, path) from e
    digest, timings = stored[:32], stored[32:]
    if digest != hashlib.sha256(timings).digest():  # native code is handed whole files only
        timings = b""
    if not config.set_timing_cache(config.create_timing_cache(timings), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _save_timings(config: Any, path: Path) -> None:
    timings = bytes(config.get_timing_cache().serialize())
    with atomic_file(path) as file:
        file.write(hashlib.sha256(timings).digest() + timings)
