"""Wells and hard data from files: images, the mapping of columns, GEO-EAS, CSV and NPZ points."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.files import write_text
from common.log import get_logger
from facies_gan.arrays import read_npz, write_npz
from facies_gan.geometry import GridGeometry
from facies_gan.gslib import read_geoeas, read_text, write_geoeas
from facies_gan.images import open_image, read_rgb
from facies_gan.palette import SNAP_DISTANCE, Palette, color_distances, unique_colors
from facies_gan.wells import WellSet

MAPPING_NAMES = ("wells_mapping.npz", "wells_maping.npz")  # the second is how an older tool spelt it
_FACIES_NAMES = {"facies", "code", "lithology", "lithofacies", "class", "rock", "rocktype"}
_WELL_NAMES = {"well", "well_id", "wellid", "well_name", "name"}
_AXIS_NAMES = {"x": "x", "y": "y", "z": "z", "depth": "z", "tvd": "z"}
_MASK_MODES = {"1", "L"}


def read_mapping(folder: Path) -> tuple[dict[str, list[int]], Path] | None:
    """Return the mapped columns of each section {stem: columns}, with the file; None when there is none.

    The file holds `columns` (pixel columns from 0), `counts` (data cells in the column) and `image_names`
    (stems), all of one length; a stem may repeat.

    Raises:
        DataError: unreadable, or a row is wrong; the row is named.
    """
    path = next((folder / name for name in MAPPING_NAMES if (folder / name).is_file()), None)
    if path is None:
        return None
    arrays = read_npz(path, objects=("columns", "counts", "image_names"))
    missing = {"columns", "counts", "image_names"} - set(arrays)
    if missing:
        raise DataError(
            f"{path}: {', '.join(sorted(missing))} missing, expected columns, counts and image_names; "
            "write them with numpy.savez"
        )
    lengths = {name: arrays[name].size for name in ("columns", "counts", "image_names")}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{path}: lengths {lengths} differ, expected one entry a well in each")
    mapping: dict[str, list[int]] = {}
    rows = zip(*(arrays[name].reshape(-1).tolist() for name in lengths), strict=True)
    for number, (column, count, name) in enumerate(rows):
        whole = all(isinstance(v, int | float) and v == int(v) for v in (column, count))
        if not whole or column < 0 or count < 1 or not isinstance(name, str):
            raise DataError(
                f"{path}: row {number} is column {column!r}, count {count!r}, image {name!r}; expected a "
                f"pixel "
                "column from 0, a count above 0 and the name of a section"
            )
        columns = mapping.setdefault(Path(name).stem if name.endswith(".png") else name, [])
        if int(column) not in columns:
            columns.append(int(column))
    return mapping, path


def write_mapping(path: Path, wells: dict[str, WellSet]) -> None:
    """Write the vertical wells of sections {stem: wells} as `wells_mapping.npz`, without pickles."""
    columns, counts, names = [], [], []
    for stem, data in wells.items():
        for well in np.unique(data.well_id):
            cols = data.cols[data.well_id == well]
            if len(np.unique(cols)) == 1:
                columns.append(int(cols[0]))
                counts.append(len(cols))
                names.append(stem)
    text = np.array(names, dtype=np.str_) if names else np.zeros(0, dtype="<U1")
    write_npz(
        path,
        {
            "columns": np.array(columns, dtype=np.int64),
            "counts": np.array(counts, dtype=np.int64),
            "image_names": text,
        },
    )


def read_wells_png(
    path: Path,
    labels: np.ndarray,
    palette: Palette,
    *,
    columns: list[int] | None = None,
    background: tuple[int, ...] = (),
) -> WellSet:
    """Read the wells image of a section.

    What counts as data: where the image is not transparent; of an opaque image the mapped columns; else what
    differs from
    `background`; else, of an image in black and white, what is white (its facies are those of the section);
    else what differs from the one colour that is no facies.

    Args:
        path: the image, of the section's size.
        labels: the section [H, W].
        palette: its facies.
        columns: mapped pixel columns.
        background: RGB of cells without data.

    Raises:
        DataError: another size than the section, a colour that is no facies, or no way to tell data.
    """
    rgb, alpha = read_rgb(path)
    if rgb.shape[:2] != labels.shape:
        raise DataError(
            f"{path}: {rgb.shape[0]} x {rgb.shape[1]} pixels (H x W), its section has {labels.shape[0]} x "
            f"{labels.shape[1]}; export both at one size"
        )
    if alpha is not None and alpha.all():
        alpha = None
    if columns:
        known = np.zeros(labels.shape, dtype=bool)
        known[:, columns] = True
        if alpha is None:
            return _from_columns(known, palette.to_labels(rgb, path, known=known), columns)
        facies = palette.to_labels(rgb, path, known=alpha > 0)
        others = WellSet.from_mask((alpha > 0) & ~known, facies)
        return _from_columns((alpha > 0) & known, facies, columns).merged(others)
    if alpha is not None:
        known = alpha > 0
    elif background:
        known = (rgb != np.array(background, dtype=np.uint8)).any(axis=2)
    else:
        unique, inverse = unique_colors(rgb)
        if _is_mask(path, unique, palette):
            return WellSet.from_mask(rgb[..., 0] == 255, labels)
        empty = _background(path, unique, palette)
        known = (inverse != empty).reshape(labels.shape)
    return WellSet.from_mask(known, palette.to_labels(rgb, path, known=known))


def _from_columns(known: np.ndarray, facies: np.ndarray, columns: list[int]) -> WellSet:
    rows, cols = np.nonzero(known)
    number = {column: i for i, column in enumerate(columns)}
    ids = np.array([number[int(c)] for c in cols], dtype=np.int64)
    names = tuple(f"column {c}" for c in columns)
    return WellSet.from_cells(rows, cols, facies[rows, cols], ids, names)


def _is_mask(path: Path, unique: np.ndarray, palette: Palette) -> bool:
    """Tell whether an image is only black and white, and these are not both facies drawn in colours."""
    if not (np.isin(unique, (0, 255)).all() and (unique == unique[:, :1]).all()):
        return False
    both = color_distances(np.array([[0, 0, 0], [255, 255, 255]]), palette.colors).min(axis=1) == 0
    return not both.all() or open_image(path).mode in _MASK_MODES


def _background(path: Path, unique: np.ndarray, palette: Palette) -> int:
    """Return which colour is the background: the only one that is no facies."""
    foreign = np.flatnonzero(color_distances(unique, palette.colors).min(axis=1) > SNAP_DISTANCE)
    if len(foreign) == 1:
        return int(foreign[0])
    if len(foreign) == 0:
        raise DataError(
            f"{path}: every colour is a facies, so cells without data cannot be told; expected transparency, "
            "wells_mapping.npz, or --well_background R G B with a colour that is no facies"
        )
    shown = ", ".join(str(tuple(c)) for c in unique[foreign[:4]].tolist())
    raise DataError(
        f"{path}: {len(foreign)} colours are no facies ({shown}), expected one, the background; "
        "use flat colours, transparency, or --well_background R G B"
    )


@dataclass
class Points:
    """A table of hard data: coordinates by column name, facies codes, names of wells.

    Attributes:
        columns: lower-case name -> float64 [n].
        codes: int64 [n]; None when `labels` are given.
        wells: [n] names of wells; empty when the table has none.
        where: the file.
    """

    columns: dict[str, np.ndarray]
    codes: np.ndarray
    where: str
    wells: list[str] = field(default_factory=list)


def read_points(path: str | Path) -> Points:
    """Read GEO-EAS, CSV (by suffix .csv) or NPZ (.npz) points.

    Raises:
        DataError: no such table, no facies column, or a code that is no integer.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        names, columns, wells = _read_csv(path)
    elif path.suffix.lower() == ".npz":
        arrays = {name.lower(): values.reshape(-1) for name, values in read_npz(path).items()}
        wells = [str(v) for v in arrays.pop("well_id", np.zeros(0)).tolist()]
        columns = {name: v.astype(np.float64) for name, v in arrays.items() if v.dtype.kind in "iufb"}
        columns = {{"rows": "row", "cols": "col"}.get(name, name): v for name, v in columns.items()}
        names = list(columns)
    else:
        titles, table = read_geoeas(path)
        names = [name.strip().lower() for name in titles]
        if len(set(names)) < len(names):
            raise DataError(f"{path}: columns {', '.join(names)[:80]}, expected each name once; rename one")
        columns = {name: table[:, i] for i, name in enumerate(names)}
        wells = []
    return _points(path, names, columns, wells)


