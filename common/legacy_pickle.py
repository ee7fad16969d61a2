"""NumPy arrays out of pickle files that others wrote, without running anything that the file says.

Only the few names that NumPy's own pickles use are known, and each of them stands for a recorder of this
module: no class or function of any library is ever called. What was recorded is turned into an array when
the sizes agree. Protocols 0 to 5 of Python 2 and 3 and both module names of NumPy (1 and 2) are understood.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import DataError

_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric")
_MODULES = (*_MODULES, "numpy._core.numeric")
# What reading a damaged or foreign pickle can raise.
_DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError)
_DAMAGE = (*_DAMAGE, ImportError, MemoryError, OverflowError, RecursionError, UnicodeError, AssertionError)


class _Kind:
    """Stands for the class numpy.ndarray, which pickles pass on as an argument."""


class _Type:
    """Stands for a numpy.dtype: its code, and the byte order that its state names."""

    def __init__(self, code: Any = "", *_flags: Any) -> None:
        self.code = code if isinstance(code, str) else bytes(code).decode("ascii")
        self.order = ""

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])

    def dtype(self) -> np.dtype:
        """Return the type, of real numbers only."""
        plain = self.code.lstrip("<>|=")
        if plain[:1] not in "fiub" or not plain[1:].isdecimal():
            raise ValueError(f"an array of type {self.code!r}, expected real numbers")
        return np.dtype(("" if self.order in ("", "|", "=") else self.order) + plain)


class _Array:
    """Stands for an array that is being put together."""

    def __init__(self, *_arguments: Any) -> None:
        self.parts: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        self.parts = (data, dtype, shape, "F" if fortran else "C")

    def array(self) -> np.ndarray:
        """Return the array; its memory is that of the bytes read."""
        if not self.parts:
            raise ValueError("an array without content")
        data, kind, shape, order = self.parts
        data = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(data, bytes | bytearray) or not isinstance(kind, _Type):
            raise ValueError("an array of objects")
        shape = tuple(int(n) for n in shape)
        dtype = kind.dtype()
        if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"{len(data)} bytes for an array {shape} of {dtype}")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, *_axes: Any) -> _Array:
    """Stand for NumPy's function of that name, which protocol 5 uses."""
    found = _Array()
    found.parts = (data, dtype, shape, order)
    return found


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stand for `_codecs.encode`, with which protocols below 3 write bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"text encoded as {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stand for `bytes()`, with which protocols below 3 write the data of an empty array."""
    return b""


class _NumpyUnpickler(pickle.Unpickler):
    """An unpickler that knows the recorders above and no other name."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Any] = {"ndarray": _Kind, "dtype": _Type, "_reconstruct": _Array}
        known["_frombuffer"] = _from_buffer
        if module in _MODULES and name in known:
            return known[name]
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if module in ("builtins", "__builtin__") and name == "bytes":
            return _no_bytes
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to {pid!r} outside the file")


def _load(file: BinaryIO) -> np.ndarray:
    found = _NumpyUnpickler(file, encoding="latin1").load()
    if not isinstance(found, _Array):
        raise ValueError(f"it holds a {type(found).__name__.lstrip('_').lower()}")
    return found.array()


def read_pickled_array(path: str | Path) -> np.ndarray:
    """Return the one array of real numbers that a pickle file holds.

    Raises:
        DataError: it holds anything else, is damaged, or cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _load(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}), expected a pickled array") from error
    except _DAMAGE as error:
        raise DataError(
            f"{path}: not read, {error or 'it ends too early'}; expected one pickled NumPy array of real "
            "numbers and nothing else; save the array with np.save"
        ) from error
