"""Where a run computes: a device, and the processes that share its batches."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from tadiff_rt.errors import TadiffError, UsageError

DEVICES = ("auto", "cpu", "cuda")
LONGEST_GOODBYE = timedelta(seconds=10)
"""For the others to need nothing more of this process; those that died do not answer."""
LONGEST_WAIT = timedelta(hours=3)
"""For another process: the first one reads the cohort, and validates, while the others wait."""


@dataclass(frozen=True)
class Processes:
    """This process among those of a run; alone, nothing here communicates."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """The one process that reports and writes."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values

    def highest(self, number: int) -> int:
        """The highest of the processes' numbers, which all of them get."""
        if self.count == 1:
            return number
        highest = torch.tensor(number, device=self.device)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        return int(highest)

    def first(self, action: Callable[[], None]) -> None:
        """Runs `action` in the first process while the others wait; its error ends all of them."""
        if self.count == 1:
            action()
            return
        told: list[tuple[type[TadiffError], str, str, str, str] | None] = [None]
        failure: TadiffError | None = None
        if self.is_first:
            try:
                action()
            except TadiffError as error:
                failure = error
                told = [(type(error), error.code, error.message, error.where, error.fix)]
        dist.broadcast_object_list(told, device=self.device)
        if told[0] is not None:
            kind, code, message, where, fix = told[0]
            raise failure or kind(code, message, where=where, fix=fix)


def device_of(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" stands for, of this process of its machine.

    Raises:
        UsageError: TD3081, there is no such device.
    """
    if name not in DEVICES:
        raise UsageError("TD3081", f"device must be one of {', '.join(DEVICES)}, got {name!r}")
    number = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not number):
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= number:
        what = (
            f"process {local} of this machine needs a CUDA device of its own; there are {number}"
        )
        fix = "pass --device cpu, or start as many processes as there are devices"
        raise UsageError("TD3081", what, fix=fix)
    return torch.device("cuda", local)


@contextmanager
def joined(device: str = "auto") -> Iterator[Processes]:
    """The processes that torchrun started, or this one alone; inside another, the same ones.

    Raises:
        UsageError: TD3081, there is no such device.
    """
    where = device_of(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    is_new = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if is_new:
        backend = "nccl" if where.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, timeout=LONGEST_WAIT, device_id=where if backend == "nccl" else None
        )
    try:
        if dist.is_initialized():
            yield Processes(where, dist.get_rank(), dist.get_world_size())
        else:
            yield Processes(where)
    finally:
        if is_new:
            leave_together()
            dist.destroy_process_group()


def leave_together() -> None:
    """Waits, not long, until every process has heard what the others told it.

    A connection closes as its process ends: what the other has not read is lost, and a thread of
    gloo's that was just accepting it ends its whole process (pytorch/gloo, issue 514).
    """
    store = dist.distributed_c10d._get_default_store()
    names = [f"tadiff/left/{rank}" for rank in range(dist.get_world_size())]
    with suppress(RuntimeError):  # the store is the first process's, which may be gone
        store.set(names[dist.get_rank()], "")
        store.wait(names, LONGEST_GOODBYE)