def _points(path: Path, names: list[str], columns: dict[str, np.ndarray], wells: list[str]) -> Points:
    facies = next((name for name in names if name in _FACIES_NAMES), None)
    if facies is None and len(names) in (3, 4) and path.suffix.lower() not in (".csv", ".npz"):
        columns = dict(zip(("x", "y", "z")[: len(names) - 1] + ("facies",), columns.values(), strict=True))
        facies = "facies"
    if facies is None or len({len(v) for v in columns.values()}) > 1:
        raise DataError(
            f"{path}: columns {', '.join(names)}, expected coordinates (x y z or col row) and facies"
        )
    number = next((name for name in names if name in _WELL_NAMES), None)
    if number is not None and not wells:
        wells = [f"{v:g}" for v in columns[number].tolist()]
    codes = columns.pop(facies)
    if wells and len(wells) != len(codes):
        raise DataError(f"{path}: {len(wells)} names of wells for {len(codes)} data; give one to each datum")
    for name, values in [*columns.items(), (facies, codes)]:
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise DataError(f"{path}: datum {row + 1} has {name} {values[row]}, expected a number; remove it")
    wrong = np.flatnonzero((codes != np.rint(codes)) | (np.abs(codes) > 2**31))
    if wrong.size:
        raise DataError(
            f"{path}: datum {wrong[0] + 1} has facies {codes[wrong[0]]:g}, expected an integer code; "
            f"classify it"
        )
    coordinates = {_AXIS_NAMES.get(name, name): values for name, values in columns.items()}
    return Points(coordinates, codes.astype(np.int64), str(path), wells)


