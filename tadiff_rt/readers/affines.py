"""Where a NIfTI header puts its voxels: qform, sform, and what to do when they disagree."""

from typing import Any

import numpy as np
from nibabel.quaternions import fillpositive, quat2mat
from numpy.typing import NDArray

from tadiff_rt.case import ReadOptions
from tadiff_rt.errors import GeometryError, NiftiError
from tadiff_rt.geometry import corner_shift_mm, spacing_of

Affine = NDArray[np.float64]

MAX_SHEAR = 1e-3
"""Largest cosine between two voxel axes; float32 rounding alone leaves about 1e-6."""
MAX_CONFLICT_VOXELS = 0.5
MAX_OFFSET_MM = 1e5
MIN_MICRON_EDGE_MM = 0.05
QUATERNION_THRESHOLD = -3 * float(np.finfo(np.float32).eps)
"""How far 1 - (b2 + c2 + d2) may fall below 0 by rounding; the same slack as nibabel's."""
MM_PER_UNIT = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}
"""Of xyzt_units: unknown (millimetres by custom), metre, millimetre, micron."""
UNIT_NAMES = {1: "metres", 3: "microns"}


def read_affine(
    hdr: Any,
    shape: tuple[int, int, int],
    options: ReadOptions,
    label: str,
    notes: list[str],
) -> Affine:
    """Voxel index -> RAS+ millimetres: the sform, or the qform where there is no sform.

    Args:
        hdr: nibabel header, unchecked.
        notes: what had to be assumed or relaxed is appended.

    Raises:
        GeometryError: TD3203 sheared, TD3204 unusable, TD3205 absent, TD3206 contradictory.
        NiftiError: TD3120, voxels in microns that are none.
    """
    scale = unit_scale(hdr)
    codes = {form: int(hdr[f"{form}_code"]) for form in ("sform", "qform")}
    for form, code in codes.items():
        if not 0 <= code <= 5:
            raise GeometryError(
                "TD3204", f"{form}_code is {code}, defined are 0 to 5", where=label
            )
    present = [form for form, code in codes.items() if code > 0]
    chosen = [form for form in present if options.affine in ("agree", form)]
    if not chosen:
        return _without_orientation(hdr, present, scale, options, label, notes)
    affines = [_scaled(_FORMS[form](hdr, label), scale, form, label) for form in chosen]
    if len(affines) == 2:
        _require_agreement(affines[0], affines[1], shape, label)
    elif len(present) == 2:
        notes.append(f"{label}: {chosen[0]} used, the other orientation ignored as asked for")
    _require_orthogonal(affines[0], chosen[0], label)
    _note_units(hdr, affines[0], label, notes)
    return affines[0]


def unit_scale(hdr: Any) -> float:
    """Millimetres in one spatial unit of the header."""
    return MM_PER_UNIT.get(int(hdr["xyzt_units"]) & 7, 1.0)


def _sform(hdr: Any, label: str) -> Affine:
    affine = np.eye(4)
    affine[:3] = _floats(hdr, *(f"srow_{axis}" for axis in "xyz"))
    return affine


def _qform(hdr: Any, label: str) -> Affine:
    """NIfTI-1 method 2; a qfac of 0 stands for 1, as the standard says."""
    quaternion = _floats(hdr, *(f"quatern_{part}" for part in "bcd"))
    offset = _floats(hdr, *(f"qoffset_{axis}" for axis in "xyz"))
    qfac = float(_floats(hdr, "pixdim")[0, 0])
    edges = _edges(hdr, "qform", label)
    if qfac not in (-1.0, 0.0, 1.0):
        raise _unusable("qform", f"qfac (pixdim[0]) is {qfac:g}, expected 1 or -1", label)
    norm2 = float(quaternion @ quaternion)
    if not 1 - norm2 >= QUATERNION_THRESHOLD:
        reason = f"the quaternion is not a rotation: b2 + c2 + d2 = {norm2:.4g}, at most 1"
        raise _unusable("qform", reason, label)
    rotation = quat2mat(fillpositive(quaternion, QUATERNION_THRESHOLD))
    affine = np.eye(4)
    affine[:3, :3] = rotation * (edges * (1, 1, qfac or 1.0))
    affine[:3, 3] = offset
    return affine


_FORMS = {"sform": _sform, "qform": _qform}


def _floats(hdr: Any, *names: str) -> NDArray[np.float64]:
    # A damaged field may hold a signalling NaN, which numpy warns of.
    with np.errstate(invalid="ignore"):
        return np.array([hdr[name] for name in names]).astype(np.float64)


