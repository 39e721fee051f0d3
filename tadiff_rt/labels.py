"""What the labels of a tumour mask mean: declared by name, by a table or by a layout, not guessed.

The same number stands for different tissues in different data sets: 1 is oedema in one and
necrosis in another, and 4 enhancing tumour in one and the resection cavity in another. The network
learned one tumour, all its tissues merged (the published preprocessing takes any label > 0), so
only what is no tumour has to be told apart; a label that nobody explained could be anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tadiff_rt.case import Volume
from tadiff_rt.errors import GeometryError, UsageError, raise_findings

TUMOUR = "tumour"
OEDEMA = "oedema"
CORE = "necrosis"
ENHANCING = "enhancing tumour"
CAVITY = "resection cavity"
MAX_SHOWN = 10
"""Labels that a message lists."""


@dataclass(frozen=True)
class Convention:
    """What each label of a mask stands for; 0 is background in all of them."""

    name: str
    """As `ReadOptions.labels`, or the file that says so; empty where nothing was declared."""
    meanings: Mapping[int, str]
    """Tissue by label."""

    def __str__(self) -> str:
        listed = ", ".join(f"{label} {tissue}" for label, tissue in self.meanings.items())
        return f"{self.name} ({listed})"

    @property
    def note(self) -> str:
        """The sentence for `Case.notes`."""
        more = f"; the {CAVITY} is no tumour" if CAVITY in self.meanings.values() else ""
        return f"tumour labels: {self}{more}"


UNDECLARED = Convention("", {1: TUMOUR})
"""A mask of 0 and 1 needs no explanation."""
PUBLISHED = Convention("published", {1: OEDEMA, 2: CORE, 3: ENHANCING})
"""The published preprocessing of SAILOR, which reserves 2 and never writes it."""
HDGLIO = Convention("hdglio", {1: OEDEMA, 2: ENHANCING})
CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention("binary", {1: TUMOUR}),
        PUBLISHED,
        Convention("brats2021", {1: CORE, 2: OEDEMA, 4: ENHANCING}),
        Convention("brats2023", {1: CORE, 2: OEDEMA, 3: ENHANCING}),
        # Post-treatment, 1 to 4 called NETC, SNFH, ET and RC there.
        Convention("brats2024", {1: CORE, 2: OEDEMA, 3: ENHANCING, 4: CAVITY}),
        HDGLIO,
    )
}
"""By the name that `ReadOptions.labels` takes. BraTS until 2021, of 2023, and of 2024 on."""


def convention_named(name: str) -> Convention:
    """The convention called `name`; "" for none declared.

    Raises:
        UsageError: TD3005, there is no such convention.
    """
    if name and name not in CONVENTIONS:
        what = f"--labels {name[:40]!r} is unknown; known are {', '.join(CONVENTIONS)}"
        raise UsageError("TD3005", what, where="--labels")
    return CONVENTIONS[name] if name else UNDECLARED


def require_agreement(own: Convention, declared: str, where: str) -> None:
    """Refuses --labels that say something else than the data set itself.

    Args:
        own: what a layout, or a table beside the mask, says; it may know fewer labels.
        declared: `ReadOptions.labels`.
        where: what says it.

    Raises:
        UsageError: TD3005 an unknown convention, TD3007 another one.
    """
    convention = convention_named(declared)
    if declared and not own.meanings.items() <= convention.meanings.items():
        raise UsageError(
            "TD3007",
            f"--labels names {convention}, but the data have the labels of {own}",
            where=where,
            fix="leave out --labels",
        )


def tumour_masks(
    masks: Sequence[Volume], convention: Convention, notes: list[str]
) -> list[Volume]:
    """`masks` with the labels that are no tumour set to 0.

    Args:
        masks: of one case.
        convention: what their labels mean; UNDECLARED allows 1 alone.
        notes: gets what the convention was, where it was declared.

    Raises:
        GeometryError: TD3209, there are labels without a meaning: one finding a mask, or one for
            all of them where nothing was declared.
    """
    counts = [labels_in(mask) for mask in masks]
    strange = [
        (mask, count)
        for mask, count in zip(masks, counts, strict=True)
        if not count.keys() <= convention.meanings.keys()
    ]
    if strange and not convention.name:
        raise _undeclared([mask for mask, _ in strange], _added(counts))
    raise_findings([_outside(mask, count, convention) for mask, count in strange])
    if masks and convention.name and convention.note not in notes:
        notes.append(convention.note)
    left_out = [label for label, tissue in convention.meanings.items() if tissue == CAVITY]
    return [_without(mask, left_out) if left_out else mask for mask in masks]


def labels_in(mask: Volume) -> dict[float, int]:
    """Voxels of each label but 0."""
    # Few voxels are tumour: sorting those alone takes a fraction of the time.
    labels, counts = np.unique(mask.data[mask.data != 0], return_counts=True)
    return dict(zip(labels.tolist(), counts.tolist(), strict=True))


def _without(mask: Volume, labels: Sequence[int]) -> Volume:
    from tadiff_rt.readers.nifti import voxel_digest

    data = np.where(np.isin(mask.data, labels), np.float32(0), mask.data)
    return replace(mask, data=data, sha256=voxel_digest(data, mask.affine))


def _added(counts: Sequence[Mapping[float, int]]) -> dict[float, int]:
    labels = sorted({label for count in counts for label in count})
    return {label: sum(count.get(label, 0) for count in counts) for label in labels}


def _undeclared(masks: Sequence[Volume], counts: Mapping[float, int]) -> GeometryError:
    more = f" and {len(masks) - 1} more" if len(masks) > 1 else ""
    return GeometryError(
        "TD3209",
        f"the tumour masks hold {_listed(counts)}, and nothing says what these labels mean",
        where=f"{masks[0].label}{more}",
        fix=_choices(counts),
    )


def _outside(mask: Volume, counts: Mapping[float, int], convention: Convention) -> GeometryError:
    strange = {label: n for label, n in counts.items() if label not in convention.meanings}
    return GeometryError(
        "TD3209",
        f"the mask holds {_listed(strange)}, unknown to {convention}",
        where=mask.label,
        fix=_choices(counts),
    )


def _listed(counts: Mapping[float, int]) -> str:
    shown = [f"{label:g} ({n} voxels)" for label, n in list(counts.items())[:MAX_SHOWN]]
    more = f" and {len(counts) - MAX_SHOWN} more" if len(counts) > MAX_SHOWN else ""
    return f"label{'s' if len(counts) > 1 else ''} {', '.join(shown)}{more}"


def _choices(counts: Mapping[float, int]) -> str:
    fitting = [c for c in CONVENTIONS.values() if counts.keys() <= c.meanings.keys()]
    if not fitting:
        return "save the mask with 1 for tumour and 0 elsewhere"
    return f"pass --labels with the convention of the data: {'; '.join(map(str, fitting))}"
