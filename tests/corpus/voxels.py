"""V01 to V21: voxels that are no brain in scanner units, or an odd one."""

from collections.abc import Callable
from typing import Any

import nibabel
import numpy as np

from tests.corpus.case import Accepted, CorpusCase, Refused
from tests.corpus.phantom import Data, Voxels, head, save, scan

Change = Callable[[Voxels], Voxels]
BRAIN = head()
CENTRE = (12, 17, 11)
NO_OPTION = "There is no --background: what is not skull-stripped cannot be mended by a number."


def floats(data: Data) -> Voxels:
    return data.voxels().astype(np.float64)


def with_voxel(data: Data, *values: float) -> Voxels:
    """Some voxels of the last FLAIR replaced."""
    voxels = floats(data).astype(np.float32)
    for i, value in enumerate(values):
        voxels[CENTRE[0], CENTRE[1], CENTRE[2] + i] = value
    return voxels


def z_scored(voxels: Voxels) -> Voxels:
    brain = voxels[voxels > 0]
    return np.where(voxels > 0, (voxels - brain.mean()) / brain.std(), 0)


def one_voxel() -> Voxels:
    voxels = np.zeros(BRAIN.shape)
    voxels[CENTRE] = 500
    return voxels


def checkerboard() -> Voxels:
    return (np.indices(BRAIN.shape).sum(0) % 2 - 0.5) * 2e4


def quantised(levels: tuple[float, ...]) -> Voxels:
    return np.where(BRAIN, np.random.default_rng(4).choice(levels, size=BRAIN.shape), 0)


def refused(id: str, what: str, code: str, change: Change, differs: str = "") -> CorpusCase:
    """The last FLAIR changed, in float32."""
    return CorpusCase(
        id=id,
        what=what,
        spoil=lambda d: d.put(np.asarray(change(floats(d)), np.float32)),
        ending=Refused((code,)),
        differs=differs,
    )


NONFINITE = (
    CorpusCase(
        id="V01",
        what="one NaN",
        spoil=lambda d: d.put(with_voxel(d, np.nan)),
        ending=Refused(
            ("TD3107",), says=("1 non-finite voxels (1 NaN, 0 Inf)", "--nonfinite=zero")
        ),
    ),
    CorpusCase(
        id="V01",
        what="one NaN, --nonfinite=zero",
        spoil=lambda d: d.put(with_voxel(d, np.nan)),
        options={"nonfinite": "zero"},
        ending=Accepted(
            "equal",
            like=CorpusCase(
                id="V01", what="-", spoil=lambda d: d.put(with_voxel(d, 0)), ending=Accepted()
            ),
            note="1 non-finite voxels (1 NaN, 0 Inf)",
        ),
    ),
    CorpusCase(
        id="V02",
        what="one infinite voxel",
        spoil=lambda d: d.put(with_voxel(d, np.inf)),
        ending=Refused(("TD3107",), says=("0 NaN, 1 Inf",)),
    ),
    CorpusCase(
        id="V02",
        what="two infinite voxels of both signs",
        spoil=lambda d: d.put(with_voxel(d, np.inf, -np.inf)),
        ending=Refused(("TD3107",)),
    ),
    refused("V03", "all NaN", "TD3107", lambda v: v * np.nan),
)
NO_SCAN = (
    refused("V04", "constant brain", "TD3124", lambda v: BRAIN * 400.0),
    refused("V04", "constant but for one voxel", "TD3124", lambda v: BRAIN * 400.0 + one_voxel()),
    refused("V05", "all zero", "TD3125", lambda v: v * 0),
    refused("V06", "all negative", "TD3125", lambda v: -v - 10),
    refused("V06", "brain negative", "TD3125", lambda v: -v),
    refused("V07", "background -1024", "TD3126", lambda v: np.where(BRAIN, v, -1024), NO_OPTION),
    refused("V07", "in [-1, 1]", "TD3126", lambda v: 2 * v / v.max() - 1, NO_OPTION),
    refused("V08", "brain less 300", "TD3127", lambda v: np.where(BRAIN, v - 300, 0)),
    refused("V09", "brain z-scored", "TD3127", z_scored),
    CorpusCase(
        id="V09",
        what="whole image z-scored",
        spoil=lambda d: d.put(((floats(d) - floats(d).mean()) / floats(d).std()).astype("f4")),
        ending=Refused(("TD3126",)),
        differs="TD3126 in place of TD3127: its background is not 0, which is found first.",
    ),
    refused("V11", "50 added everywhere", "TD3126", lambda v: v + 50),
    refused(
        "V11", "noise in the air", "TD3126", lambda v: v + np.random.default_rng(0).random(v.shape)
    ),
    refused("V12", "one voxel", "TD3125", lambda v: one_voxel()),
    refused(
        "V20", "+-1e4 in a checkerboard on 500", "TD3127", lambda v: v + BRAIN * checkerboard()
    ),
)


