"""The files of a set of realisations, written as they are made, so that memory does not grow with the set.

realisations/real_00000.{png,npy,gslib,grdecl}   realisations.npy   probability.npy   entropy.npy
probability_<facies>.png   most_likely.{png,gslib}   entropy.png   summary.{csv,json}   index.html
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import distributed
from common.arrays import open_npy
from common.errors import DataError, UserError
from common.files import explain_full_disk, make_folder, temporary_path, write_text
from facies_gan.arrays import read_npy
from facies_gan.grdecl import write_grdecl
from facies_gan.gslib import write_grid
from facies_gan.images import write_label_png, write_png
from facies_gan.metrics import largest_body, number_of_bodies
from facies_gan.output_grid import OutputGrid
from facies_gan.palette import Palette
from facies_gan.wells import WellSet

STACK = "realisations.npy"
FOLDER = "realisations"
CSV_BASE = ("seed", "index", "accuracy_before_injection", "accuracy_after_injection")


def file_name(text: str) -> str:
    """Return a facies' name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", text).strip("_") or "facies"


class StackFile:
    """`realisations.npy`, uint8 [N, H, W], filled row by row by several processes and complete or absent.

    The rows are written at their place in the file, not through mapped memory, whose pages would count.

    Args:
        path: of the file.
        shape: (N, H, W).
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path = path
        self.row_bytes = shape[1] * shape[2]
        buffer = io.BytesIO()
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(buffer, header)
        self.offset = len(buffer.getvalue())
        with distributed.shared_errors():
            if distributed.is_main():
                self.temporary = temporary_path(path)
                with explain_full_disk(path, self.temporary), open(self.temporary, "wb") as file:
                    file.write(buffer.getvalue())
                    file.truncate(self.offset + shape[0] * self.row_bytes)
        self.temporary = Path(
            distributed.broadcast_object(str(self.temporary) if distributed.is_main() else "")
        )
        self._file = open(self.temporary, "r+b")  # noqa: SIM115 - held until close

    def write(self, row: int, labels: np.ndarray) -> None:
        """Write realisation number `row` of the stack."""
        with explain_full_disk(self.path, self.temporary):
            self._file.seek(self.offset + row * self.row_bytes)
            self._file.write(np.ascontiguousarray(labels, dtype=np.uint8).tobytes())

    def finish(self) -> None:
        """Make the file appear under its name, when all processes are done."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        distributed.barrier()
        if distributed.is_main():
            os.replace(self.temporary, self.path)

    def abort(self) -> None:
        """Remove what was written."""
        self._file.close()
        with contextlib.suppress(OSError):
            self.temporary.unlink(missing_ok=True)


