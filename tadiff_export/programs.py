"""The torch programs of one bundle: the fused denoiser in each precision, and the conditioner."""

import torch

from tadiff_export.draft import digest
from tadiff_export.fuse import fuse, fuse_conditioner
from tadiff_export.judge import Judge
from tadiff_export.torch_package import conditioner_to_program, denoiser_to_program
from tadiff_rt.certificate import Precision
from tadiff_rt.manifest import Artefact, Role
from tadiff_rt.pt2_scan import scan_program

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
FUSED_FP32 = (
    "norms: statistics",
    "attention: scores, softmax and the row factor of softmax_one",
    "conditioning shifts",
)
ENDS_FP32 = "the first and the last convolution"


def add_conditioner_program(judge: Judge) -> None:
    """All conditioning of a request in one operator, for the torch backend."""
    with judge.stage("conditioner to a torch program"):
        data = conditioner_to_program(fuse_conditioner(judge.net))
    judge.draft = judge.draft.having(_listed("conditioner", "fp32", data, None), data)


def add_program(judge: Judge, precision: Precision, rows: int) -> None:
    """The fused denoiser; in half precision with its ends in fp32 where that is needed."""
    for ends_fp32 in (False, True):
        with judge.stage(f"torch program, {precision}"):
            fused = fuse(judge.net, DTYPES[precision], ends_fp32=ends_fp32)
            data = denoiser_to_program(fused, judge.card.data.size)
        artefact = _listed("denoiser", precision, data, rows)
        backend = judge.opened(artefact, data, "torch")
        kept = FUSED_FP32 + ((ENDS_FP32,) if ends_fp32 else ())
        certificate = judge.certified(
            backend, precision, backend.description, () if precision == "fp32" else kept
        )
        if certificate.passed or precision == "fp32":
            break
        judge.say(f"torch {precision} did not pass: {certificate.worst:.2g} times what is allowed")
    judge.add_judged(artefact, data, backend, certificate)


def _listed(role: Role, precision: Precision, data: bytes, rows: int | None) -> Artefact:
    file = f"{role}.{precision}.pt2"
    return Artefact(
        file=file,
        role=role,
        format="torch",
        precision=precision,
        batch=rows,
        dynamic_batch=rows is not None,
        operators=scan_program(data, file).operators,
        **digest(data),
    )
