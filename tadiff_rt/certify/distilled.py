"""What is demanded of a distilled network: that it repeats its teacher, in spread as in mean.

The analytic checks run a plan with exact denoisers, and the dense run of a certificate evaluates
the network at levels of all noise. A distilled network is neither a denoiser nor of use at other
levels than its own, so both would say nothing of it. Its measure is its teacher.
"""

from collections.abc import Mapping

from tadiff_rt.card import SamplerCard
from tadiff_rt.certify.report import (
    NETWORK_SPREAD_RATIO,
    Check,
    at_most,
    checked,
    plan_checks,
    within,
)
from tadiff_rt.errors import UsageError
from tadiff_rt.forecast import Forecaster
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import SolverPlan

CLOSER = ("image", "mean image", "spread", "probability")
"""Distances from the teacher in which a distilled network must come closer than the teacher's own
solver does in as many evaluations."""

RATIOS = ("spread ratio", "volume spread ratio")
"""Over the teacher's; below 1 an ensemble claims more than the teacher knows."""

UNTRAINED = "{}, teacher in as many evaluations"
"""The name of a distance that was measured without training."""

NOTE = (
    "order, spread on Gaussians and modes are not measured: they are of exact denoisers, which a "
    "distilled network is not; 'recorded' was measured by `tadiff-train distill`"
)


def recorded_checks(measured: Mapping[str, float]) -> tuple[Check, ...]:
    """The verdict on what `tadiff-train distill` measured; what it did not measure fails."""
    checks = []
    for name in (*CLOSER, *RATIOS):
        value, what = measured.get(name), f"recorded: {name}"
        limit = measured.get(UNTRAINED.format(name))
        if value is None or (name in CLOSER and limit is None):
            checks.append(Check(what, 0.0, "to have been measured", False))
        elif limit is not None and name in CLOSER:
            checks.append(checked(what, value, at_most(limit, "without training")))
        else:
            checks.append(checked(what, value, within(*NETWORK_SPREAD_RATIO)))
    return tuple(checks)


def distilled_checks(
    sampler: SamplerCard, plan: SolverPlan, schedule: NoiseSchedule
) -> tuple[Check, ...]:
    """The checks of a certificate that need no case."""
    return (*plan_checks(plan, schedule), *recorded_checks(sampler.measured))


def require_teacher(student: Forecaster, teacher: Forecaster) -> None:
    """UsageError TD3066 where one is not the teacher of the other."""
    sampler = student.bundle.manifest.card.sampler
    if sampler is None:
        what = "the bundle was not distilled, and has no teacher"
        raise UsageError("TD3066", what, where="--teacher", fix="leave out --teacher")
    found = teacher.bundle.manifest.weights_sha256
    if found != sampler.teacher_sha256:
        raise UsageError(
            "TD3066",
            f"the bundle was distilled from weights {sampler.teacher_sha256[:12]}, not from "
            f"{found[:12]}",
            where="--teacher",
            fix="give the bundle of its teacher",
        )
