"""Images from and to the disk: whole files only, no decompression bombs, 8 bits a channel."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from common.errors import DataError
from common.files import write_bytes

_DEEP_MODES = {"I", "I;16", "I;16B", "I;16L", "F"}


def beside(folder: Path, stem: str, suffix: str) -> Path | None:
    """Return the file of a stem, whose suffix may be in capitals; None when there is none."""
    paths = (folder / f"{stem}{s}" for s in (suffix, suffix.upper()))
    return next((path for path in paths if path.is_file()), None)


def open_image(path: str | Path) -> Image.Image:
    """Return a fully decoded image.

    Raises:
        DataError: missing, no image, cut off, lossy (JPEG), or so large that it may be a decompression bomb.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if not data:
        raise DataError(f"{path}: empty file, expected a PNG image; copy it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            if image.format == "JPEG":
                raise DataError(
                    f"{path}: is a JPEG, whose compression invents colours; export the facies as PNG"
                )
            if image.format == "PNG" and b"IEND" not in data[-256:]:  # decoders accept a cut tail silently
                raise DataError(f"{path}: {len(data)} bytes, the end of the PNG is missing; copy it again")
            image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: unpacks to too many pixels ({error}); expected a section of at most 89 megapixels"
        ) from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: no readable image, expected a PNG; export it again") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{path}: damaged image ({error}), expected a whole PNG; copy it again") from error
    return image


def read_rgb(
    path: str | Path, channels: int = 3, value_range: tuple[float, ...] = (0, 255)
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return an image as RGB uint8 [H, W, 3], and its transparency uint8 [H, W] when it has any.

    Args:
        path: the file.
        channels: 1 reads it as grey levels, 3 as colours, 4 as colours with transparency.
        value_range: values that stand for black and for full brightness; others than (0, 255) are stretched.

    Raises:
        DataError: unreadable, or a pixel that is not transparent lies outside `value_range`.
    """
    image = open_image(path)
    alpha = None
    if channels != 1 and ("A" in image.getbands() or "transparency" in image.info):
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    elif channels == 4:
        alpha = np.full((image.height, image.width), 255, dtype=np.uint8)
    if image.mode in _DEEP_MODES:
        levels = np.asarray(image).astype(np.float64)
        values = np.repeat(levels[..., None], 3, axis=2)
    elif channels == 1:
        values = np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2)
    else:
        values = np.asarray(image.convert("RGB"))
    low, high = (float(v) for v in value_range)
    beyond = ~((values >= low) & (values <= high))  # clipped, several facies would become one
    if alpha is not None:
        beyond &= alpha[..., None] > 0
    if beyond.any():
        row, col, _ = np.argwhere(beyond)[0].tolist()
        raise DataError(
            f"{path}: pixel row {row} col {col} has value {float(values[row, col].max()):g}, expected "
            f"{low:g} to {high:g}; give the values of black and of full brightness with --img_color_range"
        )
    return stretch(values, value_range), alpha


def stretch(values: np.ndarray, value_range: tuple[float, ...]) -> np.ndarray:
    """Return values of [low, high] as uint8 0..255, rounded; outside they are clipped."""
    low, high = (float(v) for v in value_range)
    if (low, high) == (0.0, 255.0) and values.dtype == np.uint8:
        return np.array(values)
    return np.rint(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def write_png(path: str | Path, values: np.ndarray) -> None:
    """Write uint8 [H, W], [H, W, 3] or [H, W, 4] as PNG, atomically."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values)).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def write_label_png(path: str | Path, labels: np.ndarray, colors: np.ndarray) -> None:
    """Write class labels [H, W] as a PNG with a colour table: small, and exactly the palette's colours."""
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8), mode="P")
    image.putpalette(np.ascontiguousarray(colors, dtype=np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())
