"""Requests: days, treatments, source sessions, slices and counts, each against its definition."""

import numpy as np
import pytest

from tadiff_rt.card import ModelCard
from tadiff_rt.case import MODALITIES, Case, Session, Volume
from tadiff_rt.errors import TableError, TadiffError, UsageError
from tadiff_rt.request import (
    PredictRequest,
    Scenario,
    check_request,
    check_scenarios,
    parse_day,
    select_sources,
)
from tadiff_rt.sampling import parse_samples, parse_seed, parse_steps


def case_of(days, treatments=None, without_images=()):
    volume = Volume(np.zeros((2, 2, 2), np.float32), np.eye(4), "v", "0")
    sessions = [
        Session(
            f"s{i}",
            day,
            treatments[i] if treatments else "TMZ",
            {} if i in without_images else dict.fromkeys(MODALITIES, volume),
        )
        for i, day in enumerate(days)
    ]
    return Case("case", tuple(sessions))


def codes(call, *args, **kwargs):
    with pytest.raises(TadiffError) as caught:
        call(*args, **kwargs)
    return [error.code for error in caught.value.findings]


@pytest.mark.parametrize(
    ("text", "day"),
    [("510", 510), ("+90", 390), (510, 510), (" 510 ", 510), ("+0", 300), ("0", 0)],
)
def test_a_day_counts_from_the_first_session_or_with_plus_from_the_last(text, day):
    assert parse_day(text, last_day=300) == day


@pytest.mark.parametrize(
    "text",
    ["", "+", "-5", "1e3", "10.5", "1_000", "\uff15", "nan", "123456", "++5", "+ 5", "week 3"],
)
def test_a_malformed_day_is_refused(text):
    with pytest.raises(UsageError, match="whole number") as caught:
        parse_day(text, last_day=300)
    assert caught.value.code == "TD3011"


def test_a_date_is_refused_and_not_repeated():
    with pytest.raises(UsageError, match="dates are refused") as caught:
        parse_day("2021-03-04", last_day=300)
    assert "2021" not in str(caught.value)


@pytest.mark.parametrize(
    "day", [171, 170, 0, -1], ids=["last", "before-last", "first", "before-first"]
)
def test_the_target_day_must_be_after_the_last_session(day):
    """S15: the published script ignores the target, so any day passes there."""
    case = case_of([0, 84, 171])
    assert codes(check_request, Scenario(day, "TMZ"), case, max_day=1000) == ["TD3312"]


def test_the_day_after_the_last_session_is_accepted():
    assert check_request(Scenario(172, "TMZ"), case_of([0, 84, 171]), max_day=1000) == ()


def test_the_last_trained_day_is_accepted_and_the_next_refused():
    """S16."""
    case = case_of([0, 84, 171])
    assert check_request(Scenario(1000, "TMZ"), case, max_day=1000) == ()
    assert codes(check_request, Scenario(1001, "TMZ"), case, max_day=1000) == ["TD3313"]
    assert codes(check_request, Scenario(73_000, "TMZ"), case, max_day=1000) == ["TD3313"]


def test_source_days_outside_the_trained_range_are_refused_too():
    case = case_of([0, 900, 1100])
    request = Scenario(1200, "TMZ")
    assert codes(check_request, request, case, max_day=1000) == ["TD3313", "TD3313"]


def test_the_trained_horizon_is_accepted_and_one_day_more_refused():
    """Counted from the last session, however early that is."""
    case = case_of([0, 84, 171])
    limits = {"max_day": 1000, "max_horizon_days": 90}
    assert check_request(Scenario(261, "TMZ"), case, **limits) == ()
    with pytest.raises(TableError, match=r"day 262 is 91 days after .* horizon of 90 days") as e:
        check_request(Scenario(262, "TMZ"), case, **limits)
    assert [f.code for f in e.value.findings] == ["TD3313"]
    assert "--extrapolate" in e.value.fix


