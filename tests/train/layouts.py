"""One small cohort in every layout that people have, each as its source lays it out.

Two patients, of three and of two sessions on days that are whole weeks. Every layout stores the
same heads in an orientation of its own, so that all of them must give the same training data.
"""

import itertools
import os
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (20, 24, 12)
"""R, A, S in voxels of 2 mm."""
SPACING_MM = 2.0
RAS = np.array([[2.0, 0, 0, -20], [0, 2.0, 0, -24], [0, 0, 2.0, -10], [0, 0, 0, 1]])
COHORT = {1: ((0, "CRT"), (28, "TMZ"), (77, "none")), 2: ((0, "CRT"), (70, "TMZ"))}
"""Patient -> day and treatment of its sessions."""
CONTRASTS = ((0.3, 0.6, 0.9), (0.35, 0.65, 0.85), (0.2, 0.8, 0.6), (0.9, 0.6, 0.4))
"""Of fluid, grey and white matter in T1, T1c, FLAIR and T2."""
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize %d\n"
"""What is left of an array where Git LFS has not fetched it."""
TREATMENT_CODES = {"CRT": 0, "TMZ": 1, "none": 2}
TREATMENT_WORDS = {"CRT": "CRT", "TMZ": "TMZ", "none": "no"}
"""Of SAILOR's treatment.txt."""
TUMOUR_SLICE = 7
LUMIERE_MASK = "HD-GLIO-AUTO-segmentation/registered/segmentation"
LUMIERE_IMAGES = tuple(
    f"HD-GLIO-AUTO-segmentation/registered/{name}_r2s_bet_reg"
    for name in ("T1", "CT1", "FLAIR", "T2")
)


def scan(patient: int, session: int, m: int) -> np.ndarray:
    """(x, y, z) R, A, S in scanner units: one anatomy a patient, noise of its own a scan."""
    tissue = np.random.default_rng(patient).standard_normal(SHAPE)
    for axis in range(3):
        tissue = sum(np.roll(tissue, k, axis) for k in (-1, 0, 1))
    classes = np.digitize(tissue, np.quantile(tissue, (0.3, 0.6)))
    noise = np.random.default_rng([patient, session, m]).standard_normal(SHAPE)
    data = np.asarray(CONTRASTS[m])[classes] + 0.03 * noise
    brain = np.zeros(SHAPE, bool)
    brain[3:17, 2:20, 1:11] = True
    return np.where(brain, 1000 * data.clip(0.05, 1), 0).round().astype(np.float32)


def tumour(patient: int, session: int) -> np.ndarray:
    """Labels 1 and, within, 3; off the middle along every axis and growing."""
    label = np.zeros(SHAPE, np.uint8)
    label[5 : 8 + session + patient, 12:16, TUMOUR_SLICE : TUMOUR_SLICE + 2] = 1
    label[6, 13:15, TUMOUR_SLICE] = 3
    return label


def whole(patient: int, session: int) -> np.ndarray:
    """As `tumour`, all of it 1: what needs no declaration."""
    return (tumour(patient, session) > 0).astype(np.uint8)


def save(path: Path, data: np.ndarray, axes: str = "RAS", affine: np.ndarray = RAS) -> None:
    """A NIfTI file with its voxels stored along `axes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes)
    )
    image = image.as_reoriented(turn)
    for form in (image.set_qform, image.set_sform):
        form(image.affine, 1)
    nib.save(image, path)


def write_bids(root: Path, cohort=COHORT) -> Path:
    """sub-01/ses-01/anat/..., masks under derivatives/, as RAS."""
    names = ("T1w", "ce-gadolinium_T1w", "FLAIR")
    for p, sessions in cohort.items():
        subject = f"sub-{p:02}"
        rows = ["session_id\tdays_from_baseline\ttreatment"]
        for s, (day, treatment) in enumerate(sessions):
            rows.append(f"ses-{s + 1:02}\t{day}\t{treatment}")
            anat = f"{subject}/ses-{s + 1:02}/anat/{subject}_ses-{s + 1:02}"
            for m, name in enumerate(names):
                save(root / f"{anat}_{name}.nii.gz", scan(p, s, m))
            save(root / f"derivatives/manual/{anat}_desc-tumour_dseg.nii.gz", whole(p, s))
        (root / subject / f"{subject}_sessions.tsv").write_text("\n".join(rows) + "\n")
    return root


def write_sailor_session(folder: Path, p: int, s: int, treatment: str) -> None:
    """Images and masks as LAS, with what the data set holds beside them."""
    for m, name in enumerate(("T1", "T1c", "Flair", "T2")):
        save(folder / f"{name}.nii.gz", scan(p, s, m), "LAS")
    save(folder / "T1c-icor.nii.gz", scan(p, s, 3), "LAS")
    label = tumour(p, s)
    save(folder / "EdemaMask-CL.nii.gz", (label > 0).astype(np.float32), "LAS")
    save(folder / "ContrastEnhancedMask-CL.nii.gz", (label == 3).astype(np.float32), "LAS")
    (folder / "treatment.txt").write_text(TREATMENT_WORDS[treatment] + "\n")


def write_sailor(root: Path, cohort=COHORT) -> Path:
    """sub-01/ses-01/T1.nii.gz and intervals-days.txt."""
    for p, sessions in cohort.items():
        subject = root / f"sub-{p:02}"
        for s, (_, treatment) in enumerate(sessions):
            write_sailor_session(subject / f"ses-{s + 1:02}", p, s, treatment)
        days = [day for day, _ in sessions]
        (subject / "intervals-days.txt").write_text(
            "".join(f"{b - a}\n" for a, b in itertools.pairwise(days))
        )
        save(subject / "DoseMap.nii.gz", scan(p, 0, 3), "LAS")
    return root


SHORT = {5: (5, 3), 8: (7, 5), 12: (10, 8), 15: (19, 6), 20: (10, 8), 22: (6, 4), 25: (11, 8)}
"""The seven SAILOR patients whose list of intervals is short: sessions and intervals."""


def write_short_sailor(root: Path) -> None:
    """These seven; all sessions of a patient are hard links to the files of one."""
    for p, (sessions, intervals) in SHORT.items():
        subject = root / f"sub-{p:02}"
        first = subject / "ses-01"
        write_sailor_session(first, p, 0, "CRT")
        for s in range(1, sessions):
            folder = subject / f"ses-{s + 1:02}"
            folder.mkdir()
            for file in first.iterdir():
                os.link(file, folder / file.name)
        (subject / "intervals-days.txt").write_text("30\n" * intervals)


def lumiere_weeks(sessions) -> list[str]:
    return [f"week-{day // 7:03}" for day, _ in sessions]


def write_lumiere_week(folder: Path, p: int, s: int) -> None:
    """Registered images and HD-GLIO's mask as LPS; T1 before registration is not written."""
    for m, stem in enumerate(LUMIERE_IMAGES):
        save(folder / f"{stem}.nii.gz", scan(p, s, m), "LPS")
    save(folder / f"{LUMIERE_MASK}.nii.gz", whole(p, s), "LPS")


