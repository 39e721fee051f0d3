"""What a result must be: absent, or every file as its manifest says and readable to its end."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

MANIFEST = "forecast.json"
TIMES = ("seconds",)
"""Entries of a manifest, at any depth, that differ from run to run."""


def whole(folder: Path) -> bool:
    """False where there is no `folder`.

    Raises:
        AssertionError: it is not a complete result.
    """
    if not folder.exists():
        return False
    manifest = json.loads((folder / MANIFEST).read_bytes())
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    assert found == {MANIFEST, *manifest["files"]}
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert len(data) == entry["bytes"], name
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], name
        _opens(folder / name, data)
    return True


def _opens(path: Path, data: bytes) -> None:
    """Reads a file to its end with the library that its users have."""
    if path.name.endswith(".nii.gz"):
        assert gzip.decompress(data)  # its checksum is behind the last voxel
        image = nib.load(path)
        assert np.isfinite(np.asanyarray(image.dataobj)).all(), path.name
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
    elif path.suffix == ".json":
        json.loads(data)
    elif path.suffix == ".tsv":
        rows = data.decode("utf-8").split("\n")
        assert rows.pop() == "", f"{path.name} breaks off"
        assert len({row.count("\t") for row in rows}) == 1, path.name
    elif path.suffix == ".html":
        assert data.rstrip().endswith(b"</html>"), path.name


def content(folder: Path) -> dict[str, Any]:
    """Bytes of every file of a result, and its manifest but for times: equal for equal runs."""
    files: dict[str, Any] = {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != MANIFEST
    }
    return {**files, MANIFEST: _without_times(json.loads((folder / MANIFEST).read_bytes()))}


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in TIMES}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def temporaries(*folders: Path) -> list[str]:
    """Names, at any depth, that no result and no journal has."""
    return sorted(
        str(path) for folder in folders for path in folder.rglob(".*") if ".tadiff-" in path.name
    )
