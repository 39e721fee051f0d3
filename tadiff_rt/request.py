"""What is asked of a forecast: the target day and treatment, the source sessions, the slices.

Everything is checked against the case and the trained range before a network is touched.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

from tadiff_rt.card import ModelCard
from tadiff_rt.case import MODALITIES, TREATMENTS, Case, Session
from tadiff_rt.errors import TableError, TadiffError, UsageError, raise_findings
from tadiff_rt.readers.tables import check_treatment, date_like, quoted
from tadiff_rt.sampling import SamplingRequest, findings_of
from tadiff_rt.slices import parse_slices

NUM_SOURCES = 3
"""Sessions the network is conditioned on."""

_DAY = re.compile(r"(\+?)([0-9]{1,5})", re.ASCII)


@dataclass(frozen=True, order=True)
class Scenario:
    """A session to forecast: a day and the treatment until then."""

    day: int
    """Days since the first session."""
    treatment: str
    """A key of TREATMENTS: the one given between the last session and the target day."""

    @property
    def name(self) -> str:
        """For folders and tables, e.g. "day510-TMZ"."""
        return f"day{self.day}-{self.treatment}"


class Options(TypedDict, total=False):
    """Fields of `PredictRequest` beside days and treatments, by their name."""

    preset: str
    samples: int | str
    volume_ci: float | str | None
    max_samples: int | str
    steps: int | str
    seed: int | str
    solver: str
    grid: str
    round_times: bool
    coherence: float
    latin: bool
    slices: str
    extrapolate: bool
    resample: bool


@dataclass(frozen=True, kw_only=True)
class PredictRequest(SamplingRequest):
    """A request as it is typed, before a case or a network is known; see `Forecaster.compare`."""

    days: Sequence[int | str]
    """Each since the first session, or "+90": since the last."""
    treatments: Sequence[str]
    """Each given from the last session until the day; keys of TREATMENTS."""
    slices: str = "brain"
    """"brain", "tumour" (needs masks), "all", "k", "a:b" or a list of such, in the canonical grid
    from superior to inferior."""
    extrapolate: bool = False
    """Days and horizons beyond training are noted instead of refused."""
    resample: bool = False
    """Images of another spacing or extent are brought onto the network's grid, and results back;
    see `preprocess.prepare`."""

    def check(self) -> None:
        """What can be said of the request alone.

        Raises:
            UsageError, TableError: carrying every problem: TD3011 a day, TD3018 slices, TD3067
                nothing or something twice, TD3314 a treatment, and those of
                `SamplingRequest.findings`.
        """
        days = [str(day).strip(" ") for day in self.days]
        unknown = [check_treatment(treatment, "--treatment") for treatment in self.treatments]
        findings = [
            *(error for day in self.days for error in findings_of(partial(parse_day, day, 0))),
            *findings_of(lambda: _check_distinct("--day", days)),
            *self.findings(),
            *findings_of(lambda: parse_slices(self.slices)),
            *findings_of(lambda: _check_distinct("--treatment", self.treatments)),
            *(error for error in unknown if error),
        ]
        raise_findings(findings)

    def scenarios(self, last_day: int) -> tuple[Scenario, ...]:
        """Every day with every treatment: by day, then treatments in the order asked for.

        Args:
            last_day: of the last session.

        Raises:
            UsageError: TD3067, two days are the same.
        """
        days = [parse_day(day, last_day) for day in self.days]
        _check_distinct("--day", [str(day) for day in days])
        return tuple(Scenario(day, name) for day in sorted(days) for name in self.treatments)


def _check_distinct(option: str, values: Sequence[str]) -> None:
    if not values:
        raise UsageError("TD3067", f"{option} needs a value", where=option)
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        what = f"{option} is {quoted(twice[0])} twice"
        raise UsageError("TD3067", what, where=option, fix="name each once")


def parse_day(text: str | int, last_day: int) -> int:
    """The target day that "510" (since the first session) or "+90" (since the last) means.

    Raises:
        UsageError: TD3011, the text is neither.
    """
    match = _DAY.fullmatch(str(text).strip(" "))
    if match:
        return int(match[2]) + (last_day if match[1] else 0)
    if date_like(str(text)):
        # The date itself stays out of the message: it may identify the patient.
        what = "the day is a date; dates are refused because they can identify a patient"
    else:
        what = f"the day {quoted(str(text))} is not a whole number of 1 to 5 digits 0-9"
    fix = "give days since the first session (510) or since the last one (+90)"
    raise UsageError("TD3011", what, where="--day", fix=fix)


def check_scenarios(
    scenarios: Sequence[Scenario], case: Case, card: ModelCard, *, extrapolate: bool = False
) -> tuple[str, ...]:
    """`check_request` for each scenario of a network: every note, and every problem, once.

    Raises:
        TableError: see `check_request`.
    """
    notes: list[str] = []
    findings: dict[tuple[str, str, str], TadiffError] = {}
    for scenario in scenarios:
        try:
            notes += check_request(
                scenario,
                case,
                max_day=card.max_day,
                max_horizon_days=card.max_horizon_days,
                treatments=card.treatments,
                extrapolate=extrapolate,
            )
        except TadiffError as error:
            for finding in error.findings:
                findings.setdefault((finding.code, finding.message, finding.where), finding)
    raise_findings(list(findings.values()))
    return tuple(dict.fromkeys(notes))


def check_request(
    request: Scenario,
    case: Case,
    *,
    max_day: int,
    max_horizon_days: int | None = None,
    treatments: Collection[str] = tuple(TREATMENTS),
    extrapolate: bool = False,
) -> tuple[str, ...]:
    """Whether `case` and a network of so wide a training can answer `request`.

    Args:
        request: target day and treatment.
        case: the sessions known.
        max_day: latest day of a session in training, of sources and target alike.
        max_horizon_days: longest time from the last session to the target in training; None for
            no limit.
        treatments: names the network was trained on.
        extrapolate: what lies beyond the trained range is noted instead of refused.

    Returns:
        A note for each relaxation that was used.

    Raises:
        TableError: carrying every problem: TD3312 the target day is not after the last session,
            TD3313 a day or the horizon is outside the trained range, TD3314 a treatment is
            unknown.
    """
    findings: list[TadiffError] = []
    notes: list[str] = []
    sources, _ = select_sources(case)
    if request.day <= sources[-1].day:
        what = f"target day {request.day} is not after the last session, on day {sources[-1].day}"
        fix = "ask for a later day, e.g. --day +90, or leave the later sessions out of the table"
        findings.append(TableError("TD3312", what, where="--day", fix=fix))
    for what in _beyond_training(request, sources, max_day, max_horizon_days):
        if extrapolate:
            notes.append(f"{what}; extrapolated on request")
        else:
            fix = "ask for an earlier day, or pass --extrapolate"
            findings.append(TableError("TD3313", what, where="--day", fix=fix))
    findings += _unknown_treatments(request, sources, treatments)
    raise_findings(findings)
    return tuple(notes)


def _beyond_training(
    request: Scenario, sources: tuple[Session, ...], max_day: int, max_horizon_days: int | None
) -> Iterator[str]:
    days = {"target": request.day, **{f"session {s.name}": s.day for s in sources}}
    for name, day in days.items():
        if day > max_day:
            yield f"{name}: day {day} is beyond the trained range, 0 to {max_day}"
    horizon_days = request.day - sources[-1].day
    if max_horizon_days is not None and horizon_days > max_horizon_days:
        yield (
            f"target: day {request.day} is {horizon_days} days after the last session, beyond "
            f"the trained horizon of {max_horizon_days} days"
        )


def _unknown_treatments(
    request: Scenario, sources: tuple[Session, ...], trained: Collection[str]
) -> list[TadiffError]:
    findings: list[TadiffError] = []
    asked = {
        "--treatment": request.treatment,
        **{f"session {s.name}": s.treatment for s in sources},
    }
    for where, treatment in asked.items():
        error = check_treatment(treatment, where)
        if error is None and treatment not in trained:
            what = f"the network was not trained on {treatment}, only on {', '.join(trained)}"
            error = TableError("TD3314", what, where=where)
        if error:
            findings.append(error)
    return findings


def select_sources(
    case: Case, *, repeat_first: bool = True
) -> tuple[tuple[Session, Session, Session], str | None]:
    """The three sessions a forecast is conditioned on, and a note where that took a choice.

    They are the last three. Where there are fewer, the earliest is repeated at the front, as in
    the published evaluation: for a target session k its window is [k-3, k-2, k-1, k] with
    negative indices clamped to 0, hence [0, 0, 0, k] after one session and [0, 0, 1, k] after two
    (the published test.py). A repeated session keeps its own day and treatment.

    Args:
        case: sessions in order of day.
        repeat_first: False refuses a case with fewer than three sessions.

    Raises:
        TableError: TD3315 too few sessions, TD3316 a source session was read without images.
    """
    count = len(case.sessions)
    if count == 0 or (count < NUM_SOURCES and not repeat_first):
        what = f"the case has {count} sessions, {NUM_SOURCES} are needed"
        fix = "add sessions, or allow the first to be repeated"
        raise TableError("TD3315", what, where=case.name, fix=fix)
    first, second, third = (case.sessions[max(0, count - n)] for n in (3, 2, 1))
    names = ", ".join(s.name for s in (first, second, third))
    for session in (first, second, third):
        if any(modality not in session.images for modality in MODALITIES):
            what = f"session {session.name} was read without its images"
            fix = f"read at least the last {NUM_SOURCES} sessions"
            raise TableError("TD3316", what, where=case.name, fix=fix)
    note = None
    if count < NUM_SOURCES:
        note = f"the case has fewer than {NUM_SOURCES} sessions; the first is repeated: {names}"
    elif count > NUM_SOURCES:
        note = f"the last {NUM_SOURCES} of {count} sessions are used: {names}"
    return (first, second, third), note
