"""Makes the artefacts of one bundle and certifies each, in memory."""

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Literal

import numpy as np
import onnx
import torch

from tadiff_export.certify.artefact import certify_artefact
from tadiff_export.certify.exact import Count, NetworkBackend
from tadiff_export.certify.explain import explain
from tadiff_export.certify.reference import Reference, Settings
from tadiff_export.checkpoint import Loaded
from tadiff_export.draft import NOWHERE, Draft, digest
from tadiff_export.half_effects import simulate
from tadiff_export.half_graph import ATTEMPTS, more_in_fp32, probe_feeds, too_large
from tadiff_export.layers import unexpected_layers
from tadiff_export.norms import lower_group_norms
from tadiff_export.onnx import (
    QUERY_CHUNK,
    conditioner_to_onnx,
    denoiser_to_onnx,
    operators,
    stamp,
)
from tadiff_export.precision import islands, to_half
from tadiff_export.split import split
from tadiff_export.tensorrt import build_engine
from tadiff_export.torch_package import denoiser_to_program
from tadiff_export.wanted import ENGINE_BUCKETS, Wanted, default_batch
from tadiff_rt.backends import Backend, available_cores, open_backend, unavailable
from tadiff_rt.backends.ort import load_conditioner
from tadiff_rt.batches import Progress
from tadiff_rt.canary import canary_bytes, canary_inputs, require_canary
from tadiff_rt.certificate import Certificate, Precision
from tadiff_rt.errors import EngineError, NumericsError, ResourceError
from tadiff_rt.manifest import (
    FORMAT_VERSION,
    Artefact,
    Canary,
    Format,
    Manifest,
    Rejected,
    contract,
)
from tadiff_rt.onnx_scan import scan
from tadiff_rt.pt2_scan import scan_program

Stage = Callable[[str], AbstractContextManager[Progress]]
"""Announces a stage and gives the progress of it; see `console.progress_bar`."""

CANARY = "canary.bin"
CANARY_ALLOWED: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.2}
"""Of one evaluation on a machine that the exporter has not seen; see `certify.measure.BUDGETS`."""


@dataclass(frozen=True, eq=False)
class Graph:
    """An ONNX denoiser that passed."""

    model: onnx.ModelProto
    """With group norms, for builders of engines."""
    run: onnx.ModelProto
    """Without; see `norms.lower_group_norms`. This was certified."""
    certificate: Certificate


