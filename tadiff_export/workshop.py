"""Makes the artefacts of one bundle and certifies each, in memory."""

import platform
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch

from tadiff_export.certify.exact import Count, NetworkBackend
from tadiff_export.certify.reference import Settings
from tadiff_export.checkpoint import Loaded
from tadiff_export.draft import NOWHERE, Draft, digest
from tadiff_export.graphs import Graph, Graphs, stamped
from tadiff_export.judge import Judge, Stage
from tadiff_export.layers import unexpected_layers
from tadiff_export.onnx import QUERY_CHUNK, conditioner_to_onnx, operators
from tadiff_export.programs import add_conditioner_program, add_program
from tadiff_export.split import split
from tadiff_export.tensorrt import build_engine
from tadiff_export.wanted import ENGINE_BUCKETS, Wanted, default_batch
from tadiff_rt.backends import unavailable
from tadiff_rt.canary import canary_bytes, canary_inputs, require_canary
from tadiff_rt.certificate import Precision
from tadiff_rt.errors import EngineError, ResourceError
from tadiff_rt.manifest import FORMAT_VERSION, Artefact, Canary, Format, Manifest, Rejected
from tadiff_rt.onnx_scan import scan

CANARY = "canary.bin"
CANARY_ALLOWED: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.2}
"""Of one evaluation on a machine that the exporter has not seen; see `certify.measure.BUDGETS`."""


class Workshop:
    """One checkpoint and everything that is made of it.

    Args:
        stage, say: see `Judge`.
    """

    def __init__(
        self,
        loaded: Loaded,
        wanted: Wanted,
        settings: Settings,
        stage: Stage,
        say: Callable[[str], None],
    ) -> None:
        self.wanted = wanted
        self.rows = wanted.batch or default_batch(loaded.card.data.size)
        conditioner, denoiser = split(loaded.net)
        with stage("conditioner to ONNX"):
            model = conditioner_to_onnx(conditioner)
            data = stamped(loaded, model, "conditioner", "fp32")
        listed = Artefact(
            file="conditioner.onnx",
            role="conditioner",
            operators=operators(model),
            **digest(data),
        )
        answer = canary(loaded)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            created_by=versions(),
            source="; ".join([loaded.source, *loaded.notes]),
            card=loaded.card,
            network=loaded.config.model_dump(),
            conditioning_width=sum(denoiser.widths),
            weights_sha256=loaded.weights_sha256,
            artefacts=(listed,),
            canary=Canary(file=CANARY, allowed=CANARY_ALLOWED, **digest(answer)),
        )
        draft = Draft(NOWHERE, manifest, "", {listed.file: data, CANARY: answer})
        self.judge = Judge(loaded, settings, draft, stage, say)
        self.graphs = Graphs(self.judge, denoiser, self.rows)

    def make(self) -> Draft:
        """All artefacts that were asked for; those that failed are in `manifest.rejected`.

        Raises:
            NumericsError: TD6010, see `Graphs.get`.
            EngineError: an engine could not be built.
        """
        for target in self.wanted.targets:
            if target == "torch":
                add_conditioner_program(self.judge)
                for precision in self.wanted.precisions:
                    add_program(self.judge, precision, self.rows)
                continue
            # Engines fuse attention in one piece; a CPU is faster in pieces that fit its cache.
            chunk = QUERY_CHUNK if target == "onnx" else None
            for precision in self.wanted.precisions:
                self._add_graph(target, precision, self.graphs.get(precision, chunk))
        return self.judge.draft

    def _add_graph(self, target: Format, precision: Precision, graph: Graph | Rejected) -> None:
        if isinstance(graph, Rejected):
            self.judge.reject(graph.model_copy(update={"format": target}))
        elif target == "onnx":
            data = self.graphs.stamped(graph.run, precision)
            artefact = self.graphs.artefact(graph.run, data, precision)
            self._check_written(artefact, data)
            certified = artefact.model_copy(update={"certificate": graph.certificate})
            self.judge.draft = self.judge.draft.having(certified, data)
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
        # onnxruntime has no CPU kernels for bf16.
        runtime = "onnxruntime" if artefact.precision == "fp16" else "openvino"
        if not unavailable(runtime):
            draft = self.judge.draft.having(artefact, data)
            require_canary(draft, artefact, self.judge.opened(artefact, data, runtime))

    def _add_engine(self, target: Format, precision: Precision, graph: Graph) -> None:
        title = f"{target} engine, {precision}"
        with self.judge.stage(title) as progress:
            built = build_engine(
                self.graphs.stamped(graph.model, precision),
                runtime=target,
                buckets=self._buckets(),
                workspace_bytes=self.wanted.workspace_bytes,
                compute_capabilities=self.wanted.compute_capabilities or None,
                timing_cache=self.wanted.timing_cache,
                progress=lambda phase, step, of: progress(step, of),
                weights_sha256=self.judge.loaded.weights_sha256,
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
            self.judge.say(f"{title}: {remark}")
        layers = built.inspector.encode()
        self.judge.draft = self.judge.draft.attaching(f"{artefact.file}.layers.json", layers)
        why_not = unavailable(target)
        if why_not:
            self.judge.say(f"{title}: built, not run here: {why_not}")
            self.judge.draft = self.judge.draft.having(artefact, built.data)
            return
        try:
            self.judge.add_certified(artefact, built.data, target)
        except (EngineError, ResourceError) as e:  # built for another GPU, say
            self.judge.say(f"{title}: built, cannot run here: {e.code}: {e.message}")
            self.judge.draft = self.judge.draft.having(artefact, built.data)

    def _buckets(self) -> tuple[int, ...]:
        """Rows a call that an engine is built for: up to those asked for."""
        most = self.wanted.batch or ENGINE_BUCKETS[-1]
        return tuple(sorted({*(b for b in ENGINE_BUCKETS if b <= most), most}))


def canary(loaded: Loaded) -> bytes:
    """The checkpoint's answer to one fixed input; see `manifest.Canary`."""
    inputs = canary_inputs(
        loaded.card.data.size, tuple(map(float, loaded.card.treatments.values()))
    )
    exact = NetworkBackend(loaded.net, torch.float64, Count(None, 1))
    row = exact.condition(np.array([inputs.t]), inputs.days, inputs.treatments)
    return canary_bytes(*exact.denoise(inputs.sources, inputs.x, row))


def versions() -> dict[str, str]:
    """What wrote a bundle, for the manifest."""
    packages = {name: version(name) for name in ("tadiff", "torch", "onnx", "onnxscript")}
    return {"python": platform.python_version(), **packages}