def _read_csv(path: Path) -> tuple[list[str], dict[str, np.ndarray], list[str]]:
    """Return (names, numeric columns, names of wells) of a CSV file with a header."""
    try:
        rows = [row for row in csv.reader(read_text(path).splitlines()) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path}: no valid CSV ({error}); expected a header like x,y,facies") from error
    names = [cell.strip().lower() for cell in rows[0]] if rows else []
    if not set(names) & _FACIES_NAMES:
        raise DataError(f"{path}: header {','.join(names)[:60]!r}, expected x,y,facies or col,row,facies")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: header {','.join(names)[:60]!r} names a column twice")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            raise DataError(f"{path}: row {number} has {len(row)} values, expected {len(names)}")
    columns, wells = {}, []
    for i, name in enumerate(names):
        cells = [row[i].strip() for row in rows[1:]]
        if name in _WELL_NAMES:
            wells = cells
            continue
        try:
            columns[name] = np.array([float(cell) for cell in cells])
        except ValueError as error:
            if name in _FACIES_NAMES or name in _AXIS_NAMES or name in ("col", "row"):
                raise DataError(f"{path}: column {name}: {error}; expected numbers") from error
    return list(columns), columns, wells


def read_hard_data(
    path: str | Path,
    shape: tuple[int, int],
    palette: Palette,
    geometry: GridGeometry | None = None,
    *,
    allow_empty: bool = False,
    or_else: str = "",
) -> WellSet:
    """Read hard data and put them on the cells of a section or map of `shape` (H, W).

    Columns x y z are coordinates of `geometry` (cell indices from 1, y from the bottom, unless it says
    otherwise); col and row are pixels from 0, row 0 on top. Data outside are dropped with one warning.
    When none lies inside, the error ends with `or_else`: what else the command at work offers.

    Raises:
        DataError: an unknown code, two facies in one cell, or no datum inside (unless `allow_empty`).
    """
    points = read_points(path)
    wells, inside = place_points(points, shape, palette, geometry or GridGeometry())
    if not inside.all():
        get_logger().warning(
            "warning: %s: %d of %d data lie outside the grid of %d x %d cells (H x W) and are left out",
            points.where,
            int((~inside).sum()),
            len(inside),
            *shape,
        )
    if not inside.any() and not allow_empty:
        raise DataError(
            f"{points.where}: none of its {len(inside)} data lies inside the grid of {shape[0]} x "
            f"{shape[1]} cells "
            f"(H x W); check --origin, --cell_size and --z_down{or_else}"
        )
    return wells


