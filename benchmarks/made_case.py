"""A made-up patient and a made-up engine bundle of any size, for what no bundled one is.

Times do not depend on what images show or weights mean. The bundle has no certificate: exporting
one takes minutes and says nothing of speed. So it is compared with the network in float64 whenever
it is loaded, as every artefact is that was not certified on the backend that runs it.
"""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_bundle import network
from tadiff_export.certify.reference import Settings
from tadiff_export.checkpoint import Asked, load_any
from tadiff_export.half_graph import ENDS
from tadiff_export.norms import lower_group_norms
from tadiff_export.onnx import QUERY_CHUNK, denoiser_to_onnx
from tadiff_export.precision import to_half
from tadiff_export.split import split
from tadiff_export.wanted import Wanted
from tadiff_export.workshop import Workshop
from tadiff_rt.card import ModelCard
from tadiff_rt.certificate import Precision
from tadiff_rt.console import progress_bar
from tadiff_rt.preprocess import DataContract
from tadiff_rt.write import ResultFolder, write_bytes
from tadiff_train.checkpoint import save_checkpoint
from tadiff_train.network import NetworkConfig

SUBJECT = "sub-made"
SESSIONS = ((0, "CRT"), (60, "TMZ"), (120, "TMZ"))
"""Day and treatment."""
SUFFIXES = ("T1w", "ce-gadolinium_T1w", "FLAIR")
HEAD = 0.8
"""Edge of the head, as a share of that of the window."""
TUMOUR = 0.15
"""Radius, the same."""


def card_of(size: int, spacing_mm: float = 1.0, min_slices: int = 8) -> ModelCard:
    """Of a network that was trained on nothing."""
    data = DataContract(size=size, spacing_mm=spacing_mm, min_slices=min_slices)
    return ModelCard(name="benchmark", trained_on="nothing: made-up weights", data=data)


def write_checkpoint(run: Path, config: NetworkConfig, card: ModelCard) -> Path:
    """A run folder with the weights of `gpu_bundle.network`."""
    save_checkpoint(run, network(config), card, {"step": 0})
    return run


def write_bundle(run: Path, out: Path, precisions: Sequence[Precision] = ("fp32",)) -> Path:
    """The ONNX graphs of a checkpoint as a bundle without certificates.

    Graphs in half precision have what an export keeps in fp32 at its second attempt.
    """
    quiet = lambda title: progress_bar(title, quiet=True)  # noqa: E731
    loaded = load_any(run, Asked())
    workshop = Workshop(loaded, Wanted(), Settings(), quiet, lambda message: None)
    model = denoiser_to_onnx(split(loaded.net)[1], loaded.card.data.size, query_chunk=QUERY_CHUNK)
    ends = [node.name for node in model.graph.node if node.name.startswith(ENDS)]
    draft = workshop.judge.draft
    for precision in precisions:
        typed = model if precision == "fp32" else to_half(model, precision, ends)
        lowered = lower_group_norms(typed)
        data = workshop.graphs.stamped(lowered, precision)
        draft = draft.having(workshop.graphs.artefact(lowered, data, precision), data)
    with ResultFolder(out) as folder:
        for name, content in draft.files.items():
            write_bytes(folder.path / name, content)
        folder.complete(draft.manifest.model_dump(mode="json"))
    return out


def write_case(root: Path, size: int = 192, depth: int = 24, spacing_mm: float = 1.0) -> Path:
    """A BIDS subject of three sessions with a growing tumour in the middle of the slices.

    Args:
        size: edge of an axial slice, in voxels.
        depth: axial slices.

    Returns:
        The subject's folder.
    """
    affine = np.diag([-spacing_mm, spacing_mm, spacing_mm, 1.0])
    rows = ["session_id\tdays_from_baseline\ttreatment"]
    for number, (day, treatment) in enumerate(SESSIONS):
        name = f"ses-{number + 1:02d}"
        rows.append(f"{name}\t{day}\t{treatment}")
        head, tumour = _anatomy(size, depth, (number + 1) / len(SESSIONS))
        stem = f"{SUBJECT}_{name}"
        for m, suffix in enumerate(SUFFIXES):
            rng = np.random.default_rng([number, m])
            tissue = 700 + 100 * m + 40 * rng.standard_normal(head.shape) + 300 * tumour
            file = root / SUBJECT / name / "anat" / f"{stem}_{suffix}.nii.gz"
            _save(file, np.where(head, tissue, 0).astype(np.int16), affine)
        masks = root / "derivatives" / "manual" / SUBJECT / name / "anat"
        _save(masks / f"{stem}_desc-tumour_dseg.nii.gz", tumour.astype(np.uint8), affine)
    (root / SUBJECT / f"{SUBJECT}_sessions.tsv").write_text("\n".join(rows) + "\n")
    return root / SUBJECT


def _anatomy(size: int, depth: int, grown: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(size, size, depth) where there is head, and where tumour of a share of its last radius."""
    x, y, z = np.meshgrid(
        *(np.linspace(-1, 1, n) / edge for n, edge in ((size, HEAD), (size, HEAD), (depth, 1.0))),
        indexing="ij",
    )
    head = x**2 + (y / 0.9) ** 2 + (0.5 * z) ** 2 < 1
    radius = 2 * TUMOUR * grown
    tumour = (x - 0.3) ** 2 + (y + 0.2) ** 2 + (radius * z) ** 2 < radius**2
    return head, head & tumour


def _save(path: Path, data: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)
