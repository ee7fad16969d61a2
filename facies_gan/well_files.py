"""Wells and hard data from files: images, the mapping of columns, GEO-EAS, CSV and NPZ points."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import DataError
from common.files import write_text
from common.log import get_logger
from facies_gan.arrays import read_npz, write_npz
from facies_gan.geometry import GridGeometry
from facies_gan.gslib import write_geoeas
from facies_gan.images import open_image, read_rgb
from facies_gan.palette import SNAP_DISTANCE, Palette, color_distances, unique_colors
from facies_gan.point_tables import Points, read_points
from facies_gan.wells import WellSet

MAPPING_NAMES = ("wells_mapping.npz", "wells_maping.npz")  # the second is how an older tool spelt it
_MASK_MODES = {"1", "L"}


class Mapping(NamedTuple):
    """The columns of sections that are wells.

    Attributes:
        columns: {stem: pixel columns}.
        path: the file.
        rows: {(stem, column): (its row in the file, data cells)}.
    """

    columns: dict[str, list[int]]
    path: Path
    rows: dict[tuple[str, int], tuple[int, int]]


def read_mapping(folder: Path) -> Mapping | None:
    """Return the mapped columns of each section; None when there is no mapping.

    The file holds `columns` (pixel columns from 0), `counts` (data cells in the column) and `image_names`
    (stems), all of one length; a stem may repeat.

    Raises:
        DataError: unreadable, or a row is wrong; the row is named.
    """
    path = next((folder / name for name in MAPPING_NAMES if (folder / name).is_file()), None)
    if path is None:
        return None
    arrays = read_npz(path, objects=("columns", "counts", "image_names"))
    if (folder / MAPPING_NAMES[1]).is_file() and path.name != MAPPING_NAMES[1]:
        get_logger().warning("warning: %s: not read, %s is there too", folder / MAPPING_NAMES[1], path.name)
    missing = {"columns", "counts", "image_names"} - set(arrays)
    if missing:
        raise DataError(
            f"{path}: {', '.join(sorted(missing))} missing, expected columns, counts and image_names; "
            "write them with numpy.savez"
        )
    lengths = {name: arrays[name].size for name in ("columns", "counts", "image_names")}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{path}: lengths {lengths} differ, expected one entry a well in each")
    found = Mapping({}, path, {})
    rows = zip(*(arrays[name].reshape(-1).tolist() for name in lengths), strict=True)
    for number, (column, count, name) in enumerate(rows):
        whole = all(isinstance(v, int) or (isinstance(v, float) and v.is_integer()) for v in (column, count))
        if not whole or column < 0 or count < 1 or not isinstance(name, str):
            raise DataError(
                f"{path}: row {number} is column {column!r}, count {count!r}, image {name!r}; expected a "
                "pixel column from 0, a count above 0 and the name of a section"
            )
        stem = Path(name).stem if name.endswith(".png") else name
        columns = found.columns.setdefault(stem, [])
        if int(column) not in columns:
            columns.append(int(column))
            found.rows[stem, int(column)] = number, int(count)
    return found


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
    channels: int = 3,
    value_range: tuple[float, ...] = (0, 255),
) -> WellSet:
    """Read the wells image of a section.

    What counts as data: where the image is not transparent; of an opaque image the mapped columns; else what
    differs from `background`; else, of an image in black and white, what is white (its facies are those of
    the section); else what differs from the one colour that is no facies.

    Args:
        path: the image, of the section's size.
        labels: the section [H, W].
        palette: its facies.
        columns: mapped pixel columns.
        background: RGB of cells without data.
        channels: as the sections are read.
        value_range: likewise.

    Raises:
        DataError: another size than the section, a colour that is no facies, or no way to tell data.
    """
    rgb, alpha = read_rgb(path, channels, value_range)
    if rgb.shape[:2] != labels.shape:
        raise DataError(
            f"{path}: {rgb.shape[0]} x {rgb.shape[1]} pixels (H x W), its section has {labels.shape[0]} x "
            f"{labels.shape[1]}; export both at one size"
        )
    if alpha is not None and alpha.all():
        alpha = None
    if columns:
        return _mapped_wells(path, rgb, alpha, palette, columns)
    if alpha is not None:
        known = alpha > 0
    elif background:
        _refuse_facies_background(path, background, palette)
        known = (rgb != np.array(background, dtype=np.uint8)).any(axis=2)
    else:
        unique, inverse = unique_colors(rgb)
        if _is_mask(path, unique, palette):
            mask = rgb[..., 0] == 255
            _refuse_black_on_white(path, mask, palette)
            return WellSet.from_mask(mask, labels)
        empty = _background(path, unique, palette)
        known = (inverse != empty).reshape(labels.shape)
    return WellSet.from_mask(known, palette.to_labels(rgb, path, known=known))


def _mapped_wells(
    path: Path, rgb: np.ndarray, alpha: np.ndarray | None, palette: Palette, columns: list[int]
) -> WellSet:
    """Return the data of mapped columns, and of what else is not transparent."""
    known = np.zeros(rgb.shape[:2], dtype=bool)
    known[:, columns] = True
    if alpha is None:
        return _from_columns(known, palette.to_labels(rgb, path, known=known), columns)
    facies = palette.to_labels(rgb, path, known=alpha > 0)
    others = WellSet.from_mask((alpha > 0) & ~known, facies)
    return _from_columns((alpha > 0) & known, facies, columns).merged(others)


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


def _refuse_facies_background(path: Path, background: tuple[int, ...], palette: Palette) -> None:
    if (palette.colors == np.array(background)).all(axis=1).any():
        raise DataError(
            f"{path}: --well_background {' '.join(map(str, background))} is a facies too, so its data "
            "cannot be told; expected transparency, wells_mapping.npz, or another background"
        )


def _refuse_black_on_white(path: Path, mask: np.ndarray, palette: Palette) -> None:
    """Refuse an image that may as well show data of a black facies on white paper.

    Raises:
        DataError: colours, more white than black, and black is a facies.
    """
    black = color_distances(np.zeros((1, 3), dtype=np.uint8), palette.colors).min() == 0
    if black and 0.5 < mask.mean() < 1 and open_image(path).mode not in _MASK_MODES:
        raise DataError(
            f"{path}: black and white, {100 * mask.mean():.0f} % white: a mask, or data of the black facies "
            "on white? save a mask in grey levels, or give --well_background 255 255 255"
        )


def _background(path: Path, unique: np.ndarray, palette: Palette) -> int:
    """Return which colour is the background: the only one that is no facies."""
    foreign = np.flatnonzero(color_distances(unique, palette.colors).min(axis=1) > SNAP_DISTANCE)
    if len(foreign) == 1:
        return int(foreign[0])
    if len(foreign) == 0:
        raise DataError(
            f"{path}: every colour is a facies, so cells without data cannot be told; expected transparency, "
            "wells_mapping.npz, a grey mask (255 = data), or --well_background R G B that is no facies"
        )
    shown = ", ".join(str(tuple(c)) for c in unique[foreign[:4]].tolist())
    raise DataError(
        f"{path}: {len(foreign)} colours are no facies ({shown}), expected one, the background; "
        "use flat colours, transparency, or --well_background R G B"
    )


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
            f"{shape[1]} cells (H x W); check --origin, --cell_size and --z_down{or_else}"
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
    _refuse_clashes(points, rows, cols, inside)
    wells = WellSet.from_cells(rows[inside], cols[inside], labels[inside], ids, names, where=points.where)
    return wells, inside


def _refuse_clashes(points: Points, rows: np.ndarray, cols: np.ndarray, inside: np.ndarray) -> None:
    """Refuse two data of one cell that differ, both as the table has them.

    Raises:
        DataError: there are such data.
    """
    numbers = np.flatnonzero(inside)
    key = np.stack([rows[inside], cols[inside]], axis=1)
    _, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
    clash = np.flatnonzero(points.codes[numbers] != points.codes[numbers[first[inverse.reshape(-1)]]])
    if clash.size:
        pair = int(numbers[first[inverse.reshape(-1)[clash[0]]]]), int(numbers[clash[0]])
        one, two = (
            f"{i + 1} ({' '.join(f'{name} {v[i]:g}' for name, v in points.columns.items())}, facies "
            f"{points.codes[i]})"
            for i in pair
        )
        raise DataError(
            f"{points.where}: data {one} and {two} lie in one cell, expected one facies a cell; remove one"
        )


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
                f"{vertical}, or col and row"
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
