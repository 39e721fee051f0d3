"""A simulated cohort on disk: a BIDS data set with the truth among its derivatives.

    OUT/dataset_description.json, participants.tsv, sessions.json          (the description last)
    OUT/sub-001/sub-001_sessions.tsv              session_id  days_from_baseline  treatment
    OUT/sub-001/ses-01/anat/sub-001_ses-01_{T1w,ce-gadolinium_T1w,FLAIR}.nii.gz
    OUT/derivatives/phantom/sub-001/ses-01/anat/sub-001_ses-01_desc-tumour_dseg.nii.gz
    OUT/derivatives/phantom/sub-001/sub-001_desc-truth_parameters.json

With counterfactuals, the last session NN also exists as it would be under each other treatment
TTT of the last interval: derivatives/phantom/.../sub-001_ses-NN_desc-tumourTTT_dseg.nii.gz and
sub-001_ses-NN_[ce-gadolinium_]desc-TTT_{T1w,FLAIR}.nii.gz.
"""

import gzip
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tadiff_rt.case import TREATMENTS
from tadiff_rt.errors import OutputError
from tadiff_train.phantom.patient import SimulatedPatient, simulate_patient
from tadiff_train.phantom.render import LABELS, Rendered

__all__ = ["SimulatedPatient", "simulate_patient", "write_cohort"]

GZIP_LEVEL = 3
BIDS_VERSION = "1.10.0"
PHANTOM_VERSION = "1"
"""Of the simulation: raised when the same seed no longer gives the same cohort."""
SUFFIXES = {"t1": ("", "T1w"), "t1c": ("ce-gadolinium_", "T1w"), "flair": ("", "FLAIR")}
"""Modality -> BIDS entity and suffix."""

TREATMENT_LEVELS = {
    "CRT": "chemoradiation: 60 Gy in 30 fractions with concurrent temozolomide",
    "TMZ": "temozolomide",
    "none": "no treatment",
}


def write_cohort(
    out: str | Path,
    patients: int,
    size: int,
    seed: int,
    counterfactuals: bool = False,
    jobs: int = 1,
    first: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Simulates patients first ... first + patients - 1 of cohort `seed` and writes them.

    The same (seed, index, size) gives the same bytes, whatever `patients`, `jobs` and `first`.

    Args:
        out: folder to create; may exist if empty.
        size: in-plane voxels, 96 (2 mm) or 192 (1 mm).
        counterfactuals: also write the last session under every other treatment.
        jobs: processes.
        first: index of the first patient; subject names count from first + 1.
        progress: called with (patients written, patients) after each.

    Raises:
        OutputError: `out` exists and holds something, or cannot be written.
    """
    out = Path(out)
    _claim(out)
    write = partial(_write_patient, out, size, seed, counterfactuals)
    rows = []
    for row in _each(write, range(first, first + patients), jobs):
        rows.append(row)
        if progress is not None:
            progress(len(rows), patients)
    _write_descriptions(out, rows, size, seed)


def _claim(out: Path) -> None:
    """Makes the folder; refuses one that holds anything."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        taken = any(out.iterdir())
    except OSError as error:
        reason = f"cannot make this folder: {error.strerror}"
        raise OutputError("TD8001", reason, where=str(out)) from error
    if taken:
        raise OutputError(
            "TD8001",
            "this folder is not empty, and a cohort is written into an empty one",
            where=str(out),
            fix="name a new folder, or delete this one first",
        )


def _each(
    write: Callable[[int], dict[str, str]], indices: range, jobs: int
) -> Iterator[dict[str, str]]:
    """Results in order of index, from this process or from `jobs` others."""
    if jobs == 1:
        yield from map(write, indices)
        return
    # Spawned, not forked: the caller may hold threads of torch or of a progress bar.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(write, indices)


def _write_patient(
    out: Path, size: int, seed: int, counterfactuals: bool, index: int
) -> dict[str, str]:
    """Writes one subject; returns its row of participants.tsv."""
    patient = simulate_patient(seed, index, size, counterfactuals=counterfactuals)
    derivatives = out / "derivatives" / "phantom"
    for number, session in enumerate(patient.sessions, start=1):
        anat = Path(patient.name) / f"ses-{number:02d}" / "anat"
        stem = f"{patient.name}_ses-{number:02d}_"
        (out / anat).mkdir(parents=True)
        (derivatives / anat).mkdir(parents=True)
        for modality, (entity, suffix) in SUFFIXES.items():
            path = out / anat / f"{stem}{entity}{suffix}.nii.gz"
            _write_nifti(path, session.images[modality], patient.affine)
        _write_nifti(
            derivatives / anat / f"{stem}desc-tumour_dseg.nii.gz", session.mask, patient.affine
        )
    for treatment, session in patient.counterfactuals.items():
        _write_future(derivatives / anat, stem, treatment, session, patient.affine)
    _write_sessions(out / patient.name / f"{patient.name}_sessions.tsv", patient)
    truth = derivatives / patient.name / f"{patient.name}_desc-truth_parameters.json"
    _write_json(truth, _truth(patient))
    return {"participant_id": patient.name, "plan": patient.plan.kind}


def _write_future(
    anat: Path, stem: str, treatment: str, session: Rendered, affine: NDArray[np.float64]
) -> None:
    """The last session as it would be under another treatment."""
    for modality, (entity, suffix) in SUFFIXES.items():
        path = anat / f"{stem}{entity}desc-{treatment}_{suffix}.nii.gz"
        _write_nifti(path, session.images[modality], affine)
    _write_nifti(anat / f"{stem}desc-tumour{treatment}_dseg.nii.gz", session.mask, affine)


def _write_nifti(
    path: Path, data: NDArray[np.int16] | NDArray[np.uint8], affine: NDArray[np.float64]
) -> None:
    """Equal qform and sform, and a gzip header without time or name: equal data, equal bytes."""
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), GZIP_LEVEL, mtime=0))


