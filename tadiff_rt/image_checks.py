"""Whether the images of a case are what a network takes, and what is unusual about them."""

from collections.abc import Sequence

from tadiff_rt.case import MODALITIES, Session, Volume
from tadiff_rt.contract import DataContract
from tadiff_rt.errors import GeometryError, TadiffError, raise_findings
from tadiff_rt.geometry import check_spacing, grid_findings, grid_of
from tadiff_rt.intensity import Range, measure_range
from tadiff_rt.resample import resampling_findings

MAX_TUMOUR_FRACTION = 0.5
"""Share of the foreground above which a tumour mask is remarked on."""


def volumes_of(sessions: Sequence[Session]) -> tuple[list[Volume], list[Volume]]:
    """Images and masks of all sessions; those of a session repeated as padding are repeated."""
    images = [session.images[modality] for session in sessions for modality in MODALITIES]
    return images, [session.mask for session in sessions if session.mask is not None]


def distinct(volumes: Sequence[Volume]) -> list[Volume]:
    """Each volume once."""
    return list({id(volume): volume for volume in volumes}.values())


def misfits(
    images: Sequence[Volume], masks: Sequence[Volume], contract: DataContract
) -> list[TadiffError]:
    """What is wrong with the grids, with the advice to resample where that would help."""
    volumes = distinct([*images, *masks])
    findings: list[TadiffError] = [*grid_findings(volumes)]
    reference = images[0]
    try:
        # The others share this grid, or are refused for that.
        check_spacing(
            reference.affine, contract.spacing_mm, contract.spacing_tolerance, reference.label
        )
    except GeometryError as error:
        findings.append(error)
    last = images[-len(MODALITIES)]
    if findings and not resampling_findings(volumes, last, contract.orientation):
        for finding in findings:
            if finding.code != "TD3202":
                finding.fix = (
                    f"resample all images and masks of the case to {contract.spacing_mm:g} mm "
                    "voxels first; `tadiff-rt predict --resample` does that for images that are "
                    "registered to each other"
                )
    return findings


def check_images(
    images: Sequence[Volume], contract: DataContract, findings: Sequence[TadiffError]
) -> dict[int, Range]:
    """The range of every image by id(volume): a session repeated as padding is measured once.

    Args:
        findings: on the grids; raised together with those on single images.
    """
    findings = [*findings]
    depths = [grid_of(volume, contract.orientation).shape[2] for volume in images]
    num_slices = min(depths)
    if num_slices < contract.min_slices:
        findings.append(
            GeometryError(
                "TD3208",
                f"the image has {num_slices} axial slices, at least {contract.min_slices} are "
                "needed",
                where=images[depths.index(num_slices)].label,
                fix="give the whole head",
            )
        )
    ranges = {}
    for volume in distinct(images):
        try:
            ranges[id(volume)] = measure_range(volume.data, contract.percentiles, volume.label)
        except TadiffError as error:
            findings.append(error)
    raise_findings(findings)
    return ranges


def remarks_on(sessions: Sequence[Session], num_foreground: int) -> list[str]:
    """What is odd and no reason to refuse a case; `num_foreground`: voxels of the brain."""
    notes = []
    for session in sessions:
        digests = {session.images[modality].sha256 for modality in MODALITIES}
        if len(digests) < len(MODALITIES):
            notes.append(f"W3130: {session.name}: several modalities hold the same voxels")
        if session.mask is not None:
            share = int((session.mask.data > 0).sum()) / num_foreground
            if share > MAX_TUMOUR_FRACTION:
                notes.append(f"W3128: {session.name}: tumour covers {share:.0%} of the brain")
    return list(dict.fromkeys(notes))
