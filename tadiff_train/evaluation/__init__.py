"""How good forecasts are: every patient's last session, beside two baselines, with calibration."""

from tadiff_train.evaluation.forecasts import Draw
from tadiff_train.evaluation.patients import Scope, on_network_grid
from tadiff_train.evaluation.report import results_json
from tadiff_train.evaluation.results import Evaluation, PatientResult
from tadiff_train.evaluation.run import evaluate, usable_subjects
from tadiff_train.evaluation.table import results_table

__all__ = [
    "Draw",
    "Evaluation",
    "PatientResult",
    "Scope",
    "evaluate",
    "on_network_grid",
    "results_json",
    "results_table",
    "usable_subjects",
]