def _write_sessions(path: Path, patient: SimulatedPatient) -> None:
    lines = ["session_id\tdays_from_baseline\ttreatment"]
    for i, (day, treatment) in enumerate(zip(patient.days, patient.treatments, strict=True)):
        lines.append(f"ses-{i + 1:02d}\t{day}\t{treatment}")
    path.write_text("\n".join(lines) + "\n")


def _truth(patient: SimulatedPatient) -> dict[str, Any]:
    """Everything that a forecast of this patient is to be judged by."""
    last = f"ses-{len(patient.sessions):02d}"
    return {
        "seed": patient.seed,
        "index": patient.index,
        "size": patient.size,
        "plan": patient.plan.kind,
        "parameters": asdict(patient.parameters),
        "days": list(patient.days),
        "treatments": list(patient.treatments),
        "volumes_ml": [round(v, 3) for v in patient.volumes_ml],
        "counterfactual_volumes_ml": {
            f"{last}_{treatment}": round(patient.volume_ml(session), 3)
            for treatment, session in patient.counterfactuals.items()
        },
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _write_descriptions(out: Path, rows: list[dict[str, str]], size: int, seed: int) -> None:
    """The files about the whole data set; a folder without them was not finished."""
    columns = ["participant_id", "plan"]
    lines = ["\t".join(columns), *("\t".join(row[c] for c in columns) for row in rows)]
    (out / "participants.tsv").write_text("\n".join(lines) + "\n")
    _write_json(
        out / "sessions.json",
        {
            "days_from_baseline": {"Description": "Days since the first session", "Units": "day"},
            "treatment": {
                "Description": "Treatment in the interval that ends at the session; at the first "
                "session, the one about to start",
                "Levels": {name: TREATMENT_LEVELS[name] for name in TREATMENTS},
            },
        },
    )
    (out / "README").write_text(
        "Simulated glioma patients: deformations of the MNI152 template with a tumour grown by a\n"
        "reaction-diffusion equation. No scan of a person is in here, and no result obtained on\n"
        "these images says how good a forecast is for patients.\n"
    )
    derivatives = out / "derivatives" / "phantom"
    derivatives.mkdir(parents=True, exist_ok=True)
    (derivatives / ".bidsignore").write_text("*_parameters.json\n")
    lines = ["index\tname", *(f"{value}\t{name}" for name, value in LABELS.items())]
    (derivatives / "desc-tumour_dseg.tsv").write_text("\n".join(lines) + "\n")
    generated = [
        {
            "Name": "tadiff-train phantom",
            "Version": PHANTOM_VERSION,
            "Description": f"seed {seed}, size {size}",
        }
    ]
    common = {"BIDSVersion": BIDS_VERSION, "GeneratedBy": generated}
    _write_json(
        derivatives / "dataset_description.json",
        {"Name": "Truth of the simulated cohort", "DatasetType": "derivative", **common},
    )
    _write_json(
        out / "dataset_description.json",
        {"Name": "Simulated longitudinal glioma cohort", "DatasetType": "raw", **common},
    )
