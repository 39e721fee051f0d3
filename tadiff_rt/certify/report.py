"""The certificate of a plan: what was measured, what is demanded, and the verdict."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tadiff_rt.certify import analytic
from tadiff_rt.certify.network import NetworkCertificate
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import SolverPlan

SPREAD_RATIO = (0.95, 1.08)
"""Of the samples over the true one. Below, an ensemble claims more than it knows."""

MODE_ERROR = 0.02
"""Of the weight of a mode, of which 10,000 chains resolve 0.0046."""

MASK_ERROR = 0.05
"""Of a probability."""

ORDERS = {
    "dpmpp_2m": 2,
    "dpmpp_1": 1,
    "dpmpp_2s": 2,
    "dpmpp_3m": 3,
    "dpmpp_3m_parity": 2,
    "unipc_2": 3,
    "unipc_3": 3,
    "ddim": 1,
    "sde_dpmpp_2m": 2,
    "ddpm": 1,
}
"""Order of convergence on grids even in log-SNR, of the stochastic methods that of the spread.
The corrector of UniPC-p raises its order to p + 1 (Zhao et al. 2023), start-up permitting."""

ROUNDING = 1e-9
"""Of float64 tables."""

NETWORK_SPREAD_RATIO = (0.9, 1.1)

UNPAIRED = 1.5
"""Times the distance of other noise is allowed to solvers that draw noise: theirs is other noise,
and two such distances differ by chance."""


@dataclass(frozen=True)
class Check:
    """One line of a certificate."""

    what: str
    value: float
    demanded: str
    passed: bool


@dataclass(frozen=True)
class Certificate:
    """Every check of one plan."""

    solver: str
    grid: str
    steps: int
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check did."""
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "solver": self.solver,
            "grid": self.grid,
            "steps": self.steps,
            "passed": self.passed,
            "checks": [vars(check) for check in self.checks],
            "notes": list(self.notes),
        }

    def as_text(self) -> str:
        """A table for people."""
        width = max(len(check.what) for check in self.checks)
        lines = [f"{self.solver}, {self.steps} steps, grid {self.grid}", ""]
        lines += [
            f"{'ok  ' if check.passed else 'FAIL'}  {check.what:{width}}  {check.value:8.4f}  "
            f"{check.demanded}"
            for check in self.checks
        ]
        lines += [f"note: {note}" for note in self.notes]
        verdict = "the plan passes" if self.passed else "the plan FAILS"
        return "\n".join([*lines, "", verdict])


def analytic_checks(
    plan: SolverPlan, schedule: NoiseSchedule, *, informed: bool
) -> tuple[Check, ...]:
    """Spread, bias, bimodality, mask and order of the very plan that would run."""
    checks = []
    for std in analytic.STANDARD_DEVIATIONS:
        run = analytic.gaussian_run(plan, std, informed=informed)
        spread = within(*SPREAD_RATIO)
        name = f"spread, Gaussian of std {std:g}: sampled / true"
        checks.append(checked(name, run.spread_ratio, spread))
        checks.append(checked(f"bias, Gaussian of std {std:g}", run.bias, at_most(0.005, "of 1")))
    weight = analytic.mode_weight(plan, informed=informed) - analytic.MODE_WEIGHTS[1]
    checks.append(checked("two modes: error of a weight", weight, at_most(MODE_ERROR)))
    error = analytic.mask_error(plan, schedule)
    checks.append(checked("mask: error of a probability", error, at_most(MASK_ERROR)))
    return (*checks, *plan_checks(plan, schedule))


def plan_checks(plan: SolverPlan, schedule: NoiseSchedule) -> tuple[Check, ...]:
    """Whether the table is one of this schedule; holds for distilled networks too."""
    level, row = analytic.level_error(plan, schedule), analytic.consistency_error(plan)
    return (
        checked("levels: error at the network's times", level, at_most(ROUNDING)),
        checked("rows: error for a known image", row, at_most(ROUNDING)),
    )


def order_check(schedule: NoiseSchedule, solver: str, grid: str) -> Check:
    """The order at which the solver converges on a grid of this schedule."""
    observed = analytic.observed_order(schedule, solver, grid)
    least = ORDERS[solver] - 0.2
    return Check("order of convergence", observed, f"at least {least:g}", observed >= least)


def network_checks(certificate: NetworkCertificate) -> tuple[Check, ...]:
    """Distance from the dense run, which must lie within that of other noise."""
    plan, floor = certificate.plan, certificate.floor
    times = 1.0 if certificate.paired else UNPAIRED
    source = "other noise" if certificate.paired else f"{UNPAIRED:g} x other noise"
    low, high = NETWORK_SPREAD_RATIO
    slack = 0.0 if certificate.paired else UNPAIRED * abs(floor.spread_ratio - 1)
    about = f"network, {certificate.samples} samples, {certificate.slices} slices: "
    return (
        checked(about + "mean image", plan.mean, at_most(times * floor.mean, source)),
        checked(about + "spread ratio", plan.spread_ratio, within(low - slack, high + slack)),
        checked(
            about + "probability", plan.probability, at_most(times * floor.probability, source)
        ),
        checked(about + "1 - Dice", 1 - plan.dice, at_most(times * (1 - floor.dice), source)),
        checked(
            about + "volume",
            plan.volume,
            at_most(max(times * floor.volume, 0.02), f"{source}, 0.02 at least"),
        ),
    )


Demand = tuple[str, Callable[[float], bool]]


def checked(what: str, value: float, demand: Demand) -> Check:
    """A line of a certificate."""
    text, accepts = demand
    return Check(what, value, text, accepts(value))


def within(low: float, high: float) -> Demand:
    """From `low` to `high`."""
    return f"{low:g} to {high:g}", lambda value: low <= value <= high


def at_most(limit: float, source: str = "") -> Demand:
    """In magnitude; `source` says where the limit is from."""
    text = f"at most {limit:.4g}" + (f" ({source})" if source else "")
    return text, lambda value: abs(value) <= limit