def test_a_horizon_beyond_training_is_noted_on_request():
    limits = {"max_day": 1000, "max_horizon_days": 90, "extrapolate": True}
    (note,) = check_request(Scenario(262, "TMZ"), case_of([0, 84, 171]), **limits)
    assert "91 days after the last session" in note


def test_extrapolation_on_request_is_noted_for_every_day():
    case = case_of([0, 900, 1100])
    notes = check_request(Scenario(1200, "TMZ"), case, max_day=1000, extrapolate=True)
    assert len(notes) == 2
    assert "target: day 1200 is beyond the trained range, 0 to 1000" in notes[0]
    assert "session s2: day 1100" in notes[1]


@pytest.mark.parametrize("treatment", ["7", "-1", "tmz", "", "TMZ "])
def test_an_unknown_treatment_is_refused(treatment):
    """S17."""
    case = case_of([0, 84, 171])
    with pytest.raises(TableError, match="known are CRT, TMZ, none") as caught:
        check_request(Scenario(200, treatment), case, max_day=1000)
    assert caught.value.code == "TD3314"


def test_treatments_the_network_was_not_trained_on_are_refused_for_target_and_sources():
    case = case_of([0, 84, 171], ["CRT", "none", "TMZ"])
    found = codes(
        check_request, Scenario(200, "none"), case, max_day=1000, treatments=("CRT", "TMZ")
    )
    assert found == ["TD3314", "TD3314"]


def test_treatments_and_days_of_sessions_that_are_not_used_do_not_matter():
    case = case_of([0, 84, 171, 250], ["none", "CRT", "TMZ", "TMZ"])
    request = Scenario(300, "TMZ")
    assert check_request(request, case, max_day=1000, treatments=("CRT", "TMZ")) == ()


def test_all_problems_of_a_request_are_reported_together():
    case = case_of([0, 84, 171])
    assert codes(check_request, Scenario(100, "tmz"), case, max_day=50) == [
        "TD3312",
        "TD3313",
        "TD3313",
        "TD3313",
        "TD3314",
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_sources_are_the_published_window(count):
    """S18, S19; definition: indices k-3, k-2, k-1 of target k, negatives clamped to 0."""
    k = count
    window = [max(0, i) for i in (k - 3, k - 2, k - 1)]
    case = case_of(range(0, 10 * count, 10))
    sources, note = select_sources(case)
    assert [case.sessions.index(s) for s in sources] == window
    names = ", ".join(f"s{i}" for i in window)
    if count < 3:
        assert note == f"the case has fewer than 3 sessions; the first is repeated: {names}"
    elif count == 3:
        assert note is None
    else:
        assert note == f"the last 3 of {count} sessions are used: {names}"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_sessions_are_refused_where_none_may_be_repeated(count):
    """S18."""
    assert codes(select_sources, case_of(range(count)), repeat_first=False) == ["TD3315"]


def test_three_sessions_need_no_repetition():
    sources, note = select_sources(case_of([0, 1, 2]), repeat_first=False)
    assert [s.day for s in sources] == [0, 1, 2]
    assert note is None


def test_a_source_that_was_read_without_images_is_refused():
    assert codes(select_sources, case_of(range(4), without_images=[1])) == ["TD3316"]
    assert select_sources(case_of(range(4), without_images=[0]))[0][0].name == "s1"


ASKED = {"days": ["+90"], "treatments": ["TMZ"]}


def test_a_request_as_typed_is_checked_alone():
    PredictRequest(**ASKED).check()
    PredictRequest(
        **ASKED | {"days": [99_999], "steps": 100_000, "slices": "999998:999999"}
    ).check()


MALFORMED = {
    "days": (["soon"], "TD3011"),
    "samples": (0, "TD3015"),
    "steps": ("100001", "TD3016"),
    "seed": (-1, "TD3017"),
    "grid": ("even", "TD3041"),
    "solver": ("euler", "TD3042"),
    "slices": ("5:5", "TD3018"),
    "treatments": (["tmz"], "TD3314"),
    "preset": ("quick", "TD3068"),
}


@pytest.mark.parametrize("field", MALFORMED)
def test_each_part_of_a_request_is_checked(field):
    value, code = MALFORMED[field]
    assert codes(PredictRequest(**ASKED | {field: value}).check) == [code]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"volume_ci": "10%"}, "TD3021"),
        ({"samples": "auto", "volume_ci": "0%"}, "TD3021"),
        ({"samples": "auto", "max_samples": 0}, "TD3015"),
        ({"coherence": 1.0}, "TD3048"),
        ({"samples": 1, "latin": True}, "TD3049"),
    ],
)
def test_parts_that_depend_on_each_other_are_checked(fields, code):
    assert codes(PredictRequest(**ASKED | fields).check) == [code]


