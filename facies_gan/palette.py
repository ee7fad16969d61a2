"""The facies of a data set: colours, codes and names; from colours to classes and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.files import read_json, write_json
from common.log import get_logger

MAX_FACIES = 16
SNAP_DISTANCE = 8.0  # Euclidean, 8-bit: what a viewer's colour management may do to a flat colour
RARE_SHARE = 0.001
# Colours of integer codes: black and white for two, then hues that differ for any colour vision.
CODE_COLORS = (
    *((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178)),
    *((213, 94, 0), (204, 121, 167), (153, 153, 153), (255, 255, 255), (102, 51, 153), (122, 106, 0)),
    *((160, 82, 45), (128, 0, 32), (0, 64, 64), (190, 220, 150)),
)


@dataclass(frozen=True, eq=False)
class Palette:
    """The classes of a data set, in order of their label.

    Attributes:
        colors: uint8 [C, 3], RGB.
        codes: integers [C] of grid files, distinct.
        names: of the facies.
    """

    colors: np.ndarray
    codes: np.ndarray
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Bring the arrays into their types and check them."""
        colors = _integers(self.colors, 0, 255, "colours").astype(np.uint8).reshape(-1, 3)
        codes = _integers(self.codes, -(2**63), 2**63 - 1, "codes")
        object.__setattr__(self, "colors", colors)
        object.__setattr__(self, "codes", codes)
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        if not len(colors) == len(codes) == len(self.names):
            raise ValueError(f"{len(colors)} colours, {len(codes)} codes, {len(self.names)} names")
        if not 2 <= len(colors) <= MAX_FACIES:
            raise ValueError(f"{len(colors)} facies, expected 2 to {MAX_FACIES}")
        if len(np.unique(colors, axis=0)) < len(colors) or len(np.unique(codes)) < len(codes):
            raise ValueError("two facies share a colour or a code")

    def __eq__(self, other: object) -> bool:
        """Tell whether colours, codes and names agree."""
        return isinstance(other, Palette) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        """Return a hash of the content."""
        return hash((self.colors.tobytes(), self.codes.tobytes(), self.names))

    def __len__(self) -> int:
        """Return the number of facies C."""
        return len(self.names)

    @property
    def num_classes(self) -> int:
        """The number of facies C."""
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for checkpoints and JSON."""
        return {"colors": self.colors.tolist(), "codes": self.codes.tolist(), "names": list(self.names)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Palette:
        """Return what `to_dict` described."""
        return cls(np.array(values["colors"]), np.array(values["codes"]), tuple(values["names"]))

    @classmethod
    def from_codes(cls, codes: Iterable[int], names: Sequence[str] = ()) -> Palette:
        """Return the palette of integer codes: classes in ascending order of code, colours by position."""
        ordered = sorted({int(code) for code in codes})
        if not 2 <= len(ordered) <= MAX_FACIES:
            raise ValueError(f"{len(ordered)} facies codes {ordered[:20]}, expected 2 to {MAX_FACIES}")
        colors = ((0, 0, 0), (255, 255, 255)) if len(ordered) == 2 else CODE_COLORS[: len(ordered)]
        return cls(np.array(colors), np.array(ordered), tuple(names) or _numbered(len(ordered)))

    @classmethod
    def from_colors(cls, colors: np.ndarray, names: Sequence[str] = ()) -> Palette:
        """Return the palette of distinct colours [C, 3], sorted by (R, G, B); codes are 0..C-1."""
        ordered = np.unique(np.asarray(colors, dtype=np.uint8).reshape(-1, 3), axis=0)
        return cls(ordered, np.arange(len(ordered)), tuple(names) or _numbered(len(ordered)))

    def from_codes_to_labels(self, values: np.ndarray, where: str) -> np.ndarray:
        """Return the labels uint8 of integer codes of any shape.

        Raises:
            DataError: a code that the palette lacks; `where` names its source.
        """
        values = np.asarray(values)
        order = np.argsort(self.codes)
        place = np.searchsorted(self.codes[order], values).clip(0, len(self) - 1)
        labels = order[place]
        wrong = self.codes[labels] != values
        if wrong.any():
            found = np.unique(values[wrong])[:5].tolist()
            raise DataError(
                f"{where}: facies codes {', '.join(map(str, found))} are unknown, expected one of "
                f"{', '.join(map(str, self.codes.tolist()))}; correct the codes or the training image"
            )
        return labels.astype(np.uint8)

    def to_codes(self, labels: np.ndarray) -> np.ndarray:
        """Return the original integer codes of labels."""
        return self.codes[np.asarray(labels, dtype=np.int64)]

    def to_rgb(self, labels: np.ndarray) -> np.ndarray:
        """Return the colours uint8 [..., 3] of labels [...]."""
        return self.colors[np.asarray(labels, dtype=np.int64)]

    def to_labels(self, rgb: np.ndarray, path: str | Path, *, known: np.ndarray | None = None) -> np.ndarray:
        """Return the labels uint8 [H, W] of colours uint8 [H, W, 3]; nearly right colours snap, counted.

        Args:
            rgb: the image.
            path: its file, for messages.
            known: bool [H, W], cells that count; the others become 0.

        Raises:
            DataError: a colour further than `SNAP_DISTANCE` from the palette.
        """
        unique, inverse = unique_colors(rgb)
        distance = color_distances(unique, self.colors)
        nearest = distance.argmin(axis=1)
        off = distance.min(axis=1)
        used = np.ones(len(unique), dtype=bool)
        if known is not None:
            used = np.bincount(inverse[known.reshape(-1)], minlength=len(unique)) > 0
        if (off[used] > SNAP_DISTANCE).any():
            worst = int(np.where(used, off, -1.0).argmax())
            cells = (inverse == worst) & (True if known is None else known.reshape(-1))
            raise off_palette(path, rgb, int(np.flatnonzero(cells)[0]), unique[worst], self)
        snapped = (off > 0)[inverse] & (True if known is None else known.reshape(-1))
        if snapped.any():
            get_logger().warning(
                "warning: %s: %d pixels are slightly off the palette and snap to it", path, snapped.sum()
            )
        labels = nearest[inverse].reshape(rgb.shape[:2]).astype(np.uint8)
        return labels if known is None else np.where(known, labels, 0).astype(np.uint8)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"facies {i}" for i in range(count))


def unique_colors(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct colours uint8 [n, 3] of an image [..., 3], and each pixel's index into them."""
    flat = rgb.reshape(-1, 3).astype(np.uint32)
    packed = (flat[:, 0] << 16) | (flat[:, 1] << 8) | flat[:, 2]
    values, inverse = np.unique(packed, return_inverse=True)
    unique = np.stack([values >> 16, (values >> 8) & 255, values & 255], axis=1).astype(np.uint8)
    return unique, inverse.reshape(-1)


