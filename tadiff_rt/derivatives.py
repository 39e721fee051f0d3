"""A comparison as a BIDS derivatives data set: what is written of a forecast but its report.

    dataset_description.json, README.md, ..., volumes.tsv       see `dataset_files`
    overview.png                                                see `overview`
    sub-17/ses-day510/anat/
        sub-17_ses-day510_desc-predictedTMZ_T1w.nii.gz          mean over samples
        sub-17_ses-day510_ce-gadolinium_desc-predictedTMZ_T1w.nii.gz
        sub-17_ses-day510_desc-predictedTMZ_FLAIR.nii.gz
        ..._desc-predictedstdTMZ_T1w.nii.gz, ...                standard deviation over samples
        ..._desc-predictedTMZ_dseg.nii.gz, ..._dseg.tsv         tumour
        ..._label-L_desc-predictedTMZ_probseg.nii.gz            tumour probability
        ..._label-L_desc-predictedTMZminusnone_probseg.nii.gz   its difference to the reference
        ..._label-L_desc-predictedstdTMZminusnone_probseg.nii.gz

Every desc- starts with "predicted", and every image has a sidecar that says what it is, so that
nothing takes a forecast for a scan.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import DTypeLike, NDArray

from tadiff_rt.assembly import Forecast
from tadiff_rt.case import MODALITIES
from tadiff_rt.dataset_files import dataset_files, difference_label
from tadiff_rt.overview import comparison_png, warning
from tadiff_rt.scenarios import Comparison, Difference, Scenario
from tadiff_rt.stopwatch import Stopwatch
from tadiff_rt.write import ResultFolder, write_bytes, write_json, write_nifti

ENTITIES = ("", "_ce-gadolinium", "")
SUFFIXES = ("T1w", "T1w", "FLAIR")
WORDS = ("T1-weighted image", "T1-weighted image with contrast agent", "FLAIR image")
"""Of T1, T1c and FLAIR: the entities before desc-, the suffix, and what it is."""

LESION = "_label-L"
"""As BIDS abbreviates "lesion"."""

LOOKUP = b"index\tname\tabbreviation\tmapping\n0\tbackground\tBG\t0\n1\ttumour\tL\t7\n"
"""What the numbers in a dseg mean; `mapping` is BIDS' number for it."""

MAX_LABEL = 32
PICTURE_BYTES = 2 << 20
"""More than the overview takes."""
TEXT_BYTES = 16 << 10
"""More than the sidecars of an image, and its share of the tables, take on a disk."""


def subject_label(case_name: str) -> str:
    """The BIDS label of a subject: "17" of "sub-17"; of any name its ASCII letters and digits.

    1 to 32 characters; "unnamed" where none are left.
    """
    return re.sub("[^0-9A-Za-z]", "", case_name.removeprefix("sub-"))[:MAX_LABEL] or "unnamed"


def expected_bytes(voxels: int, scenarios: int, samples: int) -> int:
    """Bytes that `write_comparison` takes at most: as if no volume could be compressed.

    Args:
        voxels: of the last session's T1.
    """
    maps = 2 if samples > 1 else 1
    # Of the probability, all but the reference have a difference.
    floats = scenarios * (maps * len(MODALITIES) + 1) + (scenarios - 1) * maps
    # Deflate adds 5 bytes to a block of 16 KiB or more that it cannot compress.
    volumes = voxels * (4 * floats + scenarios) * 1001 // 1000
    return volumes + (floats + scenarios) * TEXT_BYTES + PICTURE_BYTES


def write_comparison(
    comparison: Comparison, result: ResultFolder, *, subject: str, watch: Stopwatch | None = None
) -> dict[str, dict[str, Any]]:
    """Writes the images, tables and overview; equal comparisons give equal bytes.

    Args:
        subject: BIDS label, see `subject_label`; the only name in the result.
        watch: gets the stages "write" and "overview".

    Returns:
        By name of the scenario, "session" and the "files" of its images.

    Raises:
        NumericsError: TD6001, a voxel is not finite.
        OutputError, ResourceError: the disk refuses.
    """
    if subject != subject_label(subject):
        raise ValueError(f"{subject!r} is not a label of 1 to {MAX_LABEL} letters and digits")
    watch = watch or Stopwatch()
    with watch.stage("write"):
        written = {}
        for scenario, forecast in comparison.forecasts.items():
            session = _Session(result, subject, scenario, forecast)
            session.write_forecast()
            for difference in comparison.differences:
                if difference.scenario == scenario:
                    session.write_difference(difference)
            written[scenario.name] = {"session": session.name, "files": session.files}
        for name, content in dataset_files(comparison, subject).items():
            if isinstance(content, str):
                write_bytes(result.path / name, content.encode())
            else:
                write_json(result.path / name, content)
    with watch.stage("overview"):
        write_bytes(result.path / "overview.png", comparison_png(comparison))
    return written