def test_all_parts_of_a_request_are_checked_at_once():
    values = {field: value for field, (value, _) in MALFORMED.items()}
    found = codes(PredictRequest(**values).check)
    assert sorted(found) == sorted(code for _, code in MALFORMED.values())


SEVERAL = {"days": ["+90", "130", "+30"], "treatments": ["TMZ", "CRT", "none"]}


def test_scenarios_go_by_day_and_then_as_treatments_were_asked_for():
    scenarios = PredictRequest(**SEVERAL).scenarios(last_day=80)
    assert [(s.day, s.treatment) for s in scenarios] == [
        (day, treatment) for day in (110, 130, 170) for treatment in ("TMZ", "CRT", "none")
    ]
    assert scenarios[1].name == "day110-CRT"


@pytest.mark.parametrize(
    "fields",
    [
        {"days": ["+90", "+90"]},
        {"days": []},
        {"treatments": []},
        {"treatments": ["TMZ", "none", "TMZ"]},
    ],
)
def test_nothing_or_something_twice_is_refused(fields):
    assert codes(PredictRequest(**SEVERAL | fields).check) == ["TD3067"]


def test_two_ways_to_say_one_day_are_found_with_the_case():
    request = PredictRequest(**SEVERAL | {"days": ["+90", "170"]})
    request.check()
    assert codes(request.scenarios, 80) == ["TD3067"]


def test_every_problem_of_several_scenarios_is_said_once():
    card = ModelCard(
        name="n",
        trained_on="nothing",
        max_day=150,
        max_horizon_days=60,
        treatments={"CRT": 0, "TMZ": 1},
    )
    case = case_of([0, 40, 80], ["CRT", "CRT", "none"])
    scenarios = PredictRequest(**SEVERAL).scenarios(80)
    # Day 170 is beyond day 150 and, like no other, beyond the horizon; none was never trained.
    assert codes(check_scenarios, scenarios, case, card) == ["TD3314"] * 2 + ["TD3313"] * 2
    notes = check_scenarios(scenarios[:2], case_of([0, 40, 80]), card, extrapolate=True)
    assert notes == ()
    far = PredictRequest(days=["+65", "+90"], treatments=["TMZ", "CRT"]).scenarios(80)
    notes = check_scenarios(far, case_of([0, 40, 80]), card, extrapolate=True)
    assert len(notes) == 3
    assert len(set(notes)) == 3


COUNTS = [
    (parse_samples, "TD3015", 1, 10_000),
    (lambda value: parse_steps(value, 1000), "TD3016", 1, 1000),
    (parse_seed, "TD3017", 0, 2**64 - 1),
]


@pytest.mark.parametrize(
    ("parse", "code", "low", "high"), COUNTS, ids=["samples", "steps", "seed"]
)
def test_counts_are_whole_numbers_in_their_range(parse, code, low, high):
    """A02: the ends are accepted, as text or number; one further is refused with the range."""
    for value in (low, high):
        assert parse(value) == parse(str(value)) == value
    for value in (
        low - 1,
        high + 1,
        "nan",
        "",
        "1e9",
        "1.0",
        " 1",
        "1_0",
        "abc",
        "\uff11",
        "9" * 30,
    ):
        with pytest.raises(UsageError, match=f"from {low} to {high}") as caught:
            parse(value)
        assert caught.value.code == code
