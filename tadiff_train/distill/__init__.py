"""Distillation: a network that repeats the forecasts of another in a few evaluations."""

from tadiff_train.distill.config import DistillConfig
from tadiff_train.distill.loop import distill
from tadiff_train.distill.measure import Measured, held_out, measure
from tadiff_train.distill.student import require_teachable, student_card
from tadiff_train.distill.trajectory import Course, Trajectory, course, implied_x0, trajectory

__all__ = [
    "Course",
    "DistillConfig",
    "Measured",
    "Trajectory",
    "course",
    "distill",
    "held_out",
    "implied_x0",
    "measure",
    "require_teachable",
    "student_card",
    "trajectory",
]