def write_lumiere(root: Path, cohort=COHORT) -> Path:
    """Imaging/Patient-001/week-004/... and one treatments.csv, which the user writes."""
    rows = ["case,session,treatment"]
    for p, sessions in cohort.items():
        patient = f"Patient-{p:03}"
        for s, (week, (_, treatment)) in enumerate(
            zip(lumiere_weeks(sessions), sessions, strict=True)
        ):
            write_lumiere_week(root / "Imaging" / patient / week, p, s)
            rows.append(f"{patient},{week},{treatment}")
    (root / "Imaging" / "treatments.csv").write_text("\n".join(rows) + "\n")
    return root


def image_array(p: int, num_sessions: int) -> np.ndarray:
    """(4 T, h, w, d) in [0, 1], modality by modality, on axes P, L, I."""
    scans = [scan(p, s, m) / 1000 for m in range(4) for s in range(num_sessions)]
    return np.stack([canonical(data) for data in scans]).astype(np.float32)


def canonical(data: np.ndarray) -> np.ndarray:
    """R, A, S -> P, L, I."""
    return data[::-1, ::-1, ::-1].swapaxes(0, 1)


def write_npy(root: Path, cohort=COHORT) -> Path:
    """sub-01_{image,label,days,treatment}.npy."""
    root.mkdir(parents=True, exist_ok=True)
    for p, sessions in cohort.items():
        labels = [canonical(tumour(p, s)) for s in range(len(sessions))]
        arrays = {
            "image": image_array(p, len(sessions)),
            "label": np.stack(labels).astype(np.int8),
            "days": np.array([day for day, _ in sessions]),
            "treatment": np.array([TREATMENT_CODES[name] for _, name in sessions]),
        }
        for key, array in arrays.items():
            np.save(root / f"sub-{p:02}_{key}.npy", np.ascontiguousarray(array))
    return root


def write_manifest(root: Path, cohort=COHORT) -> Path:
    """manifest.csv of loose files, stored as SPR."""
    rows = ["case,session,day,treatment,t1,t1c,flair,mask"]
    for p, sessions in cohort.items():
        for s, (day, treatment) in enumerate(sessions):
            files = [f"loose/{p}-{s}-{name}.nii.gz" for name in ("a", "b", "c", "tumour")]
            for m, file in enumerate(files[:3]):
                save(root / file, scan(p, s, m), "SPR")
            save(root / files[3], whole(p, s), "SPR")
            rows.append(",".join([f"P{p:02}", f"scan{s}", str(day), treatment, *files]))
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


WRITERS = {
    "bids": write_bids,
    "sailor": write_sailor,
    "lumiere": write_lumiere,
    "npy": write_npy,
    "manifest": write_manifest,
}
NAMES = {
    "bids": ("sub-01", "sub-02"),
    "sailor": ("sub-01", "sub-02"),
    "lumiere": ("Patient-001", "Patient-002"),
    "npy": ("sub-01", "sub-02"),
    "manifest": ("P01", "P02"),
}
OPTIONS = {"npy": {"npy_grid": "PLI:2"}}
"""`ReadOptions` that a layout needs."""
