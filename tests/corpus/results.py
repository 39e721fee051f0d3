"""What a forecast gave, from a result folder or from Python, in one form, and how two compare."""

import gzip
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import io_orientation

MANIFEST = "forecast.json"
CLOSE = 1e-5
REQUEST = re.compile(r"(sub|ses)-[A-Za-z0-9]+_|(?<=predicted)(TMZ|CRT|none)")
"""What names of volumes say of patient, day and treatment."""


@dataclass
class Result:
    """One forecast."""

    volumes: dict[str, tuple[np.ndarray, np.ndarray]]
    """By name without patient, day and treatment: voxels and affine."""
    samples_ml: list[float]
    notes: list[str]
    complaints: list[str] = field(default_factory=list)
    """What is wrong with it whatever the case."""


def read_folder(folder: Path) -> Result:
    """The result that a command wrote, checked file by file."""
    try:
        report = json.loads((folder / MANIFEST).read_text(), parse_constant=_no_number)
    except (OSError, ValueError) as error:
        return Result({}, [], [], [f"no manifest: {error}"])
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / MANIFEST
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    listed = {name: entry["sha256"] for name, entry in report["files"].items()}
    wrong = [name for name in digests.keys() | listed if digests.get(name) != listed.get(name)]
    complaints = [f"{name} is not what the manifest says" for name in wrong]
    volumes = {}
    for name, content in files.items():
        if name.endswith(".nii.gz"):
            image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
            complaints += _image_complaints(name, image)
            key = REQUEST.sub("", name.rpartition("/")[2])
            volumes[key] = (np.asarray(image.dataobj), image.affine)
    complaints += [] if volumes else ["no volumes"]
    said = [entry for entry in _every(report, "volume_ml") if isinstance(entry, dict)]
    samples = [ml for entry in said for ml in entry.get("samples") or ()]
    return Result(volumes, samples, _notes(report), complaints)


def _notes(report: Any) -> list[str]:
    return list(dict.fromkeys(note for notes in _every(report, "notes") for note in notes))


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _every(value: Any, key: str) -> list[Any]:
    """The values of `key` at any depth."""
    parts = list(value.values()) if isinstance(value, dict) else value
    found = [value[key]] if isinstance(value, dict) and key in value else []
    if isinstance(parts, list):
        found += [deep for part in parts for deep in _every(part, key)]
    return found


def _image_complaints(name: str, image: Any) -> list[str]:
    voxels, affine = np.asarray(image.dataobj), image.affine
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    checks = {
        "not finite": np.isfinite(voxels).all(),
        "axes not perpendicular": np.abs(axes.T @ axes - np.eye(3)).max() <= 1e-5,
        "qform is not sform": np.allclose(image.get_qform(), image.get_sform(), atol=1e-4),
    }
    return [f"{name}: {what}" for what, is_fine in checks.items() if not is_fine]


def from_forecast(forecast: Any) -> Result:
    """What `Forecaster.predict` returned."""
    named = dict(zip(("t1", "t1c", "flair"), forecast.mean, strict=True))
    named |= {"probability": forecast.tumour_probability, "mask": forecast.tumour_mask}
    complaints = [f"{k}: not finite" for k, v in named.items() if not np.isfinite(v).all()]
    return Result(
        {name: (voxels, forecast.affine) for name, voxels in named.items()},
        list(forecast.volume_ml.samples_ml),
        list(forecast.report["notes"]),
        complaints,
    )


def on_grid_of(result: Result, t1: Path) -> list[str]:
    """Where the result does not lie on the voxels of an image."""
    expected = nibabel.load(t1)
    complaints = []
    for name, (voxels, affine) in result.volumes.items():
        if voxels.shape != expected.shape[:3]:
            complaints.append(f"{name} has shape {voxels.shape}, the T1 {expected.shape}")
        if not np.allclose(affine, expected.affine, atol=1e-3):
            complaints.append(f"{name} has another affine than the T1")
    return complaints


def compare(how: str, result: Result, like: Result) -> list[str]:
    """In what respect `result` is not equal, mapped, close or other to `like`."""
    if how == "complete":
        return []
    if how == "first":
        same = result.samples_ml[:1] == like.samples_ml[:1]
        return [] if same else [f"first sample {result.samples_ml[:1]}, not {like.samples_ml[:1]}"]
    if result.volumes.keys() != like.volumes.keys():
        return [f"volumes are {sorted(result.volumes)}, not {sorted(like.volumes)}"]
    pairs = {name: (_form(how, result, name), _form(how, like, name)) for name in like.volumes}
    if how == "overlap":
        return [what for pair in pairs.items() for what in _overlap(*pair)]
    if how == "other":
        same = all(np.array_equal(a, b) for (a, _), (b, _) in pairs.values())
        return ["nothing differs"] if same else []
    complaints = []
    for name, ((a, here), (b, there)) in pairs.items():
        allowed = CLOSE * float(np.abs(b.astype(np.float64)).max()) if how == "close" else 0.0
        if a.shape != b.shape:
            complaints.append(f"{name}: shape {a.shape}, not {b.shape}")
        elif np.abs(a.astype(np.float64) - b).max() > allowed:
            complaints.append(f"{name}: {int((a != b).sum())} voxels differ")
        if not np.allclose(here, there, atol=1e-4):
            complaints.append(f"{name}: another affine")
    if how != "close" and not np.allclose(result.samples_ml, like.samples_ml, rtol=1e-9):
        complaints.append(f"volume {result.samples_ml} ml, not {like.samples_ml}")
    return complaints


Pair = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def _overlap(name: str, pair: Pair) -> list[str]:
    """Where two volumes differ on the voxels that both grids have, or the larger has no border.

    The grids are those of one image with planes added or cut off.
    """
    (a, here), (b, there) = pair
    start = np.rint((np.linalg.inv(there) @ here)[:3, 3]).astype(int)
    first, stop = np.maximum(start, 0), np.minimum(start + a.shape, b.shape)
    of_b = b[tuple(slice(i, j) for i, j in zip(first, stop, strict=True))]
    of_a = a[tuple(slice(i, j) for i, j in zip(first - start, stop - start, strict=True))]
    complaints = []
    if not np.array_equal(of_a, of_b):
        complaints.append(f"{name}: {int((of_a != of_b).sum())} voxels differ")
    beyond = [axis for axis in (0, 1) if a.shape[axis] > b.shape[axis]]
    if any(np.moveaxis(a, axis, 0)[[0, -1]].any() for axis in beyond):
        complaints.append(f"{name}: something lies beyond the window")
    return complaints


def _form(how: str, result: Result, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine; on RAS axes where storage does not count."""
    voxels, affine = result.volumes[name]
    if how != "mapped":
        return voxels, affine
    image = nibabel.Nifti1Image(voxels.astype(np.float64), affine)
    turned = image.as_reoriented(io_orientation(affine))
    return np.asarray(turned.dataobj), turned.affine