@dataclass
class _Session:
    """Writes what was forecast of one scenario into the folder of its session."""

    result: ResultFolder
    subject: str
    scenario: Scenario
    forecast: Forecast
    files: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"ses-day{self.scenario.day}"

    def write_forecast(self) -> None:
        """Mean and standard deviation of the images, tumour and tumour probability."""
        treatment, forecast = self.scenario.treatment, self.forecast
        mean, std = f"predicted{treatment}", f"predictedstd{treatment}"
        for m, words in enumerate(WORDS):
            image = {"SkullStripped": True, "Units": "arbitrary"}
            kind = f"{words} in the units of the last acquired one"
            name = self._stem(f"{ENTITIES[m]}_desc-{mean}_{SUFFIXES[m]}")
            self._write(name, forecast.mean[m], f"Mean over samples: {kind}", image)
            if forecast.std is not None:
                name = self._stem(f"{ENTITIES[m]}_desc-{std}_{SUFFIXES[m]}")
                what = f"Standard deviation over samples: {kind}"
                self._write(name, forecast.std[m], what, image)
        probability = self._probability(treatment)
        what = "Tumour probability, 0 to 1: mean over samples"
        self._write(probability, forecast.tumour_probability, what, {"SpatialReference": "orig"})
        segmentation = self._stem(f"_desc-{mean}_dseg")
        origin = {"SpatialReference": "orig", "Manual": False, "Sources": [self._uri(probability)]}
        what = "Tumour: where its probability is above one half"
        self._write(segmentation, forecast.tumour_mask, what, origin, "uint8")
        write_bytes(self.result.path / f"{segmentation}.tsv", LOOKUP)
        self.files.append(f"{segmentation}.tsv")

    def write_difference(self, difference: Difference) -> None:
        """What the treatment changes in the tumour probability."""
        label, reference = difference_label(difference), difference.reference.treatment
        place = {"SpatialReference": "orig", "Reference": reference}
        treatment = self.scenario.treatment
        kind = f"tumour probability under {treatment} minus under {reference}, -1 to 1"
        name = self._stem(f"{LESION}_desc-predicted{label}_probseg")
        sources = [self._probability(arm) for arm in (treatment, reference)]
        origin = {**place, "Sources": [self._uri(source) for source in sources]}
        self._write(name, difference.probability, f"Mean over samples: {kind}", origin)
        if difference.std is not None:
            name = self._stem(f"{LESION}_desc-predictedstd{label}_probseg")
            self._write(name, difference.std, f"Standard deviation over samples: {kind}", place)

    def _probability(self, treatment: str) -> str:
        return self._stem(f"{LESION}_desc-predicted{treatment}_probseg")

    def _stem(self, rest: str) -> str:
        """Path in the result of a file without its extension."""
        subject = f"sub-{self.subject}"
        return f"{subject}/{self.name}/anat/{subject}_{self.name}{rest}"

    def _uri(self, stem: str) -> str:
        return f"bids::{stem}.nii.gz"

    def _write(
        self,
        stem: str,
        data: NDArray[Any],
        what: str,
        more: dict[str, Any],
        dtype: DTypeLike = "float32",
    ) -> None:
        day, treatment = self.scenario.day, self.scenario.treatment
        sidecar = {
            "Description": f"{what}; treatment until then: {treatment}; {warning(day)}",
            "Acquired": False,
            "Day": day,
            "Treatment": treatment,
            "Samples": len(self.forecast.volume_ml.samples_ml),
            **more,
        }
        self.result.subfolder(stem.rpartition("/")[0])
        path = self.result.path / stem
        image, described = path.with_name(f"{path.name}.nii.gz"), f"{path.name}.json"
        write_nifti(image, data, self.forecast.affine, self.forecast.header, dtype)
        write_json(path.with_name(described), sidecar)
        self.files += [f"{stem}.nii.gz", f"{stem}.json"]
