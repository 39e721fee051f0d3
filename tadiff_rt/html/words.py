"""Numbers, scenarios and warnings in the words of the page."""

from collections.abc import Sequence

from tadiff_rt.assembly import VolumeEstimate
from tadiff_rt.scenarios import Difference, Scenario, VolumeDifference

TITLES = {"t1": "T1", "t1c": "T1c", "flair": "FLAIR"}
MINUS = "\N{MINUS SIGN}"


def number(value: float, digits: int = 1) -> str:
    """With a true minus sign, and none before zero."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        return text.removeprefix("-")
    return text.replace("-", MINUS)


def percent(share: float) -> str:
    """A probability in words."""
    return f"{share * 100:.0f} %"


def listed(parts: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def plan(scenario: Scenario) -> str:
    """A scenario in words."""
    return f"day {scenario.day}, {treatment(scenario.treatment)}"


def treatment(name: str) -> str:
    """A treatment as it reads in a sentence."""
    return "no treatment" if name == "none" else name


def interval(low: float | None, high: float | None, level: float) -> str:
    """Where a further sample lies; what one sample cannot say."""
    if low is None or high is None:
        return "one sample, no interval"
    return f"{percent(level)} {number(low)} to {number(high)}"


def volume(estimate: VolumeEstimate) -> str:
    """A forecast tumour volume with its interval."""
    return (
        f"{number(estimate.mean_ml)} ml "
        f"({interval(estimate.low_ml, estimate.high_ml, estimate.level)})"
    )


def difference(apart: Difference) -> str:
    """What one treatment changes against another, in a sentence."""
    return (
        f"Day {apart.scenario.day}, with the same noise, {apart.scenario.treatment} minus "
        f"{apart.reference.treatment}: {difference_volume(apart.volume_ml)}"
    )


def difference_volume(apart: VolumeDifference) -> str:
    """A difference of volumes with its interval."""
    return f"{number(apart.mean_ml)} ml ({interval(apart.low_ml, apart.high_ml, apart.level)})"
