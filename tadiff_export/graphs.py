"""The ONNX graphs of one denoiser, each certified before anything is made of it."""

from dataclasses import dataclass
from typing import Literal

import onnx

from tadiff_export.checkpoint import Loaded
from tadiff_export.draft import digest
from tadiff_export.half_effects import simulate
from tadiff_export.half_graph import ATTEMPTS, more_in_fp32, probe_feeds, too_large
from tadiff_export.judge import Judge
from tadiff_export.norms import lower_group_norms
from tadiff_export.onnx import denoiser_to_onnx, operators, stamp
from tadiff_export.precision import islands, to_half
from tadiff_export.split import Denoiser
from tadiff_rt.backends.ort import load_conditioner
from tadiff_rt.certificate import Certificate, Precision
from tadiff_rt.errors import NumericsError
from tadiff_rt.manifest import Artefact, Rejected, Role, contract


@dataclass(frozen=True, eq=False)
class Graph:
    """An ONNX denoiser that passed."""

    model: onnx.ModelProto
    """With group norms, for builders of engines."""
    run: onnx.ModelProto
    """Without; see `norms.lower_group_norms`. This was certified."""
    certificate: Certificate


class Graphs:
    """Graphs by precision and by queries a chunk of attention; each is made once.

    Args:
        rows: of a call, for which the graphs are listed.
    """

    def __init__(self, judge: Judge, denoiser: Denoiser, rows: int) -> None:
        self.judge, self.denoiser, self.rows = judge, denoiser, rows
        self.size = judge.card.data.size
        self._models: dict[int | None, onnx.ModelProto] = {}
        self._graphs: dict[tuple[Precision, int | None], Graph | Rejected] = {}

    def _model(self, chunk: int | None) -> onnx.ModelProto:
        if chunk not in self._models:
            with self.judge.stage(f"denoiser to ONNX, {self.size} x {self.size}"):
                model = denoiser_to_onnx(self.denoiser, self.size, query_chunk=chunk)
            self._models[chunk] = model
        return self._models[chunk]

    def get(self, precision: Precision, chunk: int | None) -> Graph | Rejected:
        """One graph.

        Raises:
            NumericsError: TD6010, that in fp32 does not compute the checkpoint: nothing made of
                it can.
        """
        key = precision, chunk
        if key not in self._graphs:
            half = precision != "fp32"
            self._graphs[key] = (
                self._half_graph(precision, chunk) if half else self._exact_graph(chunk)
            )
        return self._graphs[key]

    def _exact_graph(self, chunk: int | None) -> Graph:
        model = self._model(chunk)
        run = lower_group_norms(model)
        data = self.stamped(run, "fp32")
        backend = self.judge.opened(self.artefact(run, data, "fp32"), data, "onnxruntime")
        certificate = self.judge.certified(backend, "fp32", backend.description)
        if not certificate.passed:
            reason = self.judge.explained(backend, run, None, certificate)
            raise NumericsError("TD6010", reason, fix="keep the checkpoint and report this")
        return Graph(model, run, certificate)

    def _half_graph(
        self, precision: Literal["fp16", "bf16"], chunk: int | None
    ) -> Graph | Rejected:
        """The graph in half precision, with as many islands of fp32 as it takes to pass."""
        exact = self._model(chunk)
        feeds = probe_feeds(self.judge.reference, load_conditioner(self.judge.draft).condition)
        truth = lower_group_norms(exact)
        names = {node.name for node in exact.graph.node}
        keep = too_large(truth, feeds) & names
        for _ in range(ATTEMPTS):
            model = to_half(exact, precision, keep)
            rounded = lower_group_norms(simulate(model))
            simulated = self.stamped(rounded, precision)
            artefact = self.artefact(model, simulated, precision)
            backend = self.judge.opened(artefact, simulated, "onnxruntime")
            how = f"rounding of {precision} simulated, {backend.description}"
            kept = tuple(f"{len(names)} nodes: {why}" for why, names in islands(model).items())
            certificate = self.judge.certified(backend, precision, how, kept)
            if certificate.passed:
                return Graph(model, lower_group_norms(model), certificate)
            self.judge.say(
                f"{precision} did not pass: {certificate.worst:.2g} times what is allowed"
            )
            more = more_in_fp32(keep, rounded, truth, feeds[0], precision) & names
            if more == keep:
                break
            keep = more
        reason = self.judge.explained(backend, rounded, truth, certificate)
        return Rejected(format="onnx", precision=precision, code="TD6010", reason=reason)

    def stamped(self, model: onnx.ModelProto, precision: Precision) -> bytes:
        """A denoiser's file, which states what it belongs to."""
        return stamped(self.judge.loaded, model, "denoiser", precision)

    def artefact(self, model: onnx.ModelProto, data: bytes, precision: Precision) -> Artefact:
        """How a graph is listed."""
        return Artefact(
            file=f"denoiser.{precision}.onnx",
            role="denoiser",
            precision=precision,
            batch=self.rows,
            dynamic_batch=True,
            operators=operators(model),
            **digest(data),
        )


def stamped(loaded: Loaded, model: onnx.ModelProto, role: Role, precision: Precision) -> bytes:
    """A graph's file with the contract of its bundle in it."""
    stamp(model, contract(loaded.card, loaded.weights_sha256, role, precision))
    return bytes(model.SerializeToString(deterministic=True))
