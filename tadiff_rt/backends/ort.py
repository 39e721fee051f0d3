"""ONNX Runtime on the CPU: no runtime was measured to be much faster in fp32 on this network."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from tadiff_rt.backends import no_memory_to_load
from tadiff_rt.backends.bucket import BucketBackend, Float32Array
from tadiff_rt.bundle import Bundle
from tadiff_rt.certificate import Precision
from tadiff_rt.errors import EngineError
from tadiff_rt.manifest import Artefact, contract
from tadiff_rt.onnx_scan import Value, require_contract, scan

PROVIDER = "CPUExecutionProvider"
BATCH = "batch"
"""Name of the dimension of rows in a graph for any number of them."""

_STATE = ort.capi.onnxruntime_pybind11_state
OUT_OF_MEMORY = (MemoryError, _STATE.Fail, _STATE.RuntimeException)
"""Fail comes from the arena, RuntimeException from std::bad_alloc."""

OUTPUTS = ["eps", "mask_logits"]


def precisions() -> tuple[Precision, ...]:
    """onnxruntime has no kernels of a CPU for fp16: it converts back and forth."""
    return ("fp32",)


def unavailable(name: str) -> str:
    """Why this backend cannot run here: it can, wherever onnxruntime is installed."""
    return ""


class OrtConditioner:
    """The conditioner of a bundle; in fp32 and on the CPU, whatever runs the denoiser."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.width = manifest.conditioning_width
        four, steps = Value("fp32", (1, 4)), Value("fp32", ("steps",))
        self._session = session(
            bundle,
            manifest.conditioner,
            inputs={"t": steps, "days": four, "treatments": four},
            outputs={"shifts": Value("fp32", ("steps", self.width))},
        )

    def condition(
        self, t: NDArray[np.float64], days: Sequence[float], treatments: Sequence[float]
    ) -> NDArray[np.float32]:
        """See `Backend.condition`."""
        feed = {
            "t": t.astype(np.float32),
            "days": np.array([days], dtype=np.float32),
            "treatments": np.array([treatments], dtype=np.float32),
        }
        shifts: NDArray[np.float32] = self._session.run(["shifts"], feed)[0]
        return shifts


def load_conditioner(bundle: Bundle) -> OrtConditioner:
    """The ONNX conditioner, which every backend has for arrays."""
    return OrtConditioner(bundle)


class OrtBackend(BucketBackend):
    """A bundle's ONNX artefacts as inference sessions with a fixed number of threads."""

    name = "onnxruntime"
    failures = OUT_OF_MEMORY

    def __init__(self, bundle: Bundle, artefact: Artefact, threads: int) -> None:
        runtime = f"onnxruntime {ort.__version__}, {PROVIDER}"
        super().__init__(bundle, artefact, threads, runtime, load_conditioner(bundle))

    def _load_denoiser(self, rows: int) -> Any:
        options = denoiser_options(self._threads)
        return denoiser_session(self._bundle, self.artefact, rows, options)

    def _call(self, denoiser: Any, feed: dict[str, Float32Array]) -> list[Float32Array]:
        outputs: list[Float32Array] = denoiser.run(OUTPUTS, feed)
        return outputs


def load(bundle: Bundle, artefact: Artefact, threads: int) -> OrtBackend:
    """A backend for `bundle` on `threads` CPU threads."""
    return OrtBackend(bundle, artefact, threads)


def session_options(threads: int) -> Any:
    """Options of a session with a fixed number of threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def denoiser_options(threads: int) -> Any:
    """Those of the denoiser on a CPU."""
    options = session_options(threads)
    # One block for all activations takes more memory and saves no time.
    options.enable_mem_pattern = False
    return options


def denoiser_session(
    bundle: Bundle,
    artefact: Artefact,
    rows: int,
    options: Any,
    providers: Sequence[str | tuple[str, Mapping[str, Any]]] = (PROVIDER,),
) -> Any:
    """The denoiser for buckets of exactly `rows` rows.

    A graph for any number of rows has that number fixed when it is loaded: onnxruntime then
    fuses as for a static graph, and the bits are the same in buckets of every size.
    """
    if artefact.dynamic_batch:
        options.add_free_dimension_override_by_name(BATCH, rows)
    inputs, outputs = denoiser_values(bundle, artefact, rows)
    return session(
        bundle, artefact, inputs=inputs, outputs=outputs, options=options, providers=providers
    )


def denoiser_values(
    bundle: Bundle, artefact: Artefact, rows: int
) -> tuple[dict[str, Value], dict[str, Value]]:
    """What the graph of a denoiser for `rows` rows takes and gives."""
    size, width = bundle.manifest.card.data.size, bundle.manifest.conditioning_width
    b: int | str = BATCH if artefact.dynamic_batch else rows
    inputs = {
        "sources": Value("fp32", (b, 9, size, size)),
        "x_t": Value("fp32", (b, 3, size, size)),
        "shifts": Value("fp32", (1, width)),
    }
    outputs = {
        "eps": Value("fp32", (b, 3, size, size)),
        "mask_logits": Value("fp32", (b, 4, size, size)),
    }
    return inputs, outputs


def session(
    bundle: Bundle,
    artefact: Artefact,
    *,
    inputs: Mapping[str, Value],
    outputs: Mapping[str, Value],
    options: Any = None,
    providers: Sequence[str | tuple[str, Mapping[str, Any]]] = (PROVIDER,),
) -> Any:
    """A session of a graph that was verified.

    Raises:
        EngineError, ModelFileError: see `verified`; or onnxruntime cannot load it (TD5013).
    """
    data = verified(bundle, artefact, inputs=inputs, outputs=outputs)
    names = [p if isinstance(p, str) else p[0] for p in providers]
    try:
        loaded = ort.InferenceSession(data, options or session_options(1), providers=[*providers])
    except Exception as e:  # onnxruntime's exceptions share no base class
        if "bad_alloc" in str(e):
            raise no_memory_to_load(artefact.file) from None
        raise EngineError(
            "TD5013",
            f"onnxruntime {ort.__version__} cannot load {artefact.file}: {str(e)[:300]}",
            where=str(bundle.path),
            fix="upgrade onnxruntime, or export the checkpoint again",
        ) from None
    # Where a provider cannot start, onnxruntime takes the next one and only logs it.
    if loaded.get_providers()[0] != names[0]:
        raise EngineError(
            "TD5008",
            f"onnxruntime runs {artefact.file} on {loaded.get_providers()[0]}, not on {names[0]}",
            fix="install the CUDA libraries that onnxruntime-gpu asks for, or --backend auto",
        )
    return loaded


def verified(
    bundle: Bundle,
    artefact: Artefact,
    *,
    inputs: Mapping[str, Value],
    outputs: Mapping[str, Value],
) -> bytes:
    """A graph that was hashed, scanned and found to keep the bundle's contract.

    Raises:
        EngineError: TD5001, the file is damaged.
        ModelFileError: TD41xx, the graph is hostile, foreign, or of another checkpoint.
    """
    data = bundle.read(artefact)
    manifest = bundle.manifest
    stated = contract(manifest.card, manifest.weights_sha256, artefact.role, artefact.precision)
    require_contract(
        scan(data, artefact.file),
        inputs=inputs,
        outputs=outputs,
        contract={f"tadiff.{key}": value for key, value in stated.items()},
        name=artefact.file,
    )
    return data
