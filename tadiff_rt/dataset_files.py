"""The files of a result that describe it as a whole: what BIDS asks for, and the volumes.

dataset_description.json, README.md     what this is, and from what model
descriptions.tsv                        what each desc- label means
participants.tsv
sub-17/sub-17_sessions.tsv, .json       the forecast days
volumes.tsv, volumes.json               tumour volume of every scenario, and its columns
.bidsignore                             the names that are not BIDS'
"""

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from tadiff_rt.assembly import Forecast
from tadiff_rt.errors import printable
from tadiff_rt.scenarios import Comparison, Difference, Scenario

BIDS_VERSION = "1.10.0"
NOT_BIDS = ("forecast.json", "overview.png", "report.html", "volumes.json", "volumes.tsv")
MISSING = "n/a"
"""As BIDS writes it in tables."""

_FURTHER = "where a further sample lies with probability `level`"
_OF_MEAN = "where the mean of infinitely many samples lies at confidence `level`"
_MINUS = "volume_ml minus that of `reference` on the same day, with the same noise"
_ML = {"Units": "mL"}
COLUMNS: dict[str, dict[str, str]] = {
    "session": {"Description": "The forecast session"},
    "day": {"Description": "Since the first session", "Units": "day"},
    "treatment": {"Description": "From the last acquired session until that day"},
    "volume_ml": {"Description": "Tumour volume, mean over samples", **_ML},
    "low_ml": {"Description": f"Lower end of {_FURTHER}; at least 0", **_ML},
    "high_ml": {"Description": f"Upper end of {_FURTHER}", **_ML},
    "mean_low_ml": {"Description": f"Lower end of {_OF_MEAN}; at least 0", **_ML},
    "mean_high_ml": {"Description": f"Upper end of {_OF_MEAN}", **_ML},
    "level": {"Description": "Of all intervals in the row, 0 to 1"},
    "samples": {"Description": "Number of samples drawn"},
    "slices": {"Description": "Number of axial slices forecast, which the volume covers"},
    "pairwise_dice": {"Description": "Expected Dice of the tumours of two samples, 0 to 1"},
    "reference": {"Description": "Treatment that this one is compared with"},
    "difference_ml": {"Description": f"{_MINUS}, mean over samples", **_ML},
    "difference_low_ml": {"Description": f"{_MINUS}: lower end of {_FURTHER}", **_ML},
    "difference_high_ml": {"Description": f"{_MINUS}: upper end of {_FURTHER}", **_ML},
    "difference_mean_low_ml": {"Description": f"{_MINUS}: lower end of {_OF_MEAN}", **_ML},
    "difference_mean_high_ml": {"Description": f"{_MINUS}: upper end of {_OF_MEAN}", **_ML},
}
"""Of volumes.tsv; what volumes.json holds."""

_SESSION_COLUMNS = {
    "session_id": {"Description": "A predicted session, not acquired"},
    "days_from_baseline": {"Description": "Since the first session", "Units": "day"},
    "acquired": {"Description": "Whether there is a scan", "Levels": {"no": "predicted only"}},
}

_README = """\
# Predicted, not acquired, research use

No image in this data set was acquired. tadiff {version} predicted them from earlier MRI of
sub-{subject}: what a scan on a future day might show under a treatment.

- Model: {name}
- Trained on: {trained_on}
- Intended use: {intended_use}

`desc-predictedTMZ` is the forecast under TMZ, `desc-predictedstdTMZ` its standard deviation over
samples; descriptions.tsv lists them all. `ses-day510` is 510 days after the first session.
volumes.tsv holds the tumour volumes with their intervals, in ml, volumes.json what its columns
mean, and forecast.json how everything was computed.
"""


def difference_label(difference: Difference) -> str:
    """What a difference is called after desc-predicted, e.g. "TMZminusnone"."""
    return f"{difference.scenario.treatment}minus{difference.reference.treatment}"


