"""What training reads: cached cases, and random windows of them."""

from tadiff_train.data.cache import (
    CachedCase,
    TrainingDomain,
    cache_cases,
    subjects,
    training_domain,
)
from tadiff_train.data.windows import TargetSlots, batches, choose_sessions, choose_target

__all__ = [
    "CachedCase",
    "TargetSlots",
    "TrainingDomain",
    "batches",
    "cache_cases",
    "choose_sessions",
    "choose_target",
    "subjects",
    "training_domain",
]
