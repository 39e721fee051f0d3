"""What a result says about itself: request, sources, sampling and notes, without identifiers."""

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from tadiff_rt.assembly import VolumeEstimate
from tadiff_rt.backends import Backend
from tadiff_rt.batches import Sampling
from tadiff_rt.bundle import Bundle
from tadiff_rt.case import MODALITIES, Case, Session
from tadiff_rt.runner import EnsembleResult, SampleSize


def model_report(bundle: Bundle, backend: Backend, choice: Sequence[str]) -> dict[str, Any]:
    """Which network was run, how, and why so."""
    manifest = bundle.manifest
    return {
        "tadiff": version("tadiff"),
        "backend": backend.description,
        "backend_choice": list(choice),
        "name": manifest.card.name,
        "trained_on": manifest.card.trained_on,
        "intended_use": manifest.card.intended_use,
        "bundle_manifest_sha256": bundle.manifest_sha256,
        "weights_sha256": manifest.weights_sha256,
    }


def counted(number: int, word: str) -> str:
    """ "1 slice" or "2 slices"."""
    return f"{number} {word}{'s' * (number != 1)}"


def volume_report(volume: VolumeEstimate, num_slices: int) -> dict[str, Any]:
    """The tumour volume, and what part of the head it covers."""
    return {
        "mean": volume.mean_ml,
        "interval": [volume.low_ml, volume.high_ml],
        "level": volume.level,
        "samples": list(volume.samples_ml),
        "quantiles": volume.quantiles_ml,
        "interval_of_the_mean": volume.mean_interval_ml,
        "pairwise_dice": volume.pairwise_dice,
        "covers": counted(num_slices, "forecast slice"),
    }


def without_names(notes: Sequence[str], case: Case) -> list[str]:
    """`notes` with days in place of file and session names, which may identify the patient."""
    labels = {}
    for session in case.sessions:
        volumes = {**session.images, **({"mask": session.mask} if session.mask else {})}
        labels.update({v.label: f"{kind} of day {session.day}" for kind, v in volumes.items()})
    # A session may be named "3": only where a note ends a phrase with a name is it one.
    sessions = {session.name: f"day {session.day}" for session in case.sessions}
    name = re.compile(rf"(?<= )({'|'.join(map(re.escape, sessions))})(?=[,:]|$)")
    return [_replaced(note, labels) or name.sub(lambda m: sessions[m[1]], note) for note in notes]


def _replaced(note: str, labels: dict[str, str]) -> str:
    """`note` with the label that it is about replaced; empty if it is about none."""
    for label in sorted(labels, key=len, reverse=True):
        if label and label in note:
            return note.replace(label, labels[label])
    return ""


def session_report(session: Session) -> dict[str, Any]:
    """Day, treatment and voxel hashes of a source; no names."""
    return {
        "day": session.day,
        "treatment": session.treatment,
        "sha256": {modality: session.images[modality].sha256 for modality in MODALITIES},
    }


def sampling_report(
    sampling: Sampling,
    size: SampleSize,
    result: EnsembleResult,
    slices: tuple[int, ...],
    batch: int,
) -> dict[str, Any]:
    """How the ensemble was drawn."""
    plan, noise = sampling.plan, sampling.noise
    samples = len(result.tumour_voxels)
    return {
        "solver": plan.solver,
        "grid": plan.grid,
        "steps": plan.num_steps,
        "times": [round(t, 4) for t in plan.t.tolist()],
        "network_evaluations": plan.nfe * samples * len(slices),
        "samples": samples,
        "volume_ci": size.volume_ci,
        "seed": noise.seed,
        "coherence": noise.coherence,
        "latin": noise.latin is not None,
        "slices": list(slices),
        "batch": batch,
        "x0_range": sampling.x0_range,
    }
