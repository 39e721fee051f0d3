"""The torch programs of one bundle: the fused denoiser in each precision, and the conditioner."""

import copy
from typing import Any

import torch
from torch import nn

from tadiff_export.certify.conditions import Condition
from tadiff_export.certify.measure import BUDGETS, Outputs, errors, figures
from tadiff_export.certify.reference import Reference
from tadiff_export.certify.symptoms import shifts_of
from tadiff_export.draft import digest
from tadiff_export.fuse import fuse, fuse_conditioner
from tadiff_export.judge import Judge
from tadiff_export.torch_package import conditioner_to_program, denoiser_to_program
from tadiff_kernels.attention import WIDEST
from tadiff_rt.backends import Backend
from tadiff_rt.backends.program_denoiser import load_module
from tadiff_rt.certificate import Precision
from tadiff_rt.errors import NumericsError
from tadiff_rt.manifest import Artefact, Rejected, Role
from tadiff_rt.pt2_scan import scan_program
from tadiff_train.network import AttentionBlock, TaDiffNet

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
    """All conditioning of a request in one operator, for the torch backend, if it has a denoiser.

    Raises:
        NumericsError: TD6010, its shifts are not the checkpoint's: no program computes with them
            what the checkpoint does.
    """
    if no_form(judge.net):
        return
    with judge.stage("conditioner to a torch program"):
        data = conditioner_to_program(fuse_conditioner(judge.net))
    artefact = _listed("conditioner", "fp32", data, None)
    draft = judge.draft.having(artefact, data)
    reference = judge.reference
    with judge.stage("shifts of the torch program"):
        device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        _require_shifts(judge.net, load_module(draft, artefact, device), device, reference)
    judge.draft = draft


def add_program(judge: Judge, precision: Precision, rows: int) -> None:
    """The fused denoiser; in half precision with its ends in fp32 where that is needed."""
    if reason := no_form(judge.net):
        rejected = Rejected(format="torch", precision=precision, code="TD5023", reason=reason)
        judge.reject(rejected)
        return
    for ends_fp32 in (False, True):
        with judge.stage(f"torch program, {precision}"):
            fused = fuse(judge.net, DTYPES[precision], ends_fp32=ends_fp32)
            data = denoiser_to_program(fused, judge.card.data.size)
        artefact = _listed("denoiser", precision, data, rows)
        backend = judge.opened(artefact, data, "torch")
        kept = FUSED_FP32 + ((ENDS_FP32,) if ends_fp32 else ())
        how = _evaluated(backend, precision)
        certificate = judge.certified(backend, precision, how, () if precision == "fp32" else kept)
        if certificate.passed or precision == "fp32":
            break
        judge.say(f"torch {precision} did not pass: {certificate.worst:.2g} times what is allowed")
    judge.add_judged(artefact, data, backend, certificate)


def no_form(net: TaDiffNet) -> str:
    """Why the operators of `tadiff_kernels` cannot compute a network; empty if they can."""
    blocks = [m for m in net.modules() if isinstance(m, AttentionBlock)]
    widest = max(block.norm.num_channels // block.num_heads for block in blocks)
    if widest > WIDEST:
        return f"an attention head is {widest} channels wide, and the kernel's may be {WIDEST}"
    return ""


def _evaluated(backend: Backend, precision: Precision) -> str:
    """What a certificate of the program was measured on, and what is only compared elsewhere."""
    if precision == "fp32" or backend.on_device() is not None:
        return backend.description
    return f"{backend.description}; compiled on a GPU, and compared there with the canary"


def _require_shifts(
    net: TaDiffNet, program: Any, device: torch.device, reference: Reference
) -> None:
    """A conditioner program computes the shifts of all probes, within the budget of fp32.

    Raises:
        NumericsError: TD6010, it does not.
    """
    exact_net = _in_float64(net)
    times = torch.from_numpy(reference.times).float()
    for days, treatments in reference.conditions:
        condition = Condition(times, torch.tensor([days]), torch.tensor([treatments]))
        given = (condition.t, condition.days, condition.treatments)
        with torch.no_grad():
            got = program(*(tensor.to(device) for tensor in given))
        sides = (got, shifts_of(exact_net, condition), shifts_of(net, condition))
        wrong = _wrong(*({"shifts": side.double().cpu().numpy()} for side in sides))
        if wrong:
            raise NumericsError(
                "TD6010",
                f"the conditioner program does not compute the shifts of days {days} and "
                f"treatments {treatments}: {'; '.join(wrong)}",
                fix="keep the checkpoint and report this",
            )


def _wrong(got: Outputs, exact: Outputs, plain: Outputs) -> list[str]:
    """Every error that is not allowed in fp32, in words."""
    shape, expected = got["shifts"].shape, exact["shifts"].shape
    if shape != expected:
        return [f"shape {shape}, expected {expected}"]
    found = figures(got, exact, errors(plain, exact), BUDGETS["fp32"])
    return [
        f"{name} {'not finite' if figure.value is None else f'{figure.value:.1e}'}, "
        f"{figure.allowed:.1e} allowed"
        for name, figure in found.items()
        if not figure.passed
    ]


def _in_float64(net: TaDiffNet) -> TaDiffNet:
    """A copy whose linear layers run in float64; angles and their sines are fp32 by definition."""
    exact = copy.deepcopy(net).double()
    for module in exact.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return exact


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