def color_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Euclidean distances [n, m] of colours [n, 3] and [m, 3] in 8-bit units."""
    return np.linalg.norm(a[:, None].astype(np.float64) - b[None].astype(np.float64), axis=2)


def off_palette(
    path: str | Path, rgb: np.ndarray, flat_index: int, color: np.ndarray, palette: Palette
) -> DataError:
    """Return the error for a colour that is no facies: file, pixel, colour, nearest colours, distance."""
    row, col = divmod(flat_index, rgb.shape[1])
    distance = color_distances(color[None], palette.colors)[0]
    nearest = np.argsort(distance)[:3]
    shown = ", ".join(f"{tuple(palette.colors[i].tolist())} at {distance[i]:.0f}" for i in nearest)
    return DataError(
        f"{path}: pixel row {row} col {col} has colour {tuple(color.tolist())}, no facies of the palette "
        f"(nearest: {shown}); use flat colours, or add it to palette.json"
    )


class ColorCounter:
    """Counts the colours of images one after another, and makes the palette of all of them."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._first: dict[int, tuple[str, int, int]] = {}

    def add(self, rgb: np.ndarray, path: str | Path) -> None:
        """Count the colours of an image uint8 [H, W, 3].

        Raises:
            DataError: it alone has hundreds of colours.
        """
        unique, inverse = unique_colors(rgb)
        counts = np.bincount(inverse, minlength=len(unique))
        if len(unique) > 4096:
            raise self._too_many(path, rgb, unique, inverse, counts)
        first = np.zeros(len(unique), dtype=np.int64)
        first[inverse[::-1]] = np.arange(inverse.size)[::-1]
        for color, count, place in zip(unique.tolist(), counts.tolist(), first.tolist(), strict=True):
            key = (color[0] << 16) | (color[1] << 8) | color[2]
            self._counts[key] = self._counts.get(key, 0) + count
            row, col = divmod(place, rgb.shape[1])
            self._first.setdefault(key, (str(path), row, col))

    @staticmethod
    def _too_many(
        path: str | Path, rgb: np.ndarray, unique: np.ndarray, inverse: np.ndarray, counts: np.ndarray
    ) -> DataError:
        rarest = int(counts.argmin())
        row, col = divmod(int(np.flatnonzero(inverse == rarest)[0]), rgb.shape[1])
        return DataError(
            f"{path}: {len(unique)} colours, as at pixel row {row} col {col} "
            f"{tuple(unique[rarest].tolist())}; "
            f"expected at most {MAX_FACIES} flat colours; it looks antialiased or saved as JPEG before: "
            "export it as PNG without smoothing"
        )

    def palette(self) -> Palette:
        """Return the palette of what was counted.

        A rare colour (below 0.1 % of the cells) within `SNAP_DISTANCE` of one ten times as frequent is no
        facies of its own: it snaps when the image is read.

        Raises:
            DataError: more than 16 colours, or only one.
        """
        total = sum(self._counts.values())
        ordered = sorted(self._counts, key=lambda key: (-self._counts[key], key))
        colors = np.array([[k >> 16, (k >> 8) & 255, k & 255] for k in ordered], dtype=np.uint8)
        counts = np.array([self._counts[key] for key in ordered])
        kept: list[int] = []
        for i in range(len(ordered)):
            if counts[i] < RARE_SHARE * total and kept:
                near = color_distances(colors[i : i + 1], colors[kept])[0] <= SNAP_DISTANCE
                if (near & (counts[kept] >= 10 * counts[i])).any():
                    continue
            kept.append(i)
            if len(kept) > MAX_FACIES:
                path, row, col = self._first[ordered[i]]
                near = color_distances(colors[i : i + 1], colors[kept[:-1]])[0]
                raise DataError(
                    f"{path}: pixel row {row} col {col} has colour {tuple(colors[i].tolist())}, one of "
                    f"{len(ordered)} colours (nearest: {tuple(colors[kept[int(near.argmin())]].tolist())} at "
                    f"{near.min():.0f}), expected at most {MAX_FACIES}; the images look antialiased or saved "
                    "as JPEG before: export them as PNG with flat colours, or give palette.json"
                )
        if len(kept) < 2:
            raise DataError(
                f"{next(iter(self._first.values()))[0] if self._first else 'facies'}: one colour "
                f"{colors[kept].tolist()} in the whole data set, expected 2 to {MAX_FACIES} facies"
            )
        return Palette.from_colors(colors[kept])