def dataset_files(comparison: Comparison, subject: str) -> dict[str, str | dict[str, Any]]:
    """Text files and JSON by path in the result, in the folder of the subject or above it."""
    model = comparison.first.report["model"]
    said = {key: _one_line(model[key]) for key in ("name", "trained_on", "intended_use")}
    sessions = f"sub-{subject}/sub-{subject}_sessions"
    days = dict.fromkeys(scenario.day for scenario in comparison.forecasts)
    return {
        "dataset_description.json": {
            "Name": "Forecasts of glioma MRI: predicted, not acquired, research use",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [
                {
                    "Name": "tadiff",
                    "Version": version("tadiff"),
                    "Description": f"Model {said['name']}, trained on: {said['trained_on']}",
                }
            ],
        },
        "README.md": _README.format(version=version("tadiff"), subject=subject, **said),
        ".bidsignore": "".join(f"{name}\n" for name in NOT_BIDS),
        "descriptions.tsv": _table(("desc_id", "description"), _descriptions(comparison)),
        "participants.tsv": _table(("participant_id",), [(f"sub-{subject}",)]),
        f"{sessions}.tsv": _table(
            tuple(_SESSION_COLUMNS), [(f"ses-day{day}", str(day), "no") for day in days]
        ),
        f"{sessions}.json": _SESSION_COLUMNS,
        "volumes.tsv": volumes_table(comparison),
        "volumes.json": COLUMNS,
    }


def volumes_table(comparison: Comparison) -> str:
    """volumes.tsv: a row a scenario, see `COLUMNS`; ml with four decimals, n/a where unknown."""
    differences = {difference.scenario: difference for difference in comparison.differences}
    rows = [
        _volumes(scenario, forecast, differences.get(scenario))
        for scenario, forecast in comparison.forecasts.items()
    ]
    return _table(
        tuple(COLUMNS), ([row.get(column, MISSING) for column in COLUMNS] for row in rows)
    )


def _volumes(
    scenario: Scenario, forecast: Forecast, difference: Difference | None
) -> dict[str, str]:
    volume = forecast.volume_ml
    mean_low, mean_high = volume.mean_interval_ml or (None, None)
    row = {
        "session": f"ses-day{scenario.day}",
        "day": str(scenario.day),
        "treatment": scenario.treatment,
        "volume_ml": _number(volume.mean_ml),
        "low_ml": _number(volume.low_ml),
        "high_ml": _number(volume.high_ml),
        "mean_low_ml": _number(mean_low),
        "mean_high_ml": _number(mean_high),
        "level": f"{volume.level:g}",
        "samples": str(len(volume.samples_ml)),
        "slices": str(len(forecast.slices)),
        "pairwise_dice": _number(volume.pairwise_dice),
    }
    return {**row, **_difference(difference)} if difference else row


def _difference(difference: Difference) -> dict[str, str]:
    volume = difference.volume_ml
    mean_low, mean_high = volume.mean_interval_ml or (None, None)
    return {
        "reference": difference.reference.treatment,
        "difference_ml": _number(volume.mean_ml),
        "difference_low_ml": _number(volume.low_ml),
        "difference_high_ml": _number(volume.high_ml),
        "difference_mean_low_ml": _number(mean_low),
        "difference_mean_high_ml": _number(mean_high),
    }


def _descriptions(comparison: Comparison) -> list[tuple[str, str]]:
    """The desc- labels that occur, and what they mean."""
    meanings: dict[str, str] = {}
    for scenario, forecast in comparison.forecasts.items():
        what = f"forecast under {scenario.treatment}; not acquired"
        meanings[f"predicted{scenario.treatment}"] = f"Mean over samples of the {what}"
        if forecast.std is not None:
            std = f"predictedstd{scenario.treatment}"
            meanings[std] = f"Standard deviation over samples of the {what}"
    for difference in comparison.differences:
        label = difference_label(difference)
        arms = f"{difference.scenario.treatment} minus under {difference.reference.treatment}"
        what = f"forecast under {arms}, with the same noise; not acquired"
        meanings[f"predicted{label}"] = f"Mean over samples of the {what}"
        if difference.std is not None:
            std = f"predictedstd{label}"
            meanings[std] = f"Standard deviation over samples of the {what}"
    return [(f"desc-{label}", meaning) for label, meaning in meanings.items()]


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:z.4f}"


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in (columns, *rows))
