"""What a surrogate is asked about: rows of parameters, pictures, or both, read from what users have.

N queries, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.arrays import open_npy, open_npz
from common.errors import DataError, UserError
from simulgen_vae.canonical import open_canonical
from simulgen_vae.images import read_image, threshold
from simulgen_vae.model_files import Surrogate
from simulgen_vae.natural import natural_key
from simulgen_vae.paths import existing
from simulgen_vae.predictor import Inputs, pictures
from simulgen_vae.tables import Table, read_table

ARRAY_NAMES = ("params", "P")


@dataclass(eq=False)
class Queries:
    """N rows of inputs; pictures are read when they are asked for.

    Attributes:
        params: float64 [N, P]; P = 0 when the model takes pictures alone.
        sample_id: N names.
        pictures: files, or uint8 [N, H, W], or None.
        level: grey value at which the training made pictures black and white, or None.
    """

    params: np.ndarray
    sample_id: tuple[str, ...]
    pictures: Sequence[Path] | np.ndarray | None = None
    level: int | None = None

    def __len__(self) -> int:
        return len(self.params)

    def images(self, rows: Sequence[int]) -> np.ndarray | None:
        """Return the pictures of some rows, uint8 [k, H, W], as the training saw them."""
        if self.pictures is None:
            return None
        if isinstance(self.pictures, np.ndarray):
            found = np.ascontiguousarray(self.pictures[list(rows)])
        else:
            found = np.stack([read_image(self.pictures[i]) for i in rows])
        return found if self.level is None else threshold(found, self.level)

    def inputs(self, rows: Sequence[int]) -> Inputs:
        """Return the inputs of some rows."""
        images = self.images(rows)
        image = None if images is None else pictures(torch.from_numpy(images))
        return Inputs(torch.from_numpy(self.params[list(rows)]).float(), image)


def read_queries(surrogate: Surrogate, params: str, images: str, suffix: str = ".png") -> Queries:
    """Return the inputs that `--params` and `--images` name, checked against the model.

    Raises:
        UserError: a file does not exist, or what the model needs was not given.
        DataError: a file is bad or does not fit the model.
    """
    names = tuple(surrogate.config["param_names"]) if surrogate.uses_params else ()
    table, stored = _read_params(params, names) if params else (None, None)
    if surrogate.uses_params and table is None:
        raise UserError(f"--params: missing, the model takes {', '.join(names)}; name a CSV file or numbers")
    seen = None
    if surrogate.uses_images:
        folder_files = table.files if table is not None else None
        seen = read_pictures(images, suffix, folder_files) if images else stored
        if seen is None:
            raise UserError(
                "--images: missing, the model takes pictures; name a folder, a picture or an npy file"
            )
    elif images:
        raise UserError(f"--images {images}: the model was trained without pictures; leave it out")
    if table is not None and surrogate.uses_params:
        values, ids = _columns(table, names), table.sample_id
    else:
        values, ids = np.zeros((0 if seen is None else len(seen), 0)), table.sample_id if table else None
    if seen is not None and len(seen) != len(values):
        raise DataError(
            f"{images or params}: {len(seen)} pictures for {len(values)} rows of parameters, expected one "
            "a row"
        )
    level = surrogate.config.get("image_threshold", -1)
    if ids is None or len(ids) != len(values):
        ids = tuple(p.stem for p in seen) if isinstance(seen, list) and not len(names) else None
    return Queries(
        values,
        ids or tuple(map(str, range(len(values)))),
        seen,
        round(level) if seen is not None and level >= 0 else None,
    )


def _read_params(text: str, names: tuple[str, ...]) -> tuple[Table, np.ndarray | None]:
    """Return the table that `--params` means, and the pictures of an h5 file."""
    path = Path(text)
    try:
        is_file = path.exists()
    except OSError:  # a long list of numbers is no name of a file
        is_file = False
    if not is_file and (numbers := typed_numbers(text, names)) is not None:
        return Table(Path("--params"), names, numbers), None
    path = existing(text, "--params")
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        data = open_canonical(path)
        data.close()
        if data.params is None:
            raise DataError(f"{path}: holds no params, expected params [N, P]; name a file that has them")
        return Table(path, data.param_names, data.params, None, data.sample_id), data.images
    if suffix in (".npy", ".npz"):
        values = _array(path)
        return Table(path, tuple(f"p{k}" for k in range(values.shape[1])), values), None
    return read_table(path), None


def typed_numbers(text: str, names: Sequence[str]) -> np.ndarray | None:
    """Return numbers [N, P] of "1.2,0.3;2,1" or "a=1.2,b=0.3"; None when the text is none of the two.

    Raises:
        UserError: a name is unknown or missing, or a row has another length.
    """
    rows = []
    for part in text.strip().strip(";").split(";"):
        cells = [cell.strip() for cell in part.replace(",", " ").split()]
        pairs = dict(cell.split("=", 1) for cell in cells if "=" in cell)
        if pairs and set(pairs) != set(names):
            wrong = sorted(set(pairs) ^ set(names))
            raise UserError(
                f"--params {part}: {', '.join(wrong)} unknown or missing, expected {', '.join(names)}"
            )
        try:
            rows.append([float(pairs[n]) for n in names] if pairs else [float(cell) for cell in cells])
        except ValueError:
            return None
        if len(rows[-1]) != len(names) or not np.isfinite(rows[-1]).all():
            raise UserError(
                f"--params {part}: {len(rows[-1])} numbers, expected {len(names)} finite ones: "
                f"{', '.join(names)}"
            )
    return np.array(rows, dtype=np.float64)


def _array(path: Path) -> np.ndarray:
    """Return the parameters of an npy or npz file, float64 [N, P]."""
    if path.suffix.lower() == ".npy":
        values = open_npy(path)
    else:
        with open_npz(path) as archive:
            name = next((n for n in ARRAY_NAMES if n in archive.files), None)
            if name is None:
                raise DataError(f"{path}: holds {archive.files[:8]}, expected an array params or P")
            values = archive[name]
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not len(values):
        raise DataError(f"{path}: {values.dtype} {values.shape}, expected numbers [N, P]")
    if not np.isfinite(values).all():
        row, column = (int(k) for k in np.argwhere(~np.isfinite(values))[0])
        raise DataError(f"{path}: row {row}, column {column} is not finite; repair it")
    return np.asarray(values, dtype=np.float64)


def _columns(table: Table, names: tuple[str, ...]) -> np.ndarray:
    """Return the model's columns of a table in the model's order.

    A table without a header (p0, p1, ...) is taken by position; further named columns are left out.
    """
    by_position = tuple(f"p{k}" for k in range(len(table.names)))
    if table.names != by_position:
        missing = [name for name in names if name not in table.names]
        if missing:
            raise DataError(
                f"{table.path}: columns {', '.join(table.names) or 'none'}, without {', '.join(missing)}; "
                f"expected {', '.join(names)}"
            )
        return table.values[:, [table.names.index(name) for name in names]]
    if table.values.shape[1] != len(names):
        raise DataError(
            f"{table.path}: {table.values.shape[1]} columns, expected {len(names)}: {', '.join(names)}"
        )
    return table.values


def read_pictures(text: str, suffix: str, files: Sequence[str] | None) -> list[Path] | np.ndarray:
    """Return the pictures that `text` names: uint8 [N, H, W] of an npy file, or paths."""
    path = existing(text, "--images")
    if path.suffix.lower() == ".npy":
        found = open_npy(path)
        if found.ndim != 3 or found.dtype != np.uint8:
            raise DataError(f"{path}: {found.dtype} {found.shape}, expected uint8 [N, H, W]")
        return found
    if path.is_file():
        return [path]
    if files is not None:
        paths = [path / name for name in files]
    else:
        kinds = (".jpg", ".jpeg") if suffix.lower() in (".jpg", ".jpeg") else (suffix.lower(),)
        paths = sorted((p for p in path.iterdir() if p.suffix.lower() in kinds), key=natural_key)
    absent = next((p for p in paths if not p.is_file()), None)
    if absent is not None or not paths:
        raise DataError(
            f"{absent or path}: no {suffix} picture there, expected one a row; see --image_suffix"
        )
    return paths
