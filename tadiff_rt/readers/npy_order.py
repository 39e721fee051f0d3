"""Whether the channels of an image array are modality by modality, as published, or by session.

Both orders have one shape, and the wrong one gives plausible nonsense: T1 of three sessions for
T1, T1c and FLAIR of one. Sessions are interchangeable, modalities are not: how much two channels
correlate depends on their two modalities and on whether they are of one session, which lie
exactly on each other, and hardly on which session. Of the two orders, that is the right one in
which such pairs correlate most alike. It takes no threshold. Sessions that are not registered to
each other blur the difference: with three modalities they may be misjudged, while T2, which is
dark where T1 is light, keeps it clear.
"""

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.errors import TableError
from tadiff_rt.readers.npy_file import NpyFile

PROFILE_EDGE = 24
"""A channel is compared by about so many planes, of so many blocks a side."""
MIN_BLOCKS = 20


def check_modality_major(image: NpyFile, num_sessions: int, notes: list[str]) -> None:
    """Refuses an array whose channels are ordered by session.

    Only every so manyth plane is read.

    Args:
        image: (modalities * sessions, h, w, d).
        notes: gets a sentence where nothing can be said.

    Raises:
        TableError: TD3322, the channels are ordered by session.
        NiftiError: the file cannot be read.
    """
    channels = image.shape[0]
    num_modalities = channels // num_sessions
    if num_sessions == 1:
        return  # both orders are the same
    profiles = np.stack([_profile(image, channel) for channel in range(channels)])
    inside = np.isfinite(profiles).all(axis=0)
    by_modality = by_session = math.nan
    if inside.sum() >= MIN_BLOCKS:
        matrix = _correlations(profiles[:, inside])
        c = np.arange(channels)
        by_modality = _unlikeness(matrix, c // num_sessions, c % num_sessions)
        by_session = _unlikeness(matrix, c % num_modalities, c // num_modalities)
    if by_session < by_modality:
        raise TableError(
            "TD3322",
            "the channels are ordered by session, expected by modality: correlations of pairs "
            f"that should be alike differ by {by_modality:.3f} as stored, by {by_session:.3f} if "
            "channel = session * modalities + modality",
            where=image.label,
            fix=f"save image.reshape({num_sessions}, {num_modalities}, h, w, d).swapaxes(0, 1)"
            f".reshape({channels}, h, w, d); if the order is right, register the sessions",
        )
    if math.isnan(by_modality):
        notes.append("the order of the channels of the arrays could not be checked")


def _profile(image: NpyFile, channel: int) -> NDArray[np.float64]:
    """Means of blocks that lie in the brain; NaN elsewhere, not finite where a voxel is not."""
    _, h, w, d = image.shape
    planes = image.planes(channel, max(1, h // PROFILE_EDGE))
    edges = [max(1, n // PROFILE_EDGE) for n in (w, d)]
    w, d = w - w % edges[0], d - d % edges[1]
    with np.errstate(over="ignore", invalid="ignore"):
        # Voxels as they will be read: what single precision cannot hold is infinite.
        voxels = planes[:, :w, :d].astype(np.float32).astype(np.float64)
        blocks = voxels.reshape(len(planes), w // edges[0], edges[0], -1, edges[1])
        # A block at the border of a brain says more of the mask that a session shares than of it.
        whole = blocks.min(axis=(2, 4)) > 0
        return np.where(whole, blocks.mean(axis=(2, 4)), np.nan).ravel()


def _correlations(profiles: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = profiles - profiles.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1))
    if not norms.all():
        return np.full((len(profiles), len(profiles)), np.nan)  # a constant correlates with none
    matrix: NDArray[np.float64] = centred @ centred.T / np.outer(norms, norms)
    return matrix


def _unlikeness(
    matrix: NDArray[np.float64], modality: NDArray[np.int64], session: NDArray[np.int64]
) -> float:
    """Root mean square deviation of a pair's correlation from the mean of its kind."""
    kinds: dict[tuple[int, int, bool], list[float]] = {}
    for a, b in itertools.combinations(range(len(matrix)), 2):
        first, second = sorted((int(modality[a]), int(modality[b])))
        kind = (first, second, bool(session[a] == session[b]))
        kinds.setdefault(kind, []).append(float(matrix[a, b]))
    deviations = np.concatenate([np.array(v) - np.mean(v) for v in kinds.values()])
    return float(np.sqrt(np.mean(deviations**2)))
