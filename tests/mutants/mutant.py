"""A fault as it is written down."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault: `old`, which occurs once in `file`, becomes `new`; `test` must then fail."""

    name: str
    file: str
    old: str
    new: str
    test: str
