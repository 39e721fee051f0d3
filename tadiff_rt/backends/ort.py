"""ONNX Runtime on the CPU: the fastest CPU runtime measured for this network."""

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from tadiff_rt.bundle import Artefact, Bundle
from tadiff_rt.errors import EngineError, ResourceError

PROVIDER = "CPUExecutionProvider"
BATCH = "batch"
"""Name of the dimension of rows in a graph for any number of them."""

_STATE = ort.capi.onnxruntime_pybind11_state
OUT_OF_MEMORY = (MemoryError, _STATE.Fail, _STATE.RuntimeException)
"""Fail comes from the arena, RuntimeException from std::bad_alloc."""


class OrtBackend:
    """A bundle's ONNX artefacts as inference sessions with a fixed number of threads."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, threads: int) -> None:
        manifest = bundle.manifest
        self._bundle = bundle
        self._threads = threads
        self._artefact = manifest.artefact("denoiser")
        self.batch = self._artefact.batch or 1
        self.runtime = f"onnxruntime {ort.__version__}, {PROVIDER}"
        self.description = f"{self.runtime}, {threads} threads"
        self._conditioner = _session(
            bundle,
            manifest.artefact("conditioner"),
            threads=1,
            inputs={"t": [None], "days": [1, 4], "treatments": [1, 4]},
            outputs={"shifts": [None, manifest.conditioning_width]},
        )
        self._denoiser = self._load_denoiser()

    def _load_denoiser(self) -> ort.InferenceSession:
        """The denoiser for buckets of exactly `self.batch` rows.

        A graph for any number of rows has that number fixed when it is loaded: onnxruntime then
        fuses as for a static graph, and the bits are the same in buckets of every size.
        """
        size, b = self._bundle.manifest.card.data.size, self.batch
        width = self._bundle.manifest.conditioning_width
        return _session(
            self._bundle,
            self._artefact,
            threads=self._threads,
            inputs={
                "sources": [b, 9, size, size],
                "x_t": [b, 3, size, size],
                "shifts": [1, width],
            },
            outputs={"eps": [b, 3, size, size], "mask_logits": [b, 4, size, size]},
            rows=b if self._artefact.dynamic_batch else None,
        )

    def halve(self) -> bool:
        """See `Backend.halve`."""
        if self.batch == 1 or not self._artefact.dynamic_batch:
            return False
        self.batch //= 2
        del self._denoiser  # before the next is loaded: memory is what there is none of
        self._denoiser = self._load_denoiser()
        return True

    def condition(
        self, t: NDArray[np.float64], days: Sequence[float], treatments: Sequence[float]
    ) -> NDArray[np.float32]:
        """See `Backend.condition`."""
        feed = {
            "t": t.astype(np.float32),
            "days": np.array([days], dtype=np.float32),
            "treatments": np.array([treatments], dtype=np.float32),
        }
        shifts: NDArray[np.float32] = self._conditioner.run(["shifts"], feed)[0]
        return shifts

    def denoise(
        self, sources: NDArray[np.float32], x: NDArray[np.float32], shifts: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.denoise`."""
        feed = {"sources": sources, "x_t": x, "shifts": shifts}
        try:
            eps, logits = self._denoiser.run(["eps", "mask_logits"], feed)
            return eps, logits
        except OUT_OF_MEMORY as e:
            what = f"onnxruntime could not run a batch of {self.batch}: {str(e)[:200]}"
        # Out here: an error with `e` behind it would keep the session, which `halve` must free.
        fix = "free memory, use fewer workers, or export with a smaller --batch"
        raise ResourceError("TD7001", what, fix=fix)


def load(bundle: Bundle, threads: int) -> OrtBackend:
    """A backend for `bundle` on `threads` CPU threads."""
    return OrtBackend(bundle, threads)


Shape = list[int | None]


def _session(
    bundle: Bundle,
    artefact: Artefact,
    *,
    threads: int,
    inputs: dict[str, Shape],
    outputs: dict[str, Shape],
    rows: int | None = None,
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if rows is not None:
        options.add_free_dimension_override_by_name(BATCH, rows)
    try:
        session = ort.InferenceSession(bundle.read(artefact), options, providers=[PROVIDER])
    except Exception as e:  # onnxruntime's exceptions share no base class
        if isinstance(e, EngineError):
            raise
        raise EngineError(
            "TD5013",
            f"onnxruntime {ort.__version__} cannot load {artefact.file}: {str(e)[:300]}",
            where=str(bundle.path),
            fix="upgrade onnxruntime, or export the checkpoint again",
        ) from None
    for kind, declared, got in (
        ("input", inputs, session.get_inputs()),
        ("output", outputs, session.get_outputs()),
    ):
        found = {v.name: [n if isinstance(n, int) else None for n in v.shape] for v in got}
        types = {v.type for v in got}
        if found != declared or types != {"tensor(float)"}:
            raise EngineError(
                "TD4108",
                f"the {kind}s of {artefact.file} are {found} of {sorted(types)}, "
                f"the manifest implies {declared} of float32",
                where=str(bundle.path),
                fix="export the checkpoint again",
            )
    return session
