"""What every artefact goes through: it is opened, compared with the checkpoint and, if it
passes, added to the bundle.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property

import onnx

from tadiff_export.certify.artefact import certify_artefact
from tadiff_export.certify.explain import explain
from tadiff_export.certify.reference import Reference, Settings
from tadiff_export.checkpoint import Loaded
from tadiff_export.draft import Draft
from tadiff_rt.backends import Backend, available_cores, open_backend
from tadiff_rt.batches import Progress
from tadiff_rt.certificate import Certificate, Precision
from tadiff_rt.manifest import Artefact, Rejected

Stage = Callable[[str], AbstractContextManager[Progress]]
"""Announces a stage and gives the progress of it; see `console.progress_bar`."""


class Judge:
    """One checkpoint and the bundle that is made of it, so far.

    Args:
        draft: a bundle of the conditioner and the canary, to which denoisers are added.
        stage: called at the beginning of each stage of the work.
        say: receives remarks, a line each.
    """

    def __init__(
        self,
        loaded: Loaded,
        settings: Settings,
        draft: Draft,
        stage: Stage,
        say: Callable[[str], None],
    ) -> None:
        self.loaded, self.net, self.card = loaded, loaded.net, loaded.card
        self.settings = settings
        self.draft, self.stage, self.say = draft, stage, say

    @cached_property
    def reference(self) -> Reference:
        """What the checkpoint computes in float64."""
        with self.stage("the checkpoint in float64") as progress:
            return Reference.build(self.net, self.card, self.settings, progress)

    def opened(self, artefact: Artefact, data: bytes, name: str) -> Backend:
        """A backend of one artefact; not compared with the canary, the certificate says more."""
        draft = self.draft.having(artefact, data)
        return open_backend(name, artefact, draft, available_cores(), canary=False)

    def certified(
        self,
        backend: Backend,
        precision: Precision,
        evaluated: str,
        kept_fp32: tuple[str, ...] = (),
    ) -> Certificate:
        """How far a backend is from the checkpoint.

        Args:
            evaluated: what was run, in words.
            kept_fp32: of a half-precision artefact, what computes in fp32.
        """
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

    def add_certified(self, artefact: Artefact, data: bytes, name: str) -> None:
        """Adds an artefact that runs here, if it passes."""
        backend = self.opened(artefact, data, name)
        certificate = self.certified(backend, artefact.precision, backend.description)
        self.add_judged(artefact, data, backend, certificate)

    def add_judged(
        self, artefact: Artefact, data: bytes, backend: Backend, certificate: Certificate
    ) -> None:
        """Adds an artefact that passed; rejects one that did not, with the reason."""
        if certificate.passed:
            certified = artefact.model_copy(update={"certificate": certificate})
            self.draft = self.draft.having(certified, data)
            return
        reason = self.explained(backend, None, None, certificate)
        kind = {"format": artefact.format, "precision": artefact.precision}
        self.reject(Rejected(code="TD6010", reason=reason, **kind))

    def explained(
        self,
        backend: Backend,
        model: onnx.ModelProto | None,
        exact: onnx.ModelProto | None,
        certificate: Certificate,
    ) -> str:
        """Where and why a backend differs from the checkpoint, in a paragraph."""
        with self.stage("looking for the fault, which may take minutes"):
            return explain(self.net, self.card, backend, model, exact, certificate)

    def reject(self, rejected: Rejected) -> None:
        """Lists what was asked for and is not in the bundle."""
        self.say(f"{rejected.format} {rejected.precision} is not listed: {rejected.reason}")
        manifest = self.draft.manifest
        every = (*manifest.rejected, rejected)
        manifest = manifest.model_copy(update={"rejected": every})
        self.draft = Draft(self.draft.path, manifest, "", self.draft.files)
