"""Several processes as one: set-up from torchrun's environment, agreement between ranks, sharing of work.

The only file that calls torch.distributed. Every function works in a single process too, where it costs
nothing, so that callers need no second code path.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import inspect
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.elastic.multiprocessing.errors import record as record  # noqa: PLC0414
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from common.device import is_cuda
from common.errors import DataError, DivergedError, StrataError, UserError

T = TypeVar("T")
_session_numbers = itertools.count()
_ERRORS = {cls.__name__: cls for cls in (UserError, DataError, DivergedError, StrataError)}


def launched() -> bool:
    """Tell whether torchrun (or another launcher with its environment) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_rank() -> int | None:
    """Return the rank on this node, or None when no launcher started this process."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else None


def leave(code: int) -> NoReturn:
    """End this process, one of several, with `code` once its exit handlers have run and its outputs are out.

    The interpreter is not taken down: a worker thread of gloo that still drops a tensor at that moment asks
    for the interpreter's lock, which ends the process with SIGABRT after all its work is done.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or None
            stream.flush()
    os._exit(code)


@contextlib.contextmanager
def session(device: torch.device, timeout_s: float = 600.0) -> Iterator[None]:
    """Join the process group that torchrun describes, and leave it at the end of the block.

    nccl on CUDA, gloo otherwise. A rank that waits longer than `timeout_s` raises, so that a hanging peer
    ends the job instead of stopping it for ever.
    """
    if not launched():
        yield
        return
    timeout = datetime.timedelta(seconds=timeout_s)
    # A second session of one process must not read the addresses that the first one left in the store.
    store, own_rank, size = next(rendezvous("env://", timeout=timeout))
    store = PrefixStore(f"session {next(_session_numbers)}", store)
    backend, device_id = ("nccl", device) if is_cuda(device) else ("gloo", None)
    dist.init_process_group(
        backend, store=store, rank=own_rank, world_size=size, timeout=timeout, device_id=device_id
    )
    try:
        yield
    except RuntimeError as error:
        if "by peer" in str(error):  # another rank has left: let torchrun see that one's error first
            time.sleep(2.0)
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def is_distributed() -> bool:
    """Tell whether a process group of more than one rank is up."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return the rank of this process; 0 alone."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of processes; 1 alone."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Tell whether this is rank 0, the one that writes files and talks."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here."""
    if is_distributed():
        dist.barrier()


def reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of `tensor` over ranks."""
    return _reduce(tensor, dist.ReduceOp.SUM)


def reduce_max(tensor: torch.Tensor) -> torch.Tensor:
    """Return the element-wise maximum of `tensor` over ranks."""
    return _reduce(tensor, dist.ReduceOp.MAX)


def reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Return the mean of `tensor` over ranks."""
    return reduce_sum(tensor) / world_size()


def _reduce(tensor: torch.Tensor, operation: Any) -> torch.Tensor:
    if not is_distributed():
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor, op=operation)
    return tensor


def reduce_sums(values: dict[str, float]) -> dict[str, float]:
    """Return the sum over ranks of each named number, in float64.

    Sums of weighted scores and of weights give exact means over shards of any size, an empty one too. Every
    rank must name the same values.
    """
    if not is_distributed():
        return dict(values)
    gathered = gather_objects(values)
    return {name: sum(part[name] for part in gathered) for name in values}


def gather_objects(value: T) -> list[T]:
    """Return the values of all ranks, in rank order, on every rank (plain data only)."""
    if not is_distributed():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_object(value: T) -> T:
    """Return rank 0's `value` on every rank (plain data)."""
    if not is_distributed():
        return value
    holder: list[Any] = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def broadcast_tensors(tensors: Sequence[torch.Tensor]) -> None:
    """Overwrite `tensors` by those of rank 0, in place."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def average_buffers(module: nn.Module) -> None:
    """Replace the running statistics of the norms in `module` by their mean over ranks, in place."""
    if not is_distributed():
        return
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
    buffers = [b.data for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
    if buffers:
        mean = reduce_mean(torch.cat(buffers))
        # `data` leaves the version counters alone: autograd forbids changes between forward and backward,
        # but a norm in training mode never reads these in its backward.
        parts = mean.split([buffer.numel() for buffer in buffers])
        torch._foreach_copy_(buffers, parts)  # pyright: ignore[reportPrivateImportUsage] - in no __all__


def _average_after_training(module: nn.Module, *_: Any) -> None:
    if module.training:
        average_buffers(module)


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Run the block on rank 0 first, then on the others: rank 0 prepares a cache, the others read it."""
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()


@contextlib.contextmanager
def shared_errors() -> Iterator[None]:
    """Make a StrataError of any rank the error of all ranks at the end of the block.

    A missing file then gives one message and the same exit code everywhere, instead of a rank that waits for
    one that has left. The block itself must not communicate. Other exceptions are bugs and pass unchanged.
    """
    error: StrataError | None = None
    try:
        yield
    except StrataError as caught:
        error = caught
    found = [e for e in gather_objects((type(error).__name__, str(error)) if error else None) if e]
    if found:
        kind, message = found[0]
        shared = _ERRORS.get(kind, StrataError)(message)
        shared.shared = is_distributed()
        raise shared from error


def shard(count: int) -> range:
    """Return the indices of 0..count-1 that this rank works on: every one on exactly one rank."""
    return range(rank(), count, world_size())


def parallel(module: nn.Module, **options: Any) -> nn.Module:
    """Return `module` under DistributedDataParallel when there are several ranks, else unchanged.

    On CUDA BatchNorm becomes SyncBatchNorm. That has no CPU kernel: there every forward in training mode ends
    with the mean of the ranks' running statistics. So the ranks hold equal weights and buffers at any moment,
    and the checkpoint that rank 0 writes is the state of all. All ranks must take part in such a forward.
    """
    if not is_distributed():
        return module
    newer = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    options["forward_sync_buffers" if newer else "broadcast_buffers"] = False
    device = next(module.parameters()).device
    if device.type == "cpu":
        wrapped = DistributedDataParallel(module, **options)
        wrapped.register_forward_hook(_average_after_training)
        return wrapped
    module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return DistributedDataParallel(module, device_ids=[device], **options)


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module below DistributedDataParallel and torch.compile."""
    while True:
        inner = getattr(module, "module", None) if isinstance(module, DistributedDataParallel) else None
        inner = inner or getattr(module, "_orig_mod", None)
        if inner is None:
            return module
        module = inner
