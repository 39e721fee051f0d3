"""Findings on many subjects: who was left out, and one paragraph for a choice that all need."""

from collections.abc import Sequence
from dataclasses import dataclass

from tadiff_rt.errors import TadiffError, printable
from tadiff_train.data.cohort import Subject

CHOICES = ("TD3006", "TD3205")
"""Codes that one option settles for a cohort: which images are meant, how arrays lie."""


@dataclass(frozen=True)
class LeftOut:
    """A subject that cannot be used."""

    subject: Subject
    findings: tuple[TadiffError, ...]


def left_out_table(left_out: Sequence[LeftOut], num_subjects: int) -> str:
    """Who was left out of a cohort of `num_subjects`, and why: one line each, below a heading."""
    lines = [f"left out: {len(left_out)} of {num_subjects} subjects"]
    width = max((len(one.subject.name) for one in left_out), default=0)
    for one in left_out:
        first = one.findings[0]
        more = f" (and {len(one.findings) - 1} more)" if len(one.findings) > 1 else ""
        lines.append(f"  {one.subject.name:{width}}  {first.code}  {first.message}{more}")
    return "\n".join(printable(line) for line in lines)


def merged(findings: Sequence[TadiffError]) -> list[TadiffError]:
    """`findings`, those on one choice for the whole cohort in one paragraph that names all places.

    Which of three versions of the images is meant would otherwise be asked of every patient.
    """
    places: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        places.setdefault(_kind(finding), []).append(finding.where)
    one_each = []
    for finding in findings:
        if finding.code not in CHOICES:
            one_each.append(finding)
        elif where := ", ".join(places.pop(_kind(finding), [])):
            same = type(finding)(finding.code, finding.message, where=where, fix=finding.fix)
            one_each.append(same)
    return one_each


def _kind(finding: TadiffError) -> tuple[str, str, str]:
    return finding.code, finding.message, finding.fix
