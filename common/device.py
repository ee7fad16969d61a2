"""Where and how precisely to compute: device, mixed precision, memory format, compilation, determinism.

The only file that names a backend.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn

from common.errors import DataError, UserError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Batch = TypeVar("Batch")


def resolve_device(name: str = "auto", *, local_rank: int | None = None) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    `auto` takes the first that exists of cuda, mps, cpu. Under torchrun (`local_rank` given) `auto` and
    `cuda` mean the GPU of that local rank.

    Raises:
        UserError: the name is unknown, or no such device is there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not (kind == "cuda" and number.isdecimal())):
        raise UserError(f"--device {name}: unknown, expected auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(number) if number else (local_rank or 0)
        if index >= count:
            raise UserError(f"--device {name}: {count} CUDA devices found; use --device cpu")
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: not available on this machine; use --device cpu")
    return torch.device(kind)


def is_cuda(device: torch.device) -> bool:
    """Tell whether `device` is an NVIDIA (or ROCm) GPU."""
    return device.type == "cuda"


def has_fast_bf16(device: torch.device) -> bool:
    """Tell whether bf16 arithmetic is faster than fp32 on `device` (tensor cores, AMX or AVX512-BF16)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # oneDNN emulates bf16 slowly where the processor has no instruction for it.
        capabilities = torch.backends.cpu.get_cpu_capability()
        return "AVX512" in capabilities and _cpu_flags() & {"avx512_bf16", "amx_bf16"} != set()
    return False


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:
            return set(next((line for line in file if line.startswith("flags")), "").split())
    except OSError:
        return set()


@dataclass(frozen=True)
class Precision:
    """One precision on one device: the autocast context and the loss scaler that go with it."""

    device: torch.device
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """The flag's spelling: fp32, bf16 or fp16."""
        return next(name for name, dtype in _DTYPES.items() if dtype == self.dtype)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the autocast context; it does nothing in fp32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Return a gradient scaler; it is enabled for fp16 only, and passes everything through otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def resolve_precision(name: str, device: torch.device, *, allow_bf16: bool = True) -> Precision:
    """Return the precision for `auto`, `fp32`, `bf16` or `fp16`.

    `auto` is bf16 where the device is fast at it and the package allows it, else fp32.

    Raises:
        UserError: the name is unknown, or fp16 is asked for on a CPU.
    """
    if name not in PRECISIONS:
        raise UserError(f"--precision {name}: unknown, expected one of {', '.join(PRECISIONS)}")
    if name == "auto":
        name = "bf16" if allow_bf16 and has_fast_bf16(device) else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16: not usable for training on a CPU; use fp32 or bf16")
    return Precision(device, _DTYPES[name])


def channels_last(module: nn.Module) -> nn.Module:
    """Put the convolution weights of `module` into channels-last order and return it.

    2-D and 3-D convolutions run faster so; the values do not change. Inputs follow by `like_weights`.
    """
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.dim() in (4, 5):
            order = torch.channels_last if weight.dim() == 4 else torch.channels_last_3d
            part.weight.data = weight.data.contiguous(memory_format=order)
    return module


def like_weights(x: torch.Tensor) -> torch.Tensor:
    """Return `x` ([B, C, Y, X] or [B, C, Z, Y, X]) in channels-last order."""
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def compile_if(enabled: bool, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `torch.compile(function)` when enabled, else the function itself."""
    return torch.compile(function) if enabled else function


def set_deterministic(enabled: bool) -> None:
    """Switch bitwise repeatable kernels on or off (slower on a GPU; a CPU is repeatable either way)."""
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if enabled or torch.are_deterministic_algorithms_enabled():  # the call alone imports the compiler: 1.5 s
        torch.use_deterministic_algorithms(enabled, warn_only=True)
    torch.backends.cudnn.benchmark = not enabled


def set_threads(num_threads: int) -> None:
    """Use `num_threads` CPU threads in torch; 0 leaves torch's own choice."""
    if num_threads > 0:
        torch.set_num_threads(num_threads)


@contextlib.contextmanager
def few_threads(num_threads: int = 1) -> Iterator[None]:
    """Use at most `num_threads` CPU threads inside: on small matrices more of them wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, num_threads))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def move(batch: Batch, device: torch.device) -> Batch:
    """Return `batch` (a tensor, or dicts, lists and tuples of them) on `device`, without blocking."""
    if isinstance(batch, torch.Tensor):
        return cast(Batch, batch.to(device, non_blocking=True))
    if isinstance(batch, dict):
        return type(batch)((key, move(value, device)) for key, value in batch.items())
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(move(value, device) for value in batch)
    return batch


def synchronize(device: torch.device) -> None:
    """Wait for the work queued on `device`; timings need it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory: allocated on a GPU, resident set size of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the global generator states of this process, for code that draws from them (dropout)."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore what `rng_state` returned; a state of another kind of device is left out."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def seed_global(seed: int, rank: int = 0) -> None:
    """Seed torch's global generators, which initialise weights and drive dropout, for this rank.

    Weights are equal over ranks because DDP broadcasts them; dropout must differ, hence the rank.
    """
    torch.manual_seed((seed * 1_000_003 + rank) & 0x7FFF_FFFF)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether `error` is an allocation that failed, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    said = any(words in text for words in ("out of memory", "allocate memory", "not enough memory"))
    return said and isinstance(error, RuntimeError)


@contextlib.contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Turn a failed allocation inside the block into a DataError that ends with `advice`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first_line = str(error).split("\n")[0]
        raise DataError(f"out of memory: {first_line}; {advice}") from error
