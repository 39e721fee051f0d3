"""Parts of a cohort for training, validation and test, by patient.

A patient's part depends on the name, the salt and the fractions alone:

    u = (first 8 bytes of SHA-256(salt + NUL + name), big-endian, UTF-8) / 2^64    in [0, 1)
    part: the first, in the order given, whose running sum of fractions exceeds u

So it stays the same when patients are added or removed, on every machine; and with other
fractions, patients only move across the boundaries that moved. Shares of a small cohort differ
from the fractions, as those of tossed coins do. One person under two names is two patients here:
that `Patient-001` of one data set and `sub-Patient001` of another are one cannot be known.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from tadiff_rt.errors import UsageError
from tadiff_rt.readers.tables import quoted

FRACTIONS: Mapping[str, float] = {"train": 0.8, "val": 0.1, "test": 0.1}
SALT = "tadiff"
SUM_TOLERANCE = 1e-6
"""Fractions are typed by hand: 0.333 three times is refused, 1/3 to seven digits is not."""


class Named(Protocol):
    """Anything that is of one patient."""

    @property
    def name(self) -> str:
        """Of the patient."""


Item = TypeVar("Item", bound=Named)


def split_of(name: str, fractions: Mapping[str, float] = FRACTIONS, salt: str = SALT) -> str:
    """The part that a patient belongs to.

    Args:
        name: of the patient, as its folder has it.
        fractions: share of each part, in order; at least 0, adding up to 1.
        salt: another one gives another, independent split.

    Raises:
        UsageError: TD3070, the fractions are no shares of a whole.
    """
    _check(fractions)
    digest = hashlib.sha256(f"{salt}\0{name}".encode()).digest()
    u = int.from_bytes(digest[:8], "big") / 2**64
    parts = [part for part, share in fractions.items() if share > 0]
    sums = itertools.accumulate(fractions[part] for part in parts)
    # The sum of all may end a rounding below 1: the last part has no upper end.
    return next((part for part, end in zip(parts[:-1], sums, strict=False) if u < end), parts[-1])


def split_by_patient(
    items: Iterable[Item], fractions: Mapping[str, float] = FRACTIONS, salt: str = SALT
) -> dict[str, list[Item]]:
    """`items` by part, in their order; every part is there, perhaps empty.

    Raises:
        UsageError: TD3070, the fractions are no shares of a whole.
    """
    _check(fractions)
    parts: dict[str, list[Item]] = {part: [] for part in fractions}
    for item in items:
        parts[split_of(item.name, fractions, salt)].append(item)
    return parts


def parse_fractions(text: str) -> dict[str, float]:
    """{"train": 0.8, "test": 0.2} for "train=0.8,test=0.2".

    Raises:
        UsageError: TD3070, the text is no such list.
    """
    fractions: dict[str, float] = {}
    for item in text.split(","):
        part, _, share = (piece.strip() for piece in item.partition("="))
        try:
            number = float(share)
        except ValueError:
            number = math.nan
        if not part or part in fractions or math.isnan(number):
            raise _refused(f"{quoted(text)} is no list of different parts and shares")
        fractions[part] = number
    _check(fractions)
    return fractions


def _check(fractions: Mapping[str, float]) -> None:
    shares = list(fractions.values())
    if not all(0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > SUM_TOLERANCE:
        given = ", ".join(f"{part} {share:g}" for part, share in fractions.items())
        raise _refused(f"fractions must be 0 to 1 and add up to 1, got {given or 'none'}")


def _refused(what: str) -> UsageError:
    return UsageError("TD3070", what, fix="give them as train=0.8,val=0.1,test=0.1")
