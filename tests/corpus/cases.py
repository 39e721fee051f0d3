"""Every case of the corpus, and the ids that they must cover."""

from tests.corpus import (
    affines,
    changes,
    commands,
    files,
    grids,
    headers,
    names,
    paths,
    sessions,
    surroundings,
    tables,
    voxels,
)
from tests.corpus.case import CorpusCase, Elsewhere

SECTIONS = {"N": 38, "G": 21, "V": 21, "S": 29, "A": 13, "X": 10}
"""Kinds of fault: image files, grids, voxels, session tables, arguments, changes."""
IDS = tuple(
    f"{kind}{number:02}" for kind, last in SECTIONS.items() for number in range(1, last + 1)
)
PARTS = (
    files,
    headers,
    paths,
    names,
    grids,
    affines,
    voxels,
    tables,
    sessions,
    commands,
    surroundings,
    changes,
)
CASES: tuple[CorpusCase, ...] = tuple(
    sorted((case for part in PARTS for case in part.CASES), key=lambda case: IDS.index(case.id))
)
ELSEWHERE: tuple[Elsewhere, ...] = (*changes.ELSEWHERE, *commands.ELSEWHERE)
BY_KEY = {case.key: case for case in CASES}
