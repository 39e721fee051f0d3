"""Proof that an artefact computes its checkpoint, and if it does not, where and why.

probes       what artefacts are tried on
exact        the checkpoint in PyTorch, as a backend
reference    the checkpoint in float64: probes, trajectories and an ensemble
measure      errors, and what each precision is allowed
steps        errors of single evaluations
ensemble     errors end to end, beside what another seed changes
artefact     all of it: the certificate
graph        which values of two ONNX graphs are the same
bisect       the first node of an ONNX graph that is wrong
weights      which weights of a graph are not the checkpoint's
conditions   wrong ways to condition the network
images       wrong ways to feed it and to read it
variants     wrong ways to compute it
layers       faults of single layers
symptoms     which part of an artefact is wrong
diagnose     which known fault it computes
explain      what went wrong, in one paragraph
"""
