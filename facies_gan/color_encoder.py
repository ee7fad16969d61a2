"""From colours to classes and back on tensors, and the weights that balance rare classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from facies_gan.palette import ColorCounter, Palette


class ColorEncoder:
    """Colours <-> class labels of one palette, on any device, in float32.

    Args:
        source: a `Palette`, an image uint8 [H, W, 3], or several images whose colours together are the
        palette
            (sorted by R, G, B). Counts of images are kept for `class_weights`.
    """

    def __init__(self, source: Palette | np.ndarray | Sequence[np.ndarray]) -> None:
        images: list[np.ndarray] = []
        if isinstance(source, Palette):
            self.palette = source
        else:
            images = [source] if isinstance(source, np.ndarray) else list(source)
            counter = ColorCounter()
            for number, image in enumerate(images):
                counter.add(np.asarray(image), f"image {number}")
            self.palette = counter.palette()
        self.counts = np.zeros(len(self.palette), dtype=np.int64)
        for number, image in enumerate(images):
            self.count(self.palette.to_labels(np.asarray(image), f"image {number}"))

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return len(self.palette)

    def count(self, labels: np.ndarray) -> None:
        """Add the cells of labels [H, W] to the counts that `class_weights` uses."""
        self.counts += np.bincount(np.asarray(labels).reshape(-1), minlength=self.num_classes)

    def encode(self, rgb: torch.Tensor) -> torch.Tensor:
        """Return the label int64 [...] of the nearest colour of each pixel [..., 3] (0..255)."""
        colors = torch.as_tensor(self.palette.colors, dtype=torch.float32, device=rgb.device)
        best = torch.full(rgb.shape[:-1], float("inf"), dtype=torch.float32, device=rgb.device)
        labels = torch.zeros(rgb.shape[:-1], dtype=torch.int64, device=rgb.device)
        pixels = rgb.to(torch.float32)
        for label in range(self.num_classes):  # C passes instead of C copies of the image
            distance = ((pixels - colors[label]) ** 2).sum(-1)
            labels = torch.where(distance < best, label, labels)
            best = torch.minimum(best, distance)
        return labels

    def decode(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the colours uint8 [..., 3] of labels [...]."""
        return torch.as_tensor(self.palette.colors, device=labels.device)[labels.long()]

    def class_weights(self, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return N / (C count_c) divided by its mean, float32 [C]; a class that never occurs counts once.

        Args:
            labels: cells to count; None = the images and labels this encoder has seen.

        Raises:
            ValueError: nothing was counted.
        """
        counts = torch.as_tensor(self.counts)
        if labels is not None:
            counts = torch.bincount(labels.reshape(-1).long(), minlength=self.num_classes)
        if int(counts.sum()) == 0:
            raise ValueError("no cells counted: give images to the encoder, or labels to class_weights")
        return balance(counts)


def balance(counts: torch.Tensor) -> torch.Tensor:
    """Return N / (C count_c) over its mean, float32 [C], of cell counts [C]; a count of 0 stands for 1."""
    weights = counts.sum() / (len(counts) * counts.clamp(min=1).to(torch.float32))
    return (weights / weights.mean()).to(torch.float32)
