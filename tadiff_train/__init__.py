"""Training of TaDiff: the network, its loss, the simulated cohort and the evaluation."""