class Workshop:
    """One checkpoint and everything that is made of it.

    Args:
        stage: called at the beginning of each stage of the work.
        say: receives remarks, a line each.
    """

    def __init__(
        self,
        loaded: Loaded,
        wanted: Wanted,
        settings: Settings,
        stage: Stage,
        say: Callable[[str], None],
    ) -> None:
        self.loaded, self.wanted, self.settings = loaded, wanted, settings
        self.stage, self.say = stage, say
        self.net, self.card = loaded.net, loaded.card
        self.size = loaded.card.data.size
        self.rows = wanted.batch or default_batch(self.size)
        self.conditioner, self.denoiser = split(self.net)
        self._models: dict[int | None, onnx.ModelProto] = {}
        self._graphs: dict[tuple[Precision, int | None], Graph | Rejected] = {}
        self.draft = self._begun()

    def _begun(self) -> Draft:
        """A bundle of the conditioner and the canary, to which denoisers are added."""
        with self.stage("conditioner to ONNX"):
            model = conditioner_to_onnx(self.conditioner)
            data = self._stamped(model, "conditioner", "fp32")
        answer = self._canary()
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            created_by=versions(),
            source="; ".join([self.loaded.source, *self.loaded.notes]),
            card=self.card,
            network=self.loaded.config.model_dump(),
            conditioning_width=sum(self.denoiser.widths),
            weights_sha256=self.loaded.weights_sha256,
            artefacts=(
                Artefact(
                    file="conditioner.onnx",
                    role="conditioner",
                    operators=operators(model),
                    **digest(data),
                ),
            ),
            canary=Canary(file=CANARY, allowed=CANARY_ALLOWED, **digest(answer)),
        )
        return Draft(NOWHERE, manifest, "", {"conditioner.onnx": data, CANARY: answer})

    def _canary(self) -> bytes:
        codes = tuple(map(float, self.card.treatments.values()))
        inputs = canary_inputs(self.size, codes)
        exact = NetworkBackend(self.net, torch.float64, Count(None, 1))
        row = exact.condition(np.array([inputs.t]), inputs.days, inputs.treatments)
        return canary_bytes(*exact.denoise(inputs.sources, inputs.x, row))

    def _stamped(self, model: onnx.ModelProto, role: str, precision: Precision) -> bytes:
        stamp(model, contract(self.card, self.loaded.weights_sha256, role, precision))
        return bytes(model.SerializeToString(deterministic=True))

    def make(self) -> Draft:
        """All artefacts that were asked for; those that failed are in `manifest.rejected`.

        Raises:
            NumericsError: TD6010, the ONNX graph in fp32 does not compute the checkpoint: nothing
                made of it can.
            EngineError: an engine could not be built.
        """
        for target in self.wanted.targets:
            if target == "torch":
                self._add_program()
                continue
            # Engines fuse attention in one piece; a CPU is faster in pieces that fit its cache.
            chunk = QUERY_CHUNK if target == "onnx" else None
            for precision in self.wanted.precisions:
                self._add_graph(target, precision, self._graph(precision, chunk))
        return self.draft

    @cached_property
    def reference(self) -> Reference:
        """What the checkpoint computes in float64."""
        with self.stage("the checkpoint in float64") as progress:
            return Reference.build(self.net, self.card, self.settings, progress)

    def _model(self, chunk: int | None) -> onnx.ModelProto:
        if chunk not in self._models:
            with self.stage(f"denoiser to ONNX, {self.size} x {self.size}"):
                model = denoiser_to_onnx(self.denoiser, self.size, query_chunk=chunk)
            self._models[chunk] = model
        return self._models[chunk]

    def _graph(self, precision: Precision, chunk: int | None) -> Graph | Rejected:
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
        data = self._stamped(run, "denoiser", "fp32")
        backend = self._opened(self._onnx(run, data, "fp32"), data, "onnxruntime")
        certificate = self._certified(backend, "fp32", backend.description)
        if not certificate.passed:
            reason = self._explained(backend, run, None, certificate)
            raise NumericsError("TD6010", reason, fix="keep the checkpoint and report this")
        return Graph(model, run, certificate)

    def _half_graph(
        self, precision: Literal["fp16", "bf16"], chunk: int | None
    ) -> Graph | Rejected:
        """The graph in half precision, with as many islands of fp32 as it takes to pass."""
        exact = self._model(chunk)
        feeds = probe_feeds(self.reference, load_conditioner(self.draft).condition)
        truth = lower_group_norms(exact)
        names = {node.name for node in exact.graph.node}
        keep = too_large(truth, feeds) & names
        for _ in range(ATTEMPTS):
            model = to_half(exact, precision, keep)
            rounded = lower_group_norms(simulate(model))
            simulated = self._stamped(rounded, "denoiser", precision)
            artefact = self._onnx(model, simulated, precision)
            backend = self._opened(artefact, simulated, "onnxruntime")
            how = f"rounding of {precision} simulated, {backend.description}"
            kept = tuple(f"{len(names)} nodes: {why}" for why, names in islands(model).items())
            certificate = self._certified(backend, precision, how, kept)
            if certificate.passed:
                return Graph(model, lower_group_norms(model), certificate)
            self.say(f"{precision} did not pass: {certificate.worst:.2g} times what is allowed")
            more = more_in_fp32(keep, rounded, truth, feeds[0], precision) & names
            if more == keep:
                break
            keep = more
        reason = self._explained(backend, rounded, truth, certificate)
        return Rejected(format="onnx", precision=precision, code="TD6010", reason=reason)

    def _add_graph(self, target: Format, precision: Precision, graph: Graph | Rejected) -> None:
        if isinstance(graph, Rejected):
            self._reject(graph.model_copy(update={"format": target}))
        elif target == "onnx":
            data = self._stamped(graph.run, "denoiser", precision)
            artefact = self._onnx(graph.run, data, precision)
            self._check_written(artefact, data)
            certified = artefact.model_copy(update={"certificate": graph.certificate})
            self.draft = self.draft.having(certified, data)
        else:
            self._add_engine(target, precision, graph)

    def _check_written(self, artefact: Artefact, data: bytes) -> None:
        """A graph whose simulation was certified is the one that is written.

        Raises:
            NumericsError: TD6011, it is not.
        """
        if artefact.precision == "fp32":
            return  # certified itself
        scan(data, artefact.file)
        if artefact.precision == "fp16":  # onnxruntime has no CPU kernels for bf16
            draft = self.draft.having(artefact, data)
            require_canary(draft, artefact, self._opened(artefact, data, "onnxruntime"))

    def _add_engine(self, target: Format, precision: Precision, graph: Graph) -> None:
        title = f"{target} engine, {precision}"
        with self.stage(title) as progress:
            built = build_engine(
                self._stamped(graph.model, "denoiser", precision),
                runtime=target,
                buckets=self._buckets(),
                workspace_bytes=self.wanted.workspace_bytes,
                compute_capabilities=self.wanted.compute_capabilities or None,
                timing_cache=self.wanted.timing_cache,
                progress=lambda phase, step, of: progress(step, of),
                weights_sha256=self.loaded.weights_sha256,
            )
        artefact = Artefact(
            file=f"denoiser.{precision}.{target}.engine",
            role="denoiser",
            format=target,
            precision=precision,
            batch=built.build.buckets[-1],
            build=built.build,
            graph_certificate=graph.certificate,
            **digest(built.data),
        )
        for remark in (
            *built.warnings,
            *unexpected_layers(built.inspector, graph.model, len(built.build.buckets)),
        ):
            self.say(f"{title}: {remark}")
        layers = built.inspector.encode()
        self.draft = self.draft.attaching(f"{artefact.file}.layers.json", layers)
        why_not = unavailable(target)
        if why_not:
            self.say(f"{title}: built, not run here: {why_not}")
            self.draft = self.draft.having(artefact, built.data)
            return
        try:
            self._add_certified(artefact, built.data, target)
        except (EngineError, ResourceError) as e:  # built for another GPU, say
            self.say(f"{title}: built, cannot run here: {e.code}: {e.message}")
            self.draft = self.draft.having(artefact, built.data)

    def _buckets(self) -> tuple[int, ...]:
        """Rows a call that an engine is built for: up to those asked for."""
        most = self.wanted.batch or ENGINE_BUCKETS[-1]
        return tuple(sorted({*(b for b in ENGINE_BUCKETS if b <= most), most}))

    def _add_program(self) -> None:
        with self.stage("torch program"):
            data = denoiser_to_program(self.denoiser, self.size)
        artefact = Artefact(
            file="denoiser.fp32.pt2",
            role="denoiser",
            format="torch",
            batch=self.rows,
            dynamic_batch=True,
            operators=scan_program(data, "denoiser.fp32.pt2").operators,
            **digest(data),
        )
        self._add_certified(artefact, data, "torch")

    def _add_certified(self, artefact: Artefact, data: bytes, name: str) -> None:
        """Adds an artefact that runs here, if it passes."""
        backend = self._opened(artefact, data, name)
        certificate = self._certified(backend, artefact.precision, backend.description)
        if certificate.passed:
            certified = artefact.model_copy(update={"certificate": certificate})
            self.draft = self.draft.having(certified, data)
            return
        reason = self._explained(backend, None, None, certificate)
        kind = {"format": artefact.format, "precision": artefact.precision}
        self._reject(Rejected(code="TD6010", reason=reason, **kind))

    def _explained(
        self,
        backend: Backend,
        model: onnx.ModelProto | None,
        exact: onnx.ModelProto | None,
        certificate: Certificate,
    ) -> str:
        with self.stage("looking for the fault, which may take minutes"):
            return explain(self.net, self.card, backend, model, exact, certificate)

    def _reject(self, rejected: Rejected) -> None:
        self.say(f"{rejected.format} {rejected.precision} is not listed: {rejected.reason}")
        manifest = self.draft.manifest
        every = (*manifest.rejected, rejected)
        manifest = manifest.model_copy(update={"rejected": every})
        self.draft = Draft(self.draft.path, manifest, "", self.draft.files)

    def _onnx(self, model: onnx.ModelProto, data: bytes, precision: Precision) -> Artefact:
        return Artefact(
            file=f"denoiser.{precision}.onnx",
            role="denoiser",
            precision=precision,
            batch=self.rows,
            dynamic_batch=True,
            operators=operators(model),
            **digest(data),
        )

    def _opened(self, artefact: Artefact, data: bytes, name: str) -> Backend:
        """A backend of one artefact; not compared with the canary, the certificate says more."""
        draft = self.draft.having(artefact, data)
        return open_backend(name, artefact, draft, available_cores(), canary=False)

    def _certified(
        self,
        backend: Backend,
        precision: Precision,
        evaluated: str,
        kept_fp32: tuple[str, ...] = (),
    ) -> Certificate:
        reference = self.reference
        with self.stage(f"certificate of {backend.name} {precision}") as progress:
            return certify_artefact(
                self.net,
                self.card,
                backend,
                precision=precision,
                evaluated=evaluated,
                kept_fp32=kept_fp32,
                reference=reference,
                progress=progress,
            )


def versions() -> dict[str, str]:
    """What wrote a bundle, for the manifest."""
    packages = {name: version(name) for name in ("tadiff", "torch", "onnx", "onnxscript")}
    return {"python": platform.python_version(), **packages}
