"""Pictures as inputs: read from a folder, grey, 256 x 256."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from simulgen_vae.natural import natural_key

SIZE = 256
MAX_PIXELS = 50_000_000
_ENDS = {".png": b"IEND\xaeB`\x82", ".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9"}


def read_image_folder(
    folder: str | Path, suffix: str = ".png", files: Sequence[str] | None = None
) -> np.ndarray:
    """Return the pictures of a folder as uint8 [N, 256, 256], in natural order or in that of `files`.

    Raises:
        DataError: there are none, one is missing, cut short, too large or unreadable.
    """
    folder = Path(folder)
    if files is not None:
        paths = [folder / name for name in files]
    else:
        kinds = (".jpg", ".jpeg") if suffix.lower() in (".jpg", ".jpeg") else (suffix.lower(),)
        paths = sorted((p for p in folder.iterdir() if p.suffix.lower() in kinds), key=natural_key)
    if not paths:
        raise DataError(f"{folder}: holds no {suffix} picture, expected one a sample; see --param_data_type")
    return np.stack([read_image(path) for path in paths])


def read_image(path: Path) -> np.ndarray:
    """Return one picture as grey uint8 [256, 256].

    Raises:
        DataError: it is missing, cut short, too large or no picture.
    """
    from PIL import Image

    if not path.is_file():
        raise DataError(f"{path}: no such picture, expected one a sample")
    try:
        _require_whole(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise ValueError(f"{width} x {height} pixels, at most {MAX_PIXELS} are read")
                return _resized(picture.convert("L"))
    except (OSError, ValueError, SyntaxError, Warning, MemoryError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: no readable picture ({error}), expected a whole PNG or JPEG") from error


def _require_whole(path: Path) -> None:
    """Raise ValueError when the end mark is missing, which decoders forgive."""
    mark = _ENDS.get(path.suffix.lower())
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 4096))
        if mark is not None and mark not in file.read():
            raise ValueError("it is cut short")


def _resized(picture: Any) -> np.ndarray:
    from PIL import Image

    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)  # antialiased when shrinking
    return np.asarray(picture, dtype=np.uint8)


def threshold(images: np.ndarray, level: int) -> np.ndarray:
    """Return black and white pictures: 255 from grey value `level` on, 0 below."""
    return np.where(images >= level, 255, 0).astype(np.uint8)


def write_images(folder: Path, images: np.ndarray, digits: int = 5) -> None:
    """Write pictures uint8 [N, H, W] as PNG files named by their row."""
    from PIL import Image

    from common.files import atomic_path

    for i, image in enumerate(images):
        with atomic_path(folder / f"{i:0{digits}d}.png") as temporary:
            Image.fromarray(image).save(temporary, format="PNG")
