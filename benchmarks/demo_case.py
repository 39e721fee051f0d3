"""Which case comes with `tadiff-rt demo`?  `python -m benchmarks.demo_case COHORT OUT`

The first patient of a simulated cohort with four to six known sessions and a tumour of 15 to 50 ml
at the last of them. The session after that is left out: it is the known future.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from tadiff_rt.readers import read_case

KNOWN = range(4, 7)
RANGE_ML = (15.0, 50.0)
NAME = "sub-demo"


def tumour_ml(mask: object) -> float:
    """Volume of all labels > 0."""
    data, affine = mask.data, mask.affine  # type: ignore[attr-defined]
    return float((data > 0).sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)


def choose(cohort: Path) -> tuple[Path, list[str]]:
    """The subject and the names of the sessions to keep."""
    for subject in sorted(cohort.glob("sub-*")):
        case = read_case(subject)
        *known, _ = case.sessions
        if len(known) in KNOWN and RANGE_ML[0] < tumour_ml(known[-1].mask) < RANGE_ML[1]:
            return subject, [session.name for session in known]
    raise SystemExit(f"no patient of {cohort} fits")


def copy(cohort: Path, out: Path) -> None:
    """Copies the chosen sessions and their tumour masks under a new subject name."""
    subject, sessions = choose(cohort)
    shutil.rmtree(out, ignore_errors=True)
    for root in (Path(), Path("derivatives/phantom")):
        for session in sessions:
            for path in sorted((cohort / root / subject.name / session).rglob("*.nii.gz")):
                to = out / root / NAME / session / "anat" / path.name.replace(subject.name, NAME)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, to)
    for table in (cohort / "derivatives/phantom").glob("*_dseg.tsv"):
        shutil.copyfile(table, out / "derivatives/phantom" / table.name)
    header, *rows = (subject / f"{subject.name}_sessions.tsv").read_text().splitlines()
    lines = [header, *(row for row in rows if row.split("\t")[0] in sessions)]
    (out / NAME / f"{NAME}_sessions.tsv").write_text("\n".join(lines) + "\n")
    description = {
        "Name": "A simulated patient for the demonstration of tadiff; no real person",
        "BIDSVersion": "1.10.0",
        "License": "see NOTICE",
    }
    (out / "dataset_description.json").write_text(json.dumps(description, indent=2) + "\n")


if __name__ == "__main__":
    copy(Path(sys.argv[1]), Path(sys.argv[2]))
