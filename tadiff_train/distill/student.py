"""What a student says of itself."""

from pydantic import ValidationError

from tadiff_rt.card import ModelCard, SamplerCard
from tadiff_rt.errors import UsageError
from tadiff_train.distill.config import DistillConfig
from tadiff_train.distill.trajectory import TEACHER_GRID, TEACHER_SOLVER, course


def require_teachable(card: ModelCard) -> None:
    """UsageError TD3097 for a teacher that was distilled itself: it has no run to follow."""
    if card.sampler is not None:
        raise UsageError(
            "TD3097",
            f"{card.name} was itself distilled, to {len(card.sampler.times)} evaluations",
            fix="distil the network that it was made from, weights "
            f"{card.sampler.teacher_sha256[:12]}",
        )


def student_card(
    card: ModelCard,
    teacher_sha256: str,
    config: DistillConfig,
    measured: dict[str, float],
    *,
    name: str | None = None,
) -> ModelCard:
    """The card of a student: the teacher's, with how it must be sampled and what was measured.

    Args:
        name: of the student; None for that of the teacher with the evaluations after it.

    Raises:
        UsageError: TD3038, it cannot be a name.
    """
    path = course(card.schedule.build(), card.start_lam, config.evaluations, config.substeps)
    sampler = SamplerCard(
        times=tuple(path.student.t.tolist()),
        teacher_sha256=teacher_sha256,
        recipe=(
            f"one DDIM step for {config.substeps} of {TEACHER_SOLVER} on {TEACHER_GRID}, whose "
            f"run has {path.teacher.num_steps} evaluations; {config.steps} updates of "
            f"{config.batch_size} windows on the student's own states (after Salimans and Ho "
            "2022)"
        ),
        measured=measured,
    )
    fields = {"name": name or f"{card.name[:60]}-{config.evaluations}", "sampler": sampler}
    try:
        return ModelCard.model_validate({**card.model_dump(), **fields})
    except ValidationError as e:
        raise UsageError("TD3038", f"--name: {e.errors()[0]['msg']}", where="--name") from None
