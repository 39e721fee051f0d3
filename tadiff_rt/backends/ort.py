"""ONNX Runtime on the CPU: the fastest CPU runtime measured for this network."""

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from tadiff_rt.bundle import Artefact, Bundle
from tadiff_rt.errors import EngineError, ResourceError

PROVIDER = "CPUExecutionProvider"


class OrtBackend:
    """A bundle's ONNX artefacts as inference sessions with a fixed number of threads."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, threads: int) -> None:
        manifest = bundle.manifest
        size, width = manifest.card.data.size, manifest.conditioning_width
        denoiser = manifest.artefact("denoiser")
        self.batch = denoiser.batch or 1
        self.description = f"onnxruntime {ort.__version__}, {PROVIDER}, {threads} threads"
        b = self.batch
        self._conditioner = _session(
            bundle,
            manifest.artefact("conditioner"),
            threads=1,
            inputs={"t": [None], "days": [1, 4], "treatments": [1, 4]},
            outputs={"shifts": [None, width]},
        )
        self._denoiser = _session(
            bundle,
            denoiser,
            threads=threads,
            inputs={
                "sources": [b, 9, size, size],
                "x_t": [b, 3, size, size],
                "shifts": [1, width],
            },
            outputs={"eps": [b, 3, size, size], "mask_logits": [b, 4, size, size]},
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
        shifts: NDArray[np.float32] = self._conditioner.run(["shifts"], feed)[0]
        return shifts

    def denoise(
        self, sources: NDArray[np.float32], x: NDArray[np.float32], shifts: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.denoise`."""
        feed = {"sources": sources, "x_t": x, "shifts": shifts}
        try:
            eps, logits = self._denoiser.run(["eps", "mask_logits"], feed)
        except (MemoryError, ort.capi.onnxruntime_pybind11_state.RuntimeException) as e:
            raise ResourceError(
                "TD7001",
                f"onnxruntime could not run a batch of {self.batch}: {str(e)[:200]}",
                fix="free memory, or export the checkpoint with a smaller --batch",
            ) from None
        return eps, logits


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
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
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
