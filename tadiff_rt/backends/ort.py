"""ONNX Runtime on the CPU: no runtime was measured to be much faster in fp32 on this network."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from tadiff_rt.backends import no_memory, no_memory_to_load
from tadiff_rt.bundle import Bundle
from tadiff_rt.certificate import Precision
from tadiff_rt.errors import EngineError
from tadiff_rt.manifest import Artefact, contract
from tadiff_rt.onnx_scan import Value, require_contract, scan

if TYPE_CHECKING:
    from tadiff_rt.device.denoiser import DeviceDenoiser

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


class Last:
    """The session for the last batch of a forecast, which has fewer rows than the bucket.

    Made when it is first needed: most of its time is what padding would cost in one evaluation.
    One is kept, because each holds memory of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows, self._session = 0, None

    def session(self, rows: int, load: Callable[[int], Any]) -> Any:
        """That for exactly `rows` rows."""
        with self._lock:
            if self._rows != rows:
                self._rows, self._session = 0, None  # before the next takes memory
                self._session = load(rows)
                self._rows = rows
            return self._session


def load_conditioner(bundle: Bundle) -> OrtConditioner:
    """The ONNX conditioner, which every backend has for arrays."""
    return OrtConditioner(bundle)


class OrtBackend:
    """A bundle's ONNX artefacts as inference sessions with a fixed number of threads."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, artefact: Artefact, threads: int) -> None:
        self._bundle = bundle
        self.artefact = artefact
        self._threads = threads
        self.batch = artefact.batch or 1
        self.partial = artefact.dynamic_batch
        self.runtime = f"onnxruntime {ort.__version__}, {PROVIDER}"
        if artefact.precision != "fp32":
            self.runtime += f", {artefact.precision}"
        self.description = f"{self.runtime}, {threads} threads"
        self._conditioner = load_conditioner(bundle)
        self._denoiser = self._load_denoiser(self.batch)
        self._last = Last()

    def _load_denoiser(self, rows: int) -> Any:
        options = denoiser_options(self._threads)
        return denoiser_session(self._bundle, self.artefact, rows, options)

    def halve(self) -> bool:
        """See `Backend.halve`."""
        if self.batch == 1 or not self.artefact.dynamic_batch:
            return False
        self.batch //= 2
        del self._denoiser  # before the next is loaded: memory is what there is none of
        self._last = Last()
        self._denoiser = self._load_denoiser(self.batch)
        return True

    def condition(
        self, t: NDArray[np.float64], days: Sequence[float], treatments: Sequence[float]
    ) -> NDArray[np.float32]:
        """See `Backend.condition`."""
        return self._conditioner.condition(t, days, treatments)

    def denoise(
        self, sources: NDArray[np.float32], x: NDArray[np.float32], shifts: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.denoise`."""
        try:
            eps, logits = self._run({"sources": sources, "x_t": x, "shifts": shifts})
            return eps, logits
        except OUT_OF_MEMORY as e:
            error = no_memory("onnxruntime", self.batch, e)
        # Out here: an error with `e` behind it would keep the session, which `halve` must free.
        raise error

    def on_device(self) -> "DeviceDenoiser | None":
        """See `Backend.on_device`."""
        return None

    def _run(self, feed: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        rows = len(feed["x_t"])
        if rows < self.batch:
            denoiser = self._last.session(rows, self._load_denoiser)
        else:
            denoiser = self._denoiser
        outputs: list[NDArray[np.float32]] = denoiser.run(OUTPUTS, feed)
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
    size, width = bundle.manifest.card.data.size, bundle.manifest.conditioning_width
    b: int | str = BATCH if artefact.dynamic_batch else rows
    if artefact.dynamic_batch:
        options.add_free_dimension_override_by_name(BATCH, rows)
    return session(
        bundle,
        artefact,
        inputs={
            "sources": Value("fp32", (b, 9, size, size)),
            "x_t": Value("fp32", (b, 3, size, size)),
            "shifts": Value("fp32", (1, width)),
        },
        outputs={
            "eps": Value("fp32", (b, 3, size, size)),
            "mask_logits": Value("fp32", (b, 4, size, size)),
        },
        options=options,
        providers=providers,
    )


def session(
    bundle: Bundle,
    artefact: Artefact,
    *,
    inputs: Mapping[str, Value],
    outputs: Mapping[str, Value],
    options: Any = None,
    providers: Sequence[str | tuple[str, Mapping[str, Any]]] = (PROVIDER,),
) -> Any:
    """A session of a graph that was hashed, scanned and found to keep the bundle's contract.

    Raises:
        EngineError: the file is damaged (TD5001), or onnxruntime cannot load it (TD5013).
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
