"""What is unusual about a cohort and no reason to refuse it: to be looked at before training.

W3128   most of the brain is tumour
W3130   modalities, sessions or patients have the same voxels
W3131   one session: the patient is never drawn
W3132   no tumour in any session: the patient is never drawn
W3133   tumour outside the brain
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.case import Case, Session
from tadiff_rt.geometry import grid_findings
from tadiff_rt.image_checks import MAX_TUMOUR_FRACTION
from tadiff_rt.readers.folders import some
from tadiff_train.data.picture import view_of

MAX_OUTSIDE_FRACTION = 0.05
"""Of a mask, on voxels where no image of any session is > 0; resampling leaves a few."""

Scans = dict[str, list[str]]
"""SHA-256 of the voxels and affine of an image -> the images that have them."""


def scans_of(case: Case) -> Scans:
    """The images of a patient by their voxels."""
    scans: Scans = {}
    for session in case.sessions:
        for modality, volume in session.images.items():
            scans.setdefault(volume.sha256, []).append(f"{modality} of {session.name}")
    return scans


def remarks_on(case: Case) -> list[str]:
    """What is unusual about a patient, beyond what the reader has noted."""
    remarks = []
    if len(case.sessions) < 2:
        remarks.append("W3131: one session: training never draws this patient")
    masks = [session.mask for session in case.sessions if session.mask is not None]
    if len(masks) == len(case.sessions) and not any(mask.data.any() for mask in masks):
        remarks.append("W3132: no tumour in any session: training never draws this patient")
    same = [" = ".join(names[:2]) for names in scans_of(case).values() if len(names) > 1]
    if same:
        remarks.append(f"W3130: images with the same voxels: {some(same, 3)}")
    volumes = [volume for session in case.sessions for volume in session.images.values()]
    if not grid_findings([*volumes, *masks]):
        brain = np.zeros(view_of(volumes[0]).shape, np.bool_)
        for volume in volumes:
            brain |= view_of(volume) > 0
        for session in case.sessions:
            remarks += _on_mask(session, brain)
    return remarks


def remarks_on_twins(scans: Sequence[tuple[str, Scans]]) -> list[tuple[str, str]]:
    """(patient, remark) for patients that share images: one person under two names.

    Args:
        scans: name and images of each patient, in order.
    """
    remarks = []
    owners: dict[str, str] = {}
    for name, own in scans:
        shared: dict[str, int] = {}
        for digest in own:
            owner = owners.setdefault(digest, name)
            if owner != name:
                shared[owner] = shared.get(owner, 0) + 1
        remarks += [
            (
                name,
                f"W3130: {count} images have the voxels of {owner}: one person under two names?",
            )
            for owner, count in shared.items()
        ]
    return remarks


def _on_mask(session: Session, brain: NDArray[np.bool_]) -> list[str]:
    if session.mask is None:
        return []
    tumour = view_of(session.mask) > 0
    count = int(tumour.sum())
    outside = int((tumour & ~brain).sum())
    remarks = []
    if count > MAX_TUMOUR_FRACTION * brain.sum():
        share = count / max(int(brain.sum()), 1)
        remarks.append(f"W3128: {session.name}: tumour covers {share:.0%} of the brain")
    if outside > MAX_OUTSIDE_FRACTION * count:
        what = f"{outside} of {count} tumour voxels lie outside the brain"
        remarks.append(f"W3133: {session.name}: {what}")
    return remarks
