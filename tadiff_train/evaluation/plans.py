"""Whether forecasts under several treatments are in the order of the truth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from tadiff_train.evaluation.results import MIN_PLAN_DIFFERENCE_ML, PatientResult, Plan

LESS, MORE = "TMZ", "none"
"""Temozolomide should leave less tumour than no treatment."""

RULE = ("CRT", "TMZ", "none")
"""From the least tumour to the most, of whoever: what a forecast of the order has to beat."""


@dataclass(frozen=True)
class Share:
    """So many of so many independent cases."""

    count: int
    of: int
    share: float | None
    """None of none."""
    low: float | None
    """95 % interval: Wilson 1927."""
    high: float | None


def share(count: int, of: int) -> Share:
    """A share with its interval, which unlike the normal one is right for shares near 0 and 1."""
    if of == 0:
        return Share(0, 0, None, None, None)
    interval = binomtest(count, of).proportion_ci(method="wilson")
    return Share(count, of, count / of, float(interval.low), float(interval.high))


def volume_of(plan: Plan, method: str) -> float | None:
    """Of "model" or "growth", or of "rule" a place; None where the method says nothing."""
    if method == "rule":
        return float(RULE.index(plan.treatment))
    return plan.model_ml if method == "model" else plan.growth_ml


def treated_is_less(results: Sequence[PatientResult], method: str) -> Share:
    """In how many patients a method leaves less tumour under LESS than under MORE.

    Of those for whom the truth does, by at least MIN_PLAN_DIFFERENCE_ML, and the method says
    something. One pair a patient, so that cases are independent. Equal volumes do not hold.
    """
    held = []
    for result in results:
        plans = {plan.treatment: plan for plan in result.plans}
        if LESS not in plans or MORE not in plans:
            continue
        less, more = plans[LESS], plans[MORE]
        if more.true_ml - less.true_ml < MIN_PLAN_DIFFERENCE_ML:
            continue
        a, b = volume_of(less, method), volume_of(more, method)
        if a is not None and b is not None:
            held.append(a < b)
    return share(sum(held), len(held))


def order_found(result: PatientResult, method: str) -> list[bool]:
    """For each other plan of a patient, whether it is on the right side of the one given.

    Plans whose true volumes are closer than MIN_PLAN_DIFFERENCE_ML are left out, and those of
    which the method says nothing.
    """
    return [
        (predicted - reference) * (plan.true_ml - given.true_ml) > 0
        for given, plan in _pairs(result)
        if abs(plan.true_ml - given.true_ml) >= MIN_PLAN_DIFFERENCE_ML
        and (predicted := volume_of(plan, method)) is not None
        and (reference := volume_of(given, method)) is not None
    ]


def _pairs(result: PatientResult) -> Iterator[tuple[Plan, Plan]]:
    for plan in result.plans[1:]:
        yield result.plans[0], plan
