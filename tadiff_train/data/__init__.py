"""What training reads: cohorts of any layout, cached cases, and random windows of them.

Windows are tensors; their names are imported when first asked for, so that reading and
inspecting data does not load torch.
"""

from typing import TYPE_CHECKING, Any

from tadiff_train.data.cache import (
    CachedCase,
    Cohort,
    TrainingDomain,
    cache_cases,
    cache_cohort,
    subjects,
    training_domain,
)
from tadiff_train.data.cohort import Subject, find_subjects, read_subject
from tadiff_train.data.split import parse_fractions, split_by_patient, split_of

if TYPE_CHECKING:
    from tadiff_train.data.windows import (
        TargetSlots,
        Window,
        Windows,
        choose_sessions,
        choose_target,
        collate,
    )

__all__ = [
    "CachedCase",
    "Cohort",
    "Subject",
    "TargetSlots",
    "TrainingDomain",
    "Window",
    "Windows",
    "cache_cases",
    "cache_cohort",
    "choose_sessions",
    "choose_target",
    "collate",
    "find_subjects",
    "parse_fractions",
    "read_subject",
    "split_by_patient",
    "split_of",
    "subjects",
    "training_domain",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tadiff_train.data import windows

    return getattr(windows, name)