class RealisationWriter:
    """Writes realisations, and keeps what their summary needs.

    Args:
        folder: of the set.
        grid: where they are.
        palette: the facies.
        formats: of the single files.
        wells: the data, to count those honoured.
        first: index of the first realisation of the stack.
        count: realisations in the stack.
        seed: of the set.
    """

    def __init__(
        self,
        folder: Path,
        grid: OutputGrid,
        palette: Palette,
        formats: Sequence[str],
        wells: WellSet,
        *,
        first: int,
        count: int,
        seed: int,
    ) -> None:
        self.folder, self.grid, self.palette, self.wells = folder, grid, palette, wells
        self.formats, self.seed, self.first = tuple(formats), seed, first
        self.counts = np.zeros((len(palette), *grid.size), dtype=np.int32)
        self.rows: list[dict[str, Any]] = []
        make_folder(folder / FOLDER)
        self.stack = (
            StackFile(folder / STACK, (count, *grid.size)) if "npy" in self.formats and count else None
        )

    def write(self, index: int, labels: np.ndarray, plain: np.ndarray, expected: np.ndarray) -> None:
        """Write realisation `index`.

        Args:
            index: of the realisation.
            labels: uint8 [H, W].
            plain: uint8 [n], the network's facies at the data before injection.
            expected: uint8 [n], the data's.
        """
        name = self.folder / FOLDER / f"real_{index:05d}"
        codes = self.palette.to_codes(labels) if {"gslib", "grdecl"} & set(self.formats) else None
        if "png" in self.formats:
            write_label_png(name.with_suffix(".png"), labels, self.palette.colors)
        if "npy" in self.formats:
            write_npy(name.with_suffix(".npy"), labels)
        if "gslib" in self.formats and codes is not None:
            write_grid(name.with_suffix(".gslib"), codes, self.grid.geometry, self.grid.header)
        if "grdecl" in self.formats and codes is not None:
            write_grdecl(name.with_suffix(".grdecl"), codes, self.grid.geometry)
        if self.stack is not None:
            self.stack.write(index - self.first, labels)
        for c in range(len(self.palette)):
            self.counts[c] += labels == c
        self.rows.append(self._row(index, labels, plain, expected))

    def _row(self, index: int, labels: np.ndarray, plain: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
        found: dict[str, Any] = {"seed": self.seed, "index": index}
        has = len(self.wells) > 0
        found["accuracy_before_injection"] = float((plain == expected).mean()) if has else None
        found["accuracy_after_injection"] = float(self.wells.matches(labels).mean()) if has else None
        for c, name in enumerate(self.palette.names):
            found[f"proportion_{name}"] = float((labels == c).mean())
            found[f"largest_body_{name}"] = int(largest_body(labels, c))
            found[f"bodies_{name}"] = int(number_of_bodies(labels, c))
        return found


def write_npy(path: Path, values: np.ndarray) -> None:
    """Write an array, atomically."""
    from common.files import write_bytes

    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write summary.csv, one line a realisation; an empty cell means that there was nothing to measure."""
    buffer = io.StringIO()
    names = list(rows[0]) if rows else list(CSV_BASE)
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_text(path, buffer.getvalue())


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Read what `write_csv` wrote.

    Raises:
        DataError: something else.
    """

    def value(name: str, text: str) -> Any:
        if text == "":
            return None
        whole = name in ("seed", "index") or name.startswith(("bodies_", "largest_body_"))
        return int(text) if whole else float(text)

    try:
        with open(path, encoding="utf-8", newline="") as file:
            return [{n: value(n, t) for n, t in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); generate the set again with --overwrite"
        ) from error


class EarlierSet:
    """A set of realisations that is extended: its rows, its counts, and its stack.

    Args:
        folder: of the set.
        settings: what both sets must share.
        first: index of the first new realisation.
        saved: summary.json of the earlier set.

    Raises:
        UserError: the sets differ in a setting, or share an index.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], first: int, saved: dict[str, Any]) -> None:
        self.folder = folder
        theirs = saved.get("settings", {})
        differing = [n for n in {**settings, **theirs} if theirs.get(n) != settings.get(n)]
        if differing:
            name = differing[0]
            raise UserError(
                f"{folder}: holds realisations with {name} {theirs.get(name)}, these have "
                f"{settings.get(name)}; "
                "choose another --out_path, or replace them with --overwrite"
            )
        self._blending = saved.get("blending", {})
        self.rows = read_csv(folder / "summary.csv")
        self.indices = [row["index"] for row in self.rows]
        last = max(self.indices, default=first - 1)
        if first != last + 1:
            raise UserError(
                f"--first_index {first}: {folder} holds realisations up to {last}; use --first_index "
                f"{last + 1}, or --overwrite"
            )
        probability = read_npy(folder / "probability.npy")
        self.counts = np.rint(probability.astype(np.float64) * len(self.rows)).astype(np.int32)

    @property
    def has_stack(self) -> bool:
        """Whether it has a `realisations.npy`, which then goes on."""
        return bool(self.indices) and (self.folder / STACK).is_file()

    def blended(self, found: dict[str, float | None], count: int) -> dict[str, float | None]:
        """Return the means of `count` new realisations and of the earlier ones together."""
        together = dict(found)
        for name, value in found.items():
            old = self._blending.get(name) if isinstance(self._blending, dict) else None
            if isinstance(old, int | float):
                known = [(old, len(self.rows))] + ([] if value is None else [(value, count)])
                together[name] = sum(v * n for v, n in known) / max(sum(n for _, n in known), 1)
        return together

    def copy_stack(self, stack: StackFile) -> None:
        """Copy the earlier realisations to the front of a new stack."""
        old = open_npy(self.folder / STACK, advice="remove it, or begin anew with --overwrite")
        for row in range(len(old)):
            stack.write(row, old[row])


def write_maps(
    folder: Path, grid: OutputGrid, palette: Palette, counts: np.ndarray, total: int
) -> np.ndarray:
    """Write probability, most likely facies and entropy of a set; return the entropy in bits [H, W]."""
    from facies_gan.metrics import entropy_map

    probability = counts.astype(np.float64) / max(total, 1)
    write_npy(folder / "probability.npy", probability.astype(np.float32))
    for c, name in enumerate(palette.names):
        grey = np.rint(255 * probability[c]).astype(np.uint8)
        write_png(folder / f"probability_{file_name(name)}.png", grey)
    likely = probability.argmax(axis=0).astype(np.uint8)
    write_label_png(folder / "most_likely.png", likely, palette.colors)
    write_grid(folder / "most_likely.gslib", palette.to_codes(likely), grid.geometry, grid.header)
    entropy = entropy_map(probability)
    write_npy(folder / "entropy.npy", entropy.astype(np.float32))
    return entropy