def _edges(hdr: Any, form: str, label: str) -> NDArray[np.float64]:
    edges = _floats(hdr, "pixdim")[0, 1:4]
    if not (np.isfinite(edges).all() and (edges > 0).all()):
        given = ", ".join(f"{edge:g}" for edge in edges)
        raise _unusable(form, f"voxel edges (pixdim) are {given}, expected all > 0", label)
    return edges


def _scaled(affine: Affine, scale: float, form: str, label: str) -> Affine:
    """`affine` in millimetres, once it is known to be one."""
    if not np.isfinite(affine).all():
        raise _unusable(form, "it holds NaN or infinite numbers", label)
    # Units apply to world coordinates: rotation, scaling and offset alike.
    affine = np.diag([scale, scale, scale, 1.0]) @ affine
    linear = affine[:3, :3]
    edges = np.linalg.norm(linear, axis=0)
    if not (edges > 0).all():
        raise _unusable(form, "a voxel axis has length 0", label)
    if not abs(np.linalg.det(linear / edges)) > 1e-3:
        raise _unusable(form, "its axes are not independent (singular matrix)", label)
    if not np.abs(affine[:3, 3]).max() <= MAX_OFFSET_MM:
        raise _unusable(form, f"its origin is over {MAX_OFFSET_MM:g} mm away", label)
    return affine


def _unusable(form: str, reason: str, label: str) -> GeometryError:
    other = "qform" if form == "sform" else "sform"
    return GeometryError(
        "TD3204",
        f"the {form} cannot be used: {reason}",
        where=label,
        fix=f"repair the header, or pass --affine={other} if that one is right",
    )


def _without_orientation(
    hdr: Any,
    present: list[str],
    scale: float,
    options: ReadOptions,
    label: str,
    notes: list[str],
) -> Affine:
    if present:
        raise GeometryError(
            "TD3205",
            f"the header has no {options.affine}, which --affine={options.affine} asks for; "
            f"it has a {present[0]}",
            where=label,
            fix=f"pass --affine={present[0]}, or drop the option",
        )
    if not options.assume_ras:
        raise GeometryError(
            "TD3205",
            "the header gives no orientation: qform_code and sform_code are both 0, so left and "
            "right are unknown",
            where=label,
            fix="export the image again, or pass --assume-ras if its axes run to right, anterior "
            "and superior (recorded in the report)",
        )
    notes.append(f"{label}: no orientation in the header; axes taken for R, A, S")
    affine = np.diag([*_edges(hdr, "pixdim", label), 1.0])
    affine = _scaled(affine, scale, "pixdim", label)
    _note_units(hdr, affine, label, notes)
    return affine


def _require_agreement(
    sform: Affine, qform: Affine, shape: tuple[int, int, int], label: str
) -> None:
    shift_mm = corner_shift_mm(sform, qform, shape)
    voxels = shift_mm / min(spacing_of(sform))
    if voxels > MAX_CONFLICT_VOXELS:
        raise GeometryError(
            "TD3206",
            f"qform and sform disagree by up to {shift_mm:.3g} mm ({voxels:.3g} voxels, at most "
            f"{MAX_CONFLICT_VOXELS:g} is allowed)",
            where=label,
            fix="pass --affine=sform or --affine=qform, whichever is right",
        )


def _require_orthogonal(affine: Affine, form: str, label: str) -> None:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > MAX_SHEAR:
        raise GeometryError(
            "TD3203",
            f"the {form} is sheared: the cosine between two voxel axes is {shear:.3g}, at most "
            f"{MAX_SHEAR:g} is allowed",
            where=label,
            fix="resample the image to orthogonal axes"
            + (", or pass --affine=qform if that one is right" if form == "sform" else ""),
        )


def _note_units(hdr: Any, affine: Affine, label: str, notes: list[str]) -> None:
    code = int(hdr["xyzt_units"]) & 7
    edge_mm = min(spacing_of(affine))
    if code == 3 and edge_mm < MIN_MICRON_EDGE_MM:
        raise NiftiError(
            "TD3120",
            f"the header gives lengths in microns, so a voxel measures {edge_mm:.3g} mm",
            where=label,
            fix="set xyzt_units to millimetres (2) if that is what the numbers are",
        )
    if code in UNIT_NAMES:
        notes.append(
            f"W3120: {label}: lengths are given in {UNIT_NAMES[code]} and converted to mm"
        )
    elif code not in MM_PER_UNIT:
        notes.append(f"W3120: {label}: length unit {code} is not defined; taken for mm")