def last_but_one(data: Data, factor: float) -> None:
    """The FLAIR of the session before the last in other units; the result has none of it.

    Whole numbers times a power of two lose no bit, not even where numbers are denormal.
    """
    path = data.image(3)
    save(path, (np.asarray(nibabel.load(path).dataobj) * factor).astype(np.float32))


def without_slices(data: Data) -> None:
    """Two slices inside the brain empty in every image."""
    for path in data.images():
        voxels = np.asarray(nibabel.load(path).dataobj).copy()
        voxels[:, :, 11:13] = 0
        save(path, voxels)


def hot(data: Data, value: float) -> None:
    """Tissue of four grey levels, whose percentiles no single voxel moves, and one voxel."""
    voxels = quantised((200, 400, 600, 800))
    voxels[CENTRE] = value
    save(data.image(3), voxels.astype(np.float32))


def masks_of(data: Data, change: Change) -> None:
    for path in data.masks():
        save(path, change(np.asarray(nibabel.load(path).dataobj)))


def odd(
    id: str, what: str, spoil: Callable[[Data], object], ending: Accepted, **more: Any
) -> CorpusCase:
    return CorpusCase(id=id, what=what, spoil=spoil, ending=ending, **more)


FAR_SLICES = {"slices": "4:9"}
"""Canonical slices, from superior to inferior, that do not hold the centre."""
EQUAL = Accepted("equal", no_note=True)
ODD = (
    odd(
        "V10",
        "one voxel of 1e9",
        lambda d: hot(d, 1e9),
        Accepted(
            "equal",
            like=odd("V10", "-", lambda d: hot(d, 800), Accepted(), options=FAR_SLICES),
        ),
        options=FAR_SLICES,
    ),
    odd("V13", "voxels times 2^116, 1e35", lambda d: last_but_one(d, 2.0**116), EQUAL),
    odd("V13", "voxels times 2^-149, denormal", lambda d: last_but_one(d, 2.0**-149), EQUAL),
    CorpusCase(
        id="V13",
        what="voxels times 1e36, beyond float32",
        spoil=lambda d: d.put(floats(d) * 1e36),
        ending=Refused(("TD3107",)),
    ),
    odd(
        "V14",
        "no tumour in any mask",
        lambda d: masks_of(d, np.zeros_like),
        Accepted("equal", no_note=True),
    ),
    odd(
        "V15",
        "all of the brain is tumour",
        lambda d: save(d.mask(), BRAIN.astype(np.uint8)),
        Accepted("equal", note="W3128"),
    ),
    CorpusCase(
        id="V15",
        what="the whole image is tumour",
        spoil=lambda d: save(d.mask(), np.ones(BRAIN.shape, np.uint8)),
        ending=Refused(("TD3211",)),
        differs="A mask that reaches beyond the window of the network is refused, with the count.",
    ),
    odd(
        "V16",
        "four grey levels",
        lambda d: d.put(quantised((100, 200, 300, 400)).astype("i2")),
        Accepted(),
    ),
    odd("V16", "two grey levels", lambda d: d.put(quantised((1, 2)).astype("i2")), Accepted()),
    odd("V17", "two empty slices in the brain", without_slices, Accepted()),
    odd(
        "V17",
        "two empty slices in the brain, all asked for",
        without_slices,
        Accepted(),
        options={"slices": "all"},
    ),
    odd(
        "V19",
        "float64 of over 24 bits",
        lambda d: d.put(floats(d) / 7),
        Accepted(
            "equal",
            like=odd("V19", "-", lambda d: d.put((floats(d) / 7).astype("f4")), Accepted()),
            note="rounded",
        ),
    ),
    odd(
        "V20",
        "+-1e4 in a checkerboard on 20000",
        lambda d: d.put((BRAIN * (20000 + checkerboard())).astype("f4")),
        Accepted(),
    ),
    odd(
        "V21",
        "the same voxels in all modalities",
        lambda d: [save(p, scan(40)) for p in d.images(4)],
        Accepted("other", note="W3130"),
    ),
)
CASES = (*NONFINITE, *NO_SCAN, *ODD)
