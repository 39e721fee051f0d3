"""A simulated longitudinal glioma cohort in which the true future is known."""

from tadiff_train.phantom.cohort import SimulatedPatient, simulate_patient, write_cohort

__all__ = ["SimulatedPatient", "simulate_patient", "write_cohort"]
