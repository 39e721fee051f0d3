"""Look-up tables of masks in BIDS: which tissue each label of a *_dseg.nii.gz file is.

    index  name                        (further columns are ignored)
    1      oedema
    2      enhancing tumour

A table lies beside its mask, or in a folder above it up to that of the pipeline, and holds for all
masks whose names have the entities of its own: derivatives/manual/desc-tumour_dseg.tsv is about
every desc-tumour mask of that pipeline. The nearest one counts.
"""

from collections.abc import Iterator
from pathlib import Path

from tadiff_rt.errors import GeometryError, TableError, TadiffError, raise_findings
from tadiff_rt.labels import CAVITY, CORE, ENHANCING, OEDEMA, TUMOUR, Convention
from tadiff_rt.readers.folders import entries, some
from tadiff_rt.readers.tables import Columns, cells_of, quoted, read_text

SUFFIX = "dseg.tsv"
BACKGROUND = "background"
NAMES = {
    BACKGROUND: ("background", "bg"),
    TUMOUR: ("tumour", "whole tumour", "wt", "lesion", "glioma"),
    OEDEMA: (
        "oedema", "edema", "ed", "peritumoural edema", "peritumoural oedema", "snfh",
        "surrounding nonenhancing flair hyperintensity",
    ),
    CORE: (
        "necrosis", "necrotic core", "necrotic tumour core", "ncr", "netc", "net", "ncr/net",
        "non-enhancing tumour", "nonenhancing tumour", "non-enhancing tumour core",
        "nonenhancing tumour core",
    ),
    ENHANCING: (
        "enhancing", "enhancing tumour", "enhancing tissue", "contrast-enhancing",
        "contrast-enhancing tumour", "contrast enhancement", "gd-enhancing tumour", "et",
    ),
    CAVITY: ("resection cavity", "surgical cavity", "cavity", "rc"),
}  # fmt: skip
"""Tissue -> names that tables give it, in lower case; "tumor" counts as "tumour"."""
_TISSUES = {name: tissue for tissue, names in NAMES.items() for name in names}


class _Columns(Columns):
    """Of a table of labels: `session` is the index, `day` the name; there is no treatment."""

    @property
    def all_required(self) -> tuple[str, ...]:
        return (self.session, self.day)


_COLUMNS = _Columns("index", "name", "", extra_allowed=True, separator="\t")


def find_label_table(root: Path, mask: Path) -> Path | None:
    """The table about a mask, as a path below `root`; None where there is none.

    Args:
        root: the data set.
        mask: below it, derivatives/PIPELINE/.../NAME_dseg.nii.gz.

    Raises:
        TableError: TD3321, several tables of one folder are about the mask.
    """
    pipeline = Path(*mask.parts[:2])
    of_mask = set(mask.name.split("_")[:-1])
    for folder in mask.parents:
        found = [
            name
            for name in entries(root / folder)
            if name.split("_")[-1] == SUFFIX and set(name.split("_")[:-1]) <= of_mask
        ]
        if len(found) > 1:
            what = f"{len(found)} tables say what the labels of {mask.name} mean: {some(found)}"
            raise TableError("TD3321", what, where=folder.as_posix(), fix="keep one of them")
        if found:
            return folder / found[0]
        if folder == pipeline:
            break
    return None


def read_label_table(path: Path, label: str) -> Convention:
    """What a table says.

    Raises:
        TableError: the table cannot be read; TD3301, it is empty.
        GeometryError: TD3209, an index is no whole number or listed twice, or a name is no tissue
            known here; all lines at once.
    """
    lines = read_text(path, label).split("\n")
    while lines and not lines[-1].strip(" \t"):
        lines.pop()
    if len(lines) < 2:
        raise TableError("TD3301", "has no labels: a header and a row are needed", where=label)
    rows, ragged = cells_of(lines, _COLUMNS, label)
    findings: list[TadiffError] = [*ragged]
    meanings: dict[int, str] = {}
    for line, cells in rows:
        index, tissue = cells["index"].strip(" "), tissue_named(cells["name"])
        problems = list(_problems(index, cells["name"], tissue, meanings))
        where = f"{label}, line {line}"
        findings += [GeometryError("TD3209", what, where=where, fix=fix) for what, fix in problems]
        if not problems:
            meanings[int(index)] = tissue
    raise_findings(findings)
    meanings.pop(0, None)
    # Not the name of the file, which may name the patient.
    return Convention(SUFFIX, meanings)


def tissue_named(name: str) -> str:
    """The tissue that a table means by a name; empty for an unknown one."""
    words = name.lower().replace("_", " ").replace("tumor", "tumour").split()
    return _TISSUES.get(" ".join(words), "")


def _problems(
    index: str, name: str, tissue: str, known: dict[int, str]
) -> Iterator[tuple[str, str]]:
    """What is wrong with a row, and what to do about it."""
    if not (index.isascii() and index.isdecimal() and len(index) < 6):
        yield f"the index {quoted(index)} is not a whole number", ""
    elif int(index) in known:
        yield f"the index {index} is listed twice", "keep one of the rows"
    elif tissue and (int(index) == 0) != (tissue == BACKGROUND):
        yield f"label {index} is called {quoted(name)}; 0, and only 0, is background", ""
    if not tissue:
        listed = ", ".join(names[0] for names in NAMES.values())
        yield (
            f"{quoted(name)} is no tissue known here",
            f"use one of {listed}; a table of other structures does not belong to a tumour mask",
        )
