"""When a simulated patient is scanned and what is given in between."""

from dataclasses import dataclass

import numpy as np

MIN_SESSIONS = 4
MAX_SESSIONS = 12
MIN_INTERVAL_DAYS = 7
MAX_INTERVAL_DAYS = 371
EARLY_INTERVALS = 4
"""Intervals after the start of chemoradiation that are short, as in SAILOR."""
CRT_SESSIONS = 4
"""Sessions 1 to 4 carry CRT, as in the published preparation of SAILOR."""

PLAN_PROBABILITIES = {
    "CRT-TMZ": 0.48,
    "CRT-TMZ-none": 0.16,
    "CRT-none": 0.12,
    "CRT-TMZ-CRT": 0.08,
    "TMZ": 0.08,
    "none": 0.08,
}
"""Treatment phases in order. The last CRT of CRT-TMZ-CRT is a second course at recurrence."""

SESSION_WEIGHTS = (1, 1, 2, 3, 4, 5, 5, 4, 4)
"""Relative frequency of 4, 5, ... 12 planned sessions."""


@dataclass(frozen=True)
class Plan:
    """Sessions in order of day, the first on day 0."""

    kind: str
    """A key of PLAN_PROBABILITIES."""
    days: tuple[int, ...]
    treatments: tuple[str, ...]
    """Of each session: the one given in the interval that ends at it; of the first session, the
    one about to start."""

    def course_start(self, session: int) -> int:
        """Day on which the radiation course of the interval ending at `session` began.

        A course starts with each run of consecutive CRT intervals.
        """
        return course_start(self.days, self.treatments, session)


def course_start(days: tuple[int, ...], treatments: tuple[str, ...], session: int) -> int:
    """First day of the run of consecutive CRT intervals that the one ending at `session` joins."""
    first = session
    while first > 1 and treatments[first - 1] == "CRT":
        first -= 1
    return days[first - 1]


def _interval(rng: np.random.Generator, early: bool) -> int:
    """Days to the next session: medians 14 (early) and 91, tails as in SAILOR's table."""
    kind = rng.random()
    if early:
        days = rng.normal(14, 2) if kind < 0.8 else 35 * np.exp(0.4 * rng.standard_normal())
    elif kind < 0.55:
        days = rng.normal(91, 6)
    elif kind < 0.95:
        days = 84 * np.exp(0.35 * rng.standard_normal())
    else:
        days = rng.uniform(150, MAX_INTERVAL_DAYS)
    return int(np.clip(round(days), MIN_INTERVAL_DAYS, MAX_INTERVAL_DAYS))


def _treatments(kind: str, num_sessions: int, rng: np.random.Generator) -> tuple[str, ...]:
    """The treatment of every session of a plan; phases after the first change at random."""
    phases = kind.split("-")
    if len(phases) == 1:
        return (phases[0],) * num_sessions
    late = num_sessions - CRT_SESSIONS
    first, second, third = (*phases, phases[-1])[:3]
    switch = int(rng.integers(1, late)) if len(phases) == 3 and late > 1 else late
    tail = [second] * switch + [third] * (late - switch)
    if kind == "CRT-TMZ-CRT" and switch < late:
        # One interval holds the second course; what follows it is TMZ again.
        tail[switch + 1 :] = ["TMZ"] * (late - switch - 1)
    return (first,) * CRT_SESSIONS + tuple(tail)


def draw_plan(rng: np.random.Generator) -> Plan:
    """A random plan of 4 to 12 sessions."""
    kinds = list(PLAN_PROBABILITIES)
    kind = kinds[rng.choice(len(kinds), p=list(PLAN_PROBABILITIES.values()))]
    weights = np.array(SESSION_WEIGHTS) / sum(SESSION_WEIGHTS)
    num_sessions = MIN_SESSIONS + int(rng.choice(len(weights), p=weights))
    days = [0]
    for i in range(num_sessions - 1):
        early = kind.startswith("CRT") and i < EARLY_INTERVALS
        days.append(days[-1] + _interval(rng, early))
    return Plan(kind, tuple(days), _treatments(kind, num_sessions, rng))
