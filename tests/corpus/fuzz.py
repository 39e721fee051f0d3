"""Cases that stand for many damaged files, read one after the other by the reader alone."""

import time
from typing import Any

import numpy as np

from tests.corpus.case import CorpusCase, Either
from tests.corpus.phantom import Data


def run_files(case: CorpusCase, data: Data, num_files: int) -> dict[str, Any]:
    """Reads variants of one file; each must be refused as an input or be a usable volume."""
    from tadiff_rt.case import ReadOptions
    from tadiff_rt.errors import InputDataError
    from tadiff_rt.readers.nifti import read_volume

    ending = case.ending
    if not isinstance(ending, Either):
        raise TypeError(f"{case.key} has one ending; this is for many")
    options = ReadOptions(max_voxels=10**6)
    complaints: list[str] = []
    codes: list[str] = []
    start = time.process_time()
    for data.variant in range(num_files):
        case.spoil(data)
        path = next(data.image().parent.glob("*FLAIR.nii*"))
        try:
            volume = read_volume(path, options, "flair")
        except InputDataError as error:
            codes.append(error.code)
            continue
        except Exception as error:  # whatever else escapes is what this looks for
            complaints.append(f"file {data.variant}: {type(error).__name__}: {error}")
            continue
        if not ending.may_be_accepted or not _usable(volume.data, volume.affine):
            complaints.append(f"file {data.variant} was read")
    seconds = (time.process_time() - start) / max(num_files, 1)
    return {"complaints": complaints, "codes": codes, "cpu_seconds": seconds}


def _usable(voxels: np.ndarray, affine: np.ndarray) -> bool:
    """Whether a forecast could be made of it: finite, and on perpendicular axes."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    straight = np.abs(axes.T @ axes - np.eye(3)).max() <= 1e-3
    return bool(np.isfinite(voxels).all() and np.isfinite(affine).all() and straight)