def warn_rare(palette: Palette, counts: np.ndarray) -> None:
    """Warn of facies in fewer than 0.1 % of the cells: a network may drop them."""
    share = counts / max(int(counts.sum()), 1)
    for label in np.flatnonzero(share < RARE_SHARE):
        get_logger().warning(
            "warning: %s %s has %.3f %% of the cells and may vanish from realisations",
            palette.names[label],
            tuple(palette.colors[label].tolist()),
            100 * share[label],
        )


def read_palette(path: str | Path) -> Palette:
    """Read `palette.json`, a list of {code, name, rgb}: the order of the list is that of the labels.

    Raises:
        DataError: unreadable, or an entry is wrong.
    """
    entries = read_json(path, "expected a list of code, name, rgb")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: holds a {type(entries).__name__}, expected a list of code, name, rgb")
    for number, entry in enumerate(entries):
        rgb = entry.get("rgb") if isinstance(entry, dict) else None
        good = isinstance(rgb, list) and len(rgb) == 3 and all(type(v) is int and 0 <= v <= 255 for v in rgb)
        if not good or type(entry.get("code", number)) is not int:
            raise DataError(
                f"{path}: entry {number} is {str(entry)[:80]}, expected "
                f"{{code: 0, name: sand, rgb: [0, 0, 255]}}"
            )
    try:
        return Palette(
            np.array([entry["rgb"] for entry in entries]),
            np.array([entry.get("code", i) for i, entry in enumerate(entries)], dtype=np.int64),
            tuple(str(entry.get("name", f"facies {i}")) for i, entry in enumerate(entries)),
        )
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: {error}; give every facies its own code and colour") from error


def write_palette(path: str | Path, palette: Palette) -> None:
    """Write `palette.json`."""
    rows = zip(palette.codes.tolist(), palette.names, palette.colors.tolist(), strict=True)
    write_json(path, [{"code": code, "name": name, "rgb": rgb} for code, name, rgb in rows])


def _integers(values: np.ndarray, least: int, most: int, what: str) -> np.ndarray:
    """Return values as int64; a cast alone would turn 1e308, 1.5 or 2^63 into others."""
    found = np.asarray(values).reshape(-1)
    if not all(value == value // 1 and least <= value <= most for value in found.tolist()):
        raise ValueError(f"{what} {found.tolist()[:MAX_FACIES]}, expected integers of {least} to {most}")
    return found.astype(np.int64)