def place_points(
    points: Points, shape: tuple[int, int], palette: Palette, geometry: GridGeometry
) -> tuple[WellSet, np.ndarray]:
    """Return the data that lie on a section of `shape` (H, W), and bool [n], which of the points these are.

    Raises:
        DataError: an unknown code, or two facies in one cell.
    """
    rows, cols, inside = _cells(points, shape, geometry)
    labels = palette.from_codes_to_labels(points.codes, points.where)
    ids, names = _well_numbers(points, inside)
    wells = WellSet.from_cells(rows[inside], cols[inside], labels[inside], ids, names, where=points.where)
    return wells, inside


def _cells(
    points: Points, shape: tuple[int, int], geometry: GridGeometry
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (rows, cols, inside) of points."""
    columns = points.columns
    if {"col", "row"} <= set(columns):
        # Bounded before the cast: what an integer cannot hold is outside the section all the same.
        bounded = (np.clip(columns[name], -1, max(shape)) for name in ("row", "col"))
        rows, cols = (np.floor(values).astype(np.int64) for values in bounded)
        beside = np.zeros(len(rows), dtype=bool)
    else:
        horizontal, vertical = geometry.axes
        # Two columns x y serve a vertical section too, and x z an image, which does not say its axes.
        others = ("y", "z") if geometry.num_slices == 1 else ("y",)
        shown = next((axis for axis in (vertical, *others) if axis in columns), vertical)
        if horizontal not in columns or shown not in columns:
            raise DataError(
                f"{points.where}: columns {', '.join(columns)} and facies, expected {horizontal} and "
                f"{vertical}, "
                "or col and row"
            )
        rows, cols = geometry.cells(columns[horizontal], columns[shown], shape[0])
        beside = np.zeros(len(rows), dtype=bool)
        if geometry.num_slices > 1 and geometry.slice_axis in columns:
            third = geometry.index(geometry.slice_axis, columns[geometry.slice_axis])
            beside = third != geometry.position
    inside = (rows >= 0) & (rows < shape[0]) & (cols >= 0) & (cols < shape[1]) & ~beside
    return rows, cols, inside


def _well_numbers(points: Points, inside: np.ndarray) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Return the well of each datum inside, and the wells' names; (None, ()) when the table has none."""
    if not points.wells:
        return None, ()
    kept = [name for name, good in zip(points.wells, inside.tolist(), strict=True) if good]
    names = tuple(dict.fromkeys(kept))
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[name] for name in kept], dtype=np.int64), names


def write_hard_data(
    path: str | Path, wells: WellSet, height: int, palette: Palette, geometry: GridGeometry | None = None
) -> None:
    """Write data as GEO-EAS (x y z facies) in the frame of `geometry`, or as CSV (col,row,facies,well)."""
    codes = palette.to_codes(wells.facies)
    if Path(path).suffix.lower() == ".csv":
        rows = zip(wells.cols.tolist(), wells.rows.tolist(), codes.tolist(), wells.well_id, strict=True)
        body = "".join(f"{col},{row},{code},{wells.names[well]}\n" for col, row, code, well in rows)
        write_text(path, "col,row,facies,well\n" + body)
        return
    geometry = geometry or GridGeometry()
    horizontal, vertical = geometry.centres(wells.rows, wells.cols, height)
    third = (
        geometry.origin["xyz".index(geometry.slice_axis)]
        + geometry.position * (geometry.cell_size["xyz".index(geometry.slice_axis)])
    )
    columns = {geometry.axes[0]: horizontal, geometry.axes[1]: vertical}
    table = [columns.get(axis, np.full(len(wells), third)) for axis in ("x", "y", "z")]
    write_geoeas(path, "hard data", ["x", "y", "z", "facies"], np.stack([*table, codes], axis=1))
