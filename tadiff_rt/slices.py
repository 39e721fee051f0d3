"""Which slices of a volume to forecast: the choice as typed, and what it means in a volume."""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.errors import UsageError
from tadiff_rt.preprocess import Prepared
from tadiff_rt.readers.tables import quoted

TUMOUR_MARGIN = 2
"""Slices forecast beyond those that hold tumour, for "--slices tumour"."""

_SLICES = re.compile(r"([0-9]{1,6})(?:(:)([0-9]{1,6}))?", re.ASCII)
_NAMED: tuple[Literal["all", "brain", "tumour"], ...] = ("all", "brain", "tumour")


@dataclass(frozen=True)
class SliceChoice:
    """Which slices of a volume to forecast; resolved when the volume is known."""

    kind: Literal["all", "brain", "tumour", "listed"]
    listed: tuple[int, ...] = ()
    """For "listed": the slices, increasing."""

    def resolve(
        self,
        num_slices: int,
        has_brain: NDArray[np.bool_],
        has_tumour: NDArray[np.bool_] | None,
    ) -> NDArray[np.intp]:
        """The chosen slice indices, increasing.

        Args:
            num_slices: slices of the volume.
            has_brain: for each slice, whether it holds brain.
            has_tumour: for each slice, whether it holds tumour; None without a mask.

        Raises:
            UsageError: TD3019 outside the volume, TD3020 no slice is chosen.
        """
        if self.kind == "listed":
            if self.listed[-1] >= num_slices:
                what = f"slice {self.listed[-1]} is outside the volume, 0 to {num_slices - 1}"
                raise UsageError("TD3019", what, where="--slices")
            return np.array(self.listed)
        if self.kind == "all":
            return np.arange(num_slices)
        chosen = has_brain if self.kind == "brain" else has_tumour
        if chosen is None:
            what = "slices with tumour are asked for and not every source session has a mask"
            raise UsageError("TD3020", what, where="--slices", fix="pass --slices brain")
        if not chosen.any():
            fix = "pass --slices all" if self.kind == "brain" else "pass --slices brain"
            raise UsageError("TD3020", f"no slice holds {self.kind}", where="--slices", fix=fix)
        return np.flatnonzero(chosen)


def parse_slices(text: str | int) -> SliceChoice:
    """What "all", "brain", "tumour", "k", "a:b" (a to b - 1) or a list "k,a:b" chooses.

    Raises:
        UsageError: TD3018, the text is none of them.
    """
    for kind in _NAMED:
        if text == kind:
            return SliceChoice(kind)
    listed: set[int] = set()
    for part in str(text).split(","):
        match = _SLICES.fullmatch(part)
        start = int(match[1]) if match else 0
        stop = int(match[3]) if match and match[2] else start + 1
        if match is None or stop <= start:
            break
        listed.update(range(start, stop))
    else:
        return SliceChoice("listed", tuple(sorted(listed)))
    what = f"slices {quoted(str(text))} is none of all, brain, tumour, k, a:b with a < b, k,l,a:b"
    raise UsageError("TD3018", what, where="--slices")


def choose_slices(prepared: Prepared, choice: SliceChoice) -> tuple[int, ...]:
    """Canonical slice indices to forecast; "tumour" adds a margin into which tumour may grow."""
    tumour = None
    if prepared.masks is not None:
        held = prepared.masks.any(axis=(0, 2, 3))
        reach = np.ones(2 * TUMOUR_MARGIN + 1, dtype=int)
        tumour = (np.convolve(held, reach, mode="same") > 0) & prepared.brain
    chosen = choice.resolve(len(prepared.sources), prepared.brain, tumour)
    return tuple(int(at) for at in chosen)
