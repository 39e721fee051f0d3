"""Session plans: the published rule, the intervals of SAILOR, and where a course begins."""

import numpy as np
import pytest

from tadiff_rt.case import TREATMENTS
from tadiff_train.phantom.plan import PLAN_PROBABILITIES, Plan, course_start, draw_plan


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    rng = np.random.default_rng(3)
    return [draw_plan(rng) for _ in range(1000)]


def test_every_plan_is_a_valid_table(plans: list[Plan]):
    for plan in plans:
        assert 4 <= len(plan.days) <= 12
        assert len(plan.treatments) == len(plan.days)
        assert plan.days[0] == 0
        assert min(np.diff(plan.days)) >= 7
        assert max(np.diff(plan.days)) <= 371
        assert set(plan.treatments) <= set(TREATMENTS)


def test_first_session_carries_the_treatment_about_to_start(plans: list[Plan]):
    assert all(plan.treatments[0] == plan.treatments[1] for plan in plans)


def test_sessions_one_to_four_carry_crt_as_published(plans: list[Plan]):
    published = [p for p in plans if p.kind == "CRT-TMZ"]
    assert published
    for plan in published:
        assert plan.treatments[:4] == ("CRT",) * 4
        assert set(plan.treatments[4:]) <= {"TMZ"}


def test_all_kinds_occur_and_mean_what_they_say(plans: list[Plan]):
    long = {p.kind: p for p in plans if len(p.days) >= 8}
    assert set(long) == set(PLAN_PROBABILITIES)
    for kind, plan in long.items():
        phases = [
            t for i, t in enumerate(plan.treatments) if t != plan.treatments[i - 1] or i == 0
        ]
        assert "-".join(phases).startswith(kind)


def test_intervals_have_the_medians_of_sailor(plans: list[Plan]):
    """First four 14 days, later 91, all about 70 (table of 27 patients)."""
    crt = [np.diff(p.days) for p in plans if p.kind.startswith("CRT")]
    assert np.median(np.concatenate([d[:4] for d in crt])) == pytest.approx(14, abs=1.5)
    assert np.median(np.concatenate([d[4:] for d in crt])) == pytest.approx(91, abs=4)
    assert np.median(np.concatenate([np.diff(p.days) for p in plans])) == pytest.approx(70, abs=15)


@pytest.mark.parametrize(
    ("session", "start"),
    [
        (1, 0),  # the interval before the second session
        (3, 0),  # still the same run
        (6, 200),  # a second course, after an interval without radiation
        (7, 200),  # it goes on
    ],
)
def test_a_course_starts_with_its_run_of_crt_intervals(session: int, start: int):
    days = (0, 14, 28, 42, 100, 200, 290, 380)
    treatments = ("CRT", "CRT", "CRT", "CRT", "TMZ", "none", "CRT", "CRT")
    assert course_start(days, treatments, session) == start
