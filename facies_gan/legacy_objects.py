"""Strings and numbers out of NumPy object arrays that old tools pickled; nothing that they name is called."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from common import legacy_pickle
from common.errors import DataError


def _scalar(kind: Any, data: Any) -> int | float | str:
    """Stand for NumPy's function of that name, which pickles of single values use."""
    data = data.encode("latin1") if isinstance(data, str) else bytes(data)
    if kind.code.lstrip("<>|=").startswith("U"):
        return data.decode("utf-32-be" if kind.order == ">" else "utf-32-le")
    return np.frombuffer(data, kind.dtype())[0].item()


class _ObjectUnpickler(legacy_pickle._NumpyUnpickler):
    """The restricted reader of arrays, which also knows single values."""

    def find_class(self, module: str, name: str) -> Any:
        if module in legacy_pickle._MODULES and name == "scalar":
            return _scalar
        return super().find_class(module, name)


def read_objects(data: bytes, where: str) -> list[Any]:
    """Return the elements of one pickled object array, in order.

    Raises:
        DataError: it holds anything else than one array of plain values.
    """
    try:
        found = _ObjectUnpickler(io.BytesIO(data), encoding="latin1").load()
        values, _, shape, _ = found.parts
        if not isinstance(values, list) or len(values) != int(np.prod(shape, dtype=np.int64)):
            raise ValueError("no array of objects")
    except legacy_pickle._DAMAGE as error:
        raise DataError(
            f"{where}: not read, {error or 'it ends too early'}; expected an array of names or numbers; "
            f"save it "
            "again as a plain array"
        ) from error
    return values
