"""Does an artefact compute its checkpoint? Every figure of its certificate."""

from tadiff_export.certify.ensemble import check_ensemble, floor, notes
from tadiff_export.certify.exact import Count
from tadiff_export.certify.measure import BUDGETS
from tadiff_export.certify.reference import DEFAULT, DESCRIPTION, Reference, Settings
from tadiff_export.certify.steps import check_probes, check_steps
from tadiff_rt.backends import Backend
from tadiff_rt.batches import Progress
from tadiff_rt.card import ModelCard
from tadiff_rt.certificate import Certificate, Precision
from tadiff_train.network import TaDiffNet


def certify_artefact(
    net: TaDiffNet,
    card: ModelCard,
    backend: Backend,
    *,
    precision: Precision,
    evaluated: str,
    kept_fp32: tuple[str, ...] = (),
    reference: Reference | None = None,
    progress: Progress | None = None,
    settings: Settings = DEFAULT,
) -> Certificate:
    """Compares a loaded artefact with the checkpoint in float64; never raises for a bad one.

    Args:
        net, card: the checkpoint.
        precision: whose budget the artefact has; see `measure.BUDGETS`.
        evaluated: how `backend` runs it, in words, for the record.
        kept_fp32: nodes of a half-precision artefact that compute in fp32, for the record.
        reference: of this very checkpoint, where several artefacts are compared; with it
            `settings` are its own.
        progress: called with evaluations of the artefact done and in total, before that with
            those of the reference where it is computed here.

    Raises:
        NumericsError: an output has another shape (TD6010).
        ResourceError: there is no memory for it.
    """
    if reference is None:
        reference = Reference.build(net, card, settings, progress)
    budget = BUDGETS[precision]
    rows = [len(point.x) for point in (*reference.probes, *reference.steps)]
    bucket = backend.batch
    along = len(reference.steps) * reference.settings.samples
    count = Count(progress, sum(-(-n // bucket) * bucket for n in rows) + along)
    return Certificate(
        reference=DESCRIPTION,
        evaluated=evaluated,
        precision=precision,
        outputs=check_probes(reference, backend, budget, count),
        steps=check_steps(reference, backend, budget, count),
        ensemble=check_ensemble(reference, backend, budget, count),
        floor=floor(reference),
        samples=reference.settings.samples,
        num_steps=len(reference.steps),
        probes=len(reference.probes),
        kept_fp32=kept_fp32,
        notes=notes(reference),
    )
