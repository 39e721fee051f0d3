"""Errors of an artefact end to end: its ensemble against that of the reference, same noise."""

from tadiff_export.certify.exact import Count
from tadiff_export.certify.measure import STATISTICS_FLOOR, Budget
from tadiff_export.certify.reference import Reference, draw
from tadiff_rt.backends import Backend
from tadiff_rt.certificate import Figure
from tadiff_rt.certify.network import distance
from tadiff_rt.errors import NumericsError

NOT_FINITE = "TD6002"


def check_ensemble(
    reference: Reference, backend: Backend, budget: Budget, count: Count
) -> dict[str, Figure]:
    """Distances of the artefact's ensemble, with what is allowed; see `Certificate.ensemble`."""
    limits = _limits(reference, budget)
    before = count.done

    def progress(done: int, total: int) -> None:
        count.add(before + done - count.done)

    samples = reference.settings.samples
    try:
        mine = draw(backend, reference.sampling, reference.sources, samples, progress)
    except NumericsError as error:
        if error.code != NOT_FINITE:
            raise
        return {name: Figure(value=None, allowed=limit) for name, limit in limits.items()}
    found = distance(mine, reference.drawn)
    values = {
        "mean": found.mean,
        "spread": found.spread,
        "probability": found.probability,
        "dice": 1 - found.dice,
        "volume": found.volume,
    }
    return {name: Figure(value=values[name], allowed=limit) for name, limit in limits.items()}


def floor(reference: Reference) -> dict[str, float]:
    """The distances of another seed, of the figures that are defined."""
    other = reference.floor
    values = {
        "mean": other.mean,
        "spread": other.spread,
        "probability": other.probability,
        "dice": 1 - other.dice,
        "volume": other.volume,
    }
    return {name: values[name] for name in ("mean", "spread", "probability", *_masks(reference))}


def notes(reference: Reference) -> tuple[str, ...]:
    """Why figures of the tumour are missing."""
    probability = reference.drawn.probability
    tumour = int((probability > 0.5).sum())
    found = []
    if "dice" not in _masks(reference):
        what = "empty" if tumour == 0 else "the whole image"
        found.append(f"the reference's mask is {what}: Dice says nothing")
    if "volume" not in _masks(reference):
        found.append("no sample of the reference has tumour: its volume has no relative error")
    return tuple(found)


def _masks(reference: Reference) -> tuple[str, ...]:
    """Which figures of the tumour are defined."""
    mask = reference.drawn.probability > 0.5
    dice = mask.any() and not mask.all()
    return ("dice",) * bool(dice) + ("volume",) * bool(reference.drawn.voxels.any())


def _limits(reference: Reference, budget: Budget) -> dict[str, float]:
    other = floor(reference)
    limits = {
        name: budget.of_noise * other[name] + STATISTICS_FLOOR
        for name in ("mean", "spread", "probability")
    }
    tumour = int((reference.drawn.probability > 0.5).sum())
    if "dice" in other:
        # Without one of its n voxels a mask has 1 - 2 (n - 1) / (2 n - 1).
        limits["dice"] = max(budget.dice, 1.0 / (2 * tumour - 1))
    if "volume" in other:
        limits["volume"] = max(budget.volume, 1.0 / int(reference.drawn.voxels.sum()))
    return limits
