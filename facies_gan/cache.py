"""Facies pyramids kept on the disk: made once, found again by content, rebuilt when damaged.

Deleting the folder is always safe. Entries are plain NPZ files: nothing in them is executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch

from common.errors import DataError, UserError
from common.files import make_folder, remove_stale_temporaries
from common.log import get_logger
from facies_gan import neural_smoother
from facies_gan.arrays import read_npz, write_npz
from facies_gan.dataset import Section
from facies_gan.interpolators import InterpolatorConfig, NeuralSmoother, make_interpolator, smoother_beside
from facies_gan.palette import Palette

CODE_VERSION = 1  # raise it when a pyramid of the same inputs changes
SUBFOLDER = "facies_gan"
Scales = Sequence[tuple[int, int]]


class PyramidCache:
    """Pyramids by key below `<folder>/facies_gan/`, which only its owner may read.

    Args:
        folder: of all caches; None keeps nothing.

    Attributes:
        pyramid_hits: pyramids that `facies_pyramids` found here.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder) / SUBFOLDER
        self.pyramid_hits = 0
        if self.folder is not None:
            make_folder(self.folder)
            try:
                self.folder.chmod(0o700)
            except OSError as error:
                raise UserError(
                    f"{self.folder}: belongs to somebody else ({error.strerror}); choose another --cache_dir"
                ) from error
            remove_stale_temporaries(self.folder)

    def path(self, key: str) -> Path | None:
        """Return the file of an entry; None when nothing is kept."""
        return None if self.folder is None else self.folder / f"{key}.npz"

    def get(self, key: str, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor] | None:
        """Return an entry of arrays of these shapes; None when it is missing or, with a warning, damaged."""
        path = self.path(key)
        if path is None or not path.is_file():
            return None
        try:
            arrays = read_npz(path)
            found = [arrays[f"array_{i}"] for i in range(len(shapes))]
            wrong = [a for a, s in zip(found, shapes, strict=True) if a.shape != s or a.dtype != np.float32]
            if wrong or len(arrays) != len(shapes) or not all(np.isfinite(a).all() for a in found):
                raise DataError(f"{path}: other arrays than expected")
        except (DataError, KeyError) as error:
            get_logger().warning("warning: cache entry is damaged and made again: %s", str(error)[:200])
            return None
        return [torch.from_numpy(a) for a in found]

    def put(self, key: str, arrays: Sequence[torch.Tensor]) -> None:
        """Keep an entry."""
        path = self.path(key)
        if path is not None:
            write_npz(path, {f"array_{i}": a.numpy() for i, a in enumerate(arrays)})

    def clear(self) -> int:
        """Delete all entries; return how many there were."""
        entries = [] if self.folder is None else sorted(self.folder.glob("*.npz"))
        for path in entries:
            path.unlink(missing_ok=True)
        return len(entries)


def _key(*parts: Any) -> str:
    return str(joblib.hash((CODE_VERSION, *parts)))


def facies_pyramids(
    sections: Sequence[Section],
    palette: Palette,
    scales: Sequence[Scales],
    interpolator: str = "area",
    *,
    cache: PyramidCache | None = None,
    num_workers: int = 1,
    config: InterpolatorConfig | None = None,
    device: torch.device | str = "cpu",
) -> list[list[torch.Tensor]]:
    """Return the pyramid of each section, float32 [C, H_k, W_k] a scale; equal for any number of workers.

    Args:
        sections: on their native grids.
        palette: their facies.
        scales: sizes (H_k, W_k) for each section.
        interpolator: "area", "nearest" or "neural".
        cache: where made pyramids are kept.
        num_workers: threads that make missing ones.
        config: of the interpolator; classes, palette and device are set here.
        device: where smoothers are fitted.
    """
    cache = cache or PyramidCache(None)
    settings = config or InterpolatorConfig()
    settings = InterpolatorConfig(
        **{**vars(settings), "num_classes": len(palette), "palette": palette, "device": device}
    )
    smoothers = [_smoother_digest(s) if interpolator == "neural" else "" for s in sections]
    keys = [
        _key(
            section.digest,
            palette.to_dict(),
            [tuple(s) for s in sizes],
            interpolator,
            settings.settings(),
            own,
        )
        for section, sizes, own in zip(sections, scales, smoothers, strict=True)
    ]
    found = [
        cache.get(key, [(len(palette), *size) for size in sizes])
        for key, sizes in zip(keys, scales, strict=True)
    ]
    missing = [i for i, pyramid in enumerate(found) if pyramid is None]
    cache.pyramid_hits += len(found) - len(missing)
    weights = _smoothers([sections[i] for i in missing], settings, cache) if interpolator == "neural" else {}

    def build(i: int) -> list[torch.Tensor]:
        maker = make_interpolator(interpolator, settings)
        if isinstance(maker, NeuralSmoother):
            maker.weights = weights[sections[i].digest]
        pyramid = [grid.contiguous() for grid in maker.interpolate(sections[i].labels, scales[i])]
        cache.put(keys[i], pyramid)
        return pyramid

    # Threads: the arithmetic releases the lock, and nothing has to be copied to other processes.
    jobs = joblib.Parallel(n_jobs=max(1, num_workers), backend="threading")
    built: Any = jobs(joblib.delayed(build)(i) for i in missing)
    fresh: dict[int, list[torch.Tensor]] = dict(zip(missing, built, strict=True))
    return [pyramid or fresh[i] for i, pyramid in enumerate(found)]


def _smoother_digest(section: Section) -> str:
    """Return the SHA-256 of the smoother beside a section's file; "" when there is none."""
    path = section.path.with_suffix(".pt") if section.path is not None else None
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None and path.is_file() else ""


def _smoothers(
    sections: Sequence[Section], settings: InterpolatorConfig, cache: PyramidCache
) -> dict[str, neural_smoother.Weights]:
    """Return each section's network by digest: from beside its file, the cache, or fitted together."""
    count = settings.num_classes
    shapes = neural_smoother.weight_shapes(count)
    fit = {"scale": settings.scale, "steps": settings.fit_steps, "seed": settings.seed, "classes": count}
    palette = settings.palette.to_dict() if settings.palette else None
    weights: dict[str, neural_smoother.Weights] = {}
    unknown: dict[str, Section] = {}
    for section in sections:
        own = smoother_beside(section.path, count) if section.path is not None else None
        kept = own or cache.get(_key("smoother", section.digest, palette, fit), shapes)
        if kept is None:
            unknown[section.digest] = section
        else:
            weights[section.digest] = kept
    if unknown:
        fitted = NeuralSmoother(settings).fit([section.labels for section in unknown.values()])
        for digest, network in zip(unknown, fitted, strict=True):
            weights[digest] = network
            cache.put(_key("smoother", digest, palette, fit), network)
    return weights
