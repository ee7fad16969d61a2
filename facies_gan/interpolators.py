"""From an image to its pyramid, in four ways: area average, nearest cell, neural smoother, wells."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import DataError
from facies_gan import neural_smoother
from facies_gan.images import read_rgb
from facies_gan.palette import ColorCounter, Palette
from facies_gan.pyramids import one_hot, to_wells_pyramids
from facies_gan.resample import area, cell_centre_index
from facies_gan.wells import WellSet

INTERPOLATORS = ("area", "nearest", "neural")
Image = str | Path | np.ndarray
Pyramid = list[torch.Tensor]


@dataclass(frozen=True)
class InterpolatorConfig:
    """How images become pyramids.

    Attributes:
        num_classes: facies C.
        scale: standard deviation sigma of the smoother's frequencies.
        upsample: the smoother renders at this many times the native grid.
        chunk_size: points rendered at a time.
        geometry: size (H, W) that images must have; None = that of the file.
        channels_last: return [H_k, W_k, C] instead of [C, H_k, W_k].
        palette: facies of the images' colours; None = the colours of the image itself.
        fit_steps: updates of the smoother.
        seed: of its frequencies and first weights.
        device: where the smoother computes.
    """

    num_classes: int = 4
    scale: float = 1.0
    upsample: int = 4
    chunk_size: int = 65536
    geometry: tuple[int, int] | None = None
    channels_last: bool = False
    palette: Palette | None = None
    fit_steps: int = 2000
    seed: int = 0
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.num_classes < 1 or self.upsample < 1 or self.chunk_size < 1 or self.fit_steps < 1:
            raise ValueError("num_classes, upsample, chunk_size and fit_steps: expected 1 or more")
        if not self.scale > 0:
            raise ValueError(f"scale {self.scale}: expected above 0")

    def settings(self) -> dict[str, Any]:
        """Return what decides the result, as plain values."""
        values = {**vars(self), "palette": self.palette.to_dict() if self.palette else None}
        return {
            name: values[name] for name in sorted(values) if name not in ("chunk_size", "geometry", "device")
        }


class BaseInterpolator(abc.ABC):
    """Makes the pyramid of an image."""

    name = ""

    def __init__(self, config: InterpolatorConfig | None = None) -> None:
        self.config = config or InterpolatorConfig()

    def interpolate(self, image: Image, scale_list: Sequence[tuple[int, int]]) -> Pyramid:
        """Return float32 [C, H_k, W_k] for each (H_k, W_k); the C shares of a cell sum to 1.

        Args:
            image: a PNG file, its colours uint8 [H, W, 3], or labels [H, W].
            scale_list: sizes from coarse to fine.
        """
        pyramid = self._pyramid(self.labels(image), list(scale_list), image)
        return (
            [grid.permute(1, 2, 0).contiguous() for grid in pyramid] if self.config.channels_last else pyramid
        )

    @abc.abstractmethod
    def _pyramid(self, labels: np.ndarray, scales: list[tuple[int, int]], image: Image) -> Pyramid:
        """Return the pyramid of labels [H, W]; `image` is what the user gave."""

    def labels(self, image: Image) -> np.ndarray:
        """Return the labels uint8 [H, W] of an image, by the palette of the configuration.

        Raises:
            DataError: unreadable, another size than `geometry`, or facies beyond `num_classes`.
        """
        where = str(image) if isinstance(image, str | Path) else "image"
        array = read_rgb(image)[0] if isinstance(image, str | Path) else np.asarray(image)
        if array.ndim == 3:
            palette = self.config.palette
            if palette is None:
                counter = ColorCounter()
                counter.add(array, where)
                palette = counter.palette()
            array = palette.to_labels(array, where)
        if self.config.geometry and array.shape != tuple(self.config.geometry):
            raise DataError(f"{where}: {array.shape} cells (H, W), expected {tuple(self.config.geometry)}")
        if array.size and int(array.max()) >= self.config.num_classes:
            raise DataError(f"{where}: facies {int(array.max())}, expected below {self.config.num_classes}")
        return array


class AreaInterpolator(BaseInterpolator):
    """The exact area average of the one-hot grid."""

    name = "area"

    def _pyramid(self, labels: np.ndarray, scales: list[tuple[int, int]], image: Image) -> Pyramid:
        grid = one_hot(labels, self.config.num_classes)
        return [area(grid, size) for size in scales]


class NearestInterpolator(BaseInterpolator):
    """The facies of the cell that holds the centre: row = floor((i + 0.5) H / H_k)."""

    name = "nearest"

    def _pyramid(self, labels: np.ndarray, scales: list[tuple[int, int]], image: Image) -> Pyramid:
        height, width = labels.shape
        chosen = [
            labels[np.ix_(cell_centre_index(h, height), cell_centre_index(w, width))] for h, w in scales
        ]
        return [one_hot(grid, self.config.num_classes) for grid in chosen]


class NeuralSmoother(BaseInterpolator):
    """A coordinate network fitted to the image, rendered finer than the image and averaged.

    A fitted network lies beside the image as <stem>.pt, is given as `weights`, or is fitted on the spot.
    """

    name = "neural"

    def __init__(
        self, config: InterpolatorConfig | None = None, weights: neural_smoother.Weights | None = None
    ) -> None:
        super().__init__(config)
        self.weights = weights

    def fit(self, images: Sequence[Image]) -> list[neural_smoother.Weights]:
        """Return a fitted network for each image; all are fitted together."""
        labels = [self.labels(image) for image in images]
        config = self.config
        return neural_smoother.fit(
            labels,
            config.num_classes,
            steps=config.fit_steps,
            sigma=config.scale,
            seed=config.seed,
            device=config.device,
        )

    def _pyramid(self, labels: np.ndarray, scales: list[tuple[int, int]], image: Image) -> Pyramid:
        weights = self.weights or smoother_beside(image, self.config.num_classes) or self.fit([labels])[0]
        config = self.config
        native = (labels.shape[0], labels.shape[1])
        return neural_smoother.smooth_pyramid(
            weights,
            native,
            scales,
            upsample=config.upsample,
            chunk_size=config.chunk_size,
            device=config.device,
        )


def smoother_beside(image: Image, num_classes: int) -> neural_smoother.Weights | None:
    """Return the network in <stem>.pt beside an image file; None when there is none."""
    if not isinstance(image, str | Path):
        return None
    path = Path(image).with_suffix(".pt")
    return neural_smoother.load_smoother(path, num_classes) if path.is_file() else None


class WellInterpolator(BaseInterpolator):
    """Hard data on every scale: C shares of the facies among the data of a cell, then their presence.

    The image is a `WellSet` with its native size, a wells tensor [C + 1, H, W], or a wells PNG whose
    transparent
    pixels hold no data.
    """

    name = "well"

    def interpolate(
        self, image: Image | WellSet | torch.Tensor, scale_list: Sequence[tuple[int, int]]
    ) -> Pyramid:
        """Return float32 [C + 1, H_k, W_k] for each (H_k, W_k)."""
        if isinstance(image, WellSet):
            if self.config.geometry is None:
                raise ValueError("a WellSet has no size: set geometry=(H, W) in the InterpolatorConfig")
            wells, native = image, self.config.geometry
        else:
            wells, native = self._read(image)
        pyramid = to_wells_pyramids(wells, native, scale_list, self.config.num_classes)
        return (
            [grid.permute(1, 2, 0).contiguous() for grid in pyramid] if self.config.channels_last else pyramid
        )

    def _read(self, image: Image | torch.Tensor) -> tuple[WellSet, tuple[int, int]]:
        if isinstance(image, str | Path):
            rgb, alpha = read_rgb(image)
            if alpha is None or self.config.palette is None:
                raise DataError(
                    f"{image}: cells without data cannot be told, expected transparency and a palette; read "
                    f"it with "
                    "its section instead"
                )
            labels = self.config.palette.to_labels(rgb, image, known=alpha > 0)
            return WellSet.from_mask(alpha > 0, labels), (labels.shape[0], labels.shape[1])
        grid = np.asarray(image)
        if grid.ndim != 3 or len(grid) != self.config.num_classes + 1:
            raise DataError(f"wells {grid.shape}: expected [{self.config.num_classes + 1}, H, W]")
        return WellSet.from_mask(grid[-1] > 0, grid[:-1].argmax(axis=0)), (grid.shape[1], grid.shape[2])

    def _pyramid(self, labels: np.ndarray, scales: list[tuple[int, int]], image: Image) -> Pyramid:
        raise NotImplementedError("wells have no labels everywhere")


_CLASSES = {kind.name: kind for kind in (AreaInterpolator, NearestInterpolator, NeuralSmoother)}


def make_interpolator(name: str, config: InterpolatorConfig) -> BaseInterpolator:
    """Return the interpolator called "area", "nearest" or "neural".

    Raises:
        ValueError: another name.
    """
    if name not in _CLASSES:
        raise ValueError(f"interpolator {name!r}: expected one of {', '.join(INTERPOLATORS)}")
    return _CLASSES[name](replace(config))
