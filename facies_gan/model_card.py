"""What a model file holds beside weights, so that generation never needs the training data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import DataError
from common.normalization import Normalizer, ZScore
from facies_gan.canvas import Canvas, Size
from facies_gan.generator import Architecture
from facies_gan.geometry import GridGeometry
from facies_gan.gslib import GridHeader
from facies_gan.palette import Palette
from facies_gan.wells import WellSet

# What a description with wrong entries raises.
_DAMAGE = (
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    OverflowError,
    RuntimeError,
)


@dataclass(frozen=True, eq=False)
class StoredSection:
    """A section of the training data that travels with the model.

    Attributes:
        stem: its name.
        shape: (H, W) of the section.
        wells: its data.
        labels: uint8 [H, W] of an anchor or reference; None for a section known by its wells only.
        z_rec: float32 [Z, h, w], the noise from which scale 0 rebuilds it; None for no anchor.
        seismic: float32 [n_s, H, W], scaled, of an anchor; None without.
    """

    stem: str
    shape: Size
    wells: WellSet
    labels: np.ndarray | None = None
    z_rec: torch.Tensor | None = None
    seismic: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class ModelCard:
    """The facts about a trained pyramid.

    Attributes:
        architecture: of the networks.
        palette: the facies.
        fractions: side of each scale over that of the finest, coarse to fine, the last one 1.
        size: (H, W) of the finest training grid.
        native: (H, W) of its section in native cells.
        mode: what lies beyond a grid.
        injects: whether a scale takes the data's facies.
        amplitudes: of the noise, one for each trained scale.
        has_data: whether it can be conditioned on data.
        seismic: scaling of the seismic channels; None without.
        geometry: frame of the training grid.
        header: of its file; None for images.
        sections: stored ones: with wells, or anchors.
    """

    architecture: Architecture
    palette: Palette
    fractions: tuple[float, ...]
    size: Size
    native: Size
    mode: str
    injects: tuple[bool, ...]
    amplitudes: tuple[float, ...]
    has_data: bool
    seismic: ZScore | None = None
    geometry: GridGeometry = field(default_factory=GridGeometry)
    header: GridHeader | None = None
    sections: tuple[StoredSection, ...] = ()

    @property
    def num_trained(self) -> int:
        """Scales that have weights."""
        return len(self.amplitudes)

    @property
    def num_seismic(self) -> int:
        """Seismic channels n_s."""
        data = self.architecture.num_classes + 1 if self.has_data else 0
        return self.architecture.condition_channels - data

    @property
    def anchors(self) -> list[StoredSection]:
        """The sections that scale 0 rebuilds."""
        return [section for section in self.sections if section.z_rec is not None]

    def scales(self, size: Size) -> list[Size]:
        """Return the grid sizes of an output grid, coarse to fine; a coarse cell keeps its physical size."""
        return scales_from_fractions(size, self.fractions)

    def canvas(self, size: Size) -> Canvas:
        """Return the pyramid of an output grid."""
        return Canvas(tuple(self.scales(size)), self.architecture.border, self.mode)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values and tensors, for a checkpoint."""
        return {
            "architecture": asdict(self.architecture),
            "palette": self.palette.to_dict(),
            "fractions": list(self.fractions),
            "size": list(self.size),
            "native": list(self.native),
            "mode": self.mode,
            "injects": list(self.injects),
            "amplitudes": list(self.amplitudes),
            "has_data": self.has_data,
            "seismic": self.seismic.state_dict() if self.seismic else None,
            "geometry": self.geometry.to_dict(),
            "header": self.header.to_dict() if self.header else None,
            "sections": [_section_to_dict(section) for section in self.sections],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelCard:
        """Return what `to_dict` described."""
        stats = Normalizer.from_state_dict(values["seismic"]) if values["seismic"] else None
        assert stats is None or isinstance(stats, ZScore)
        return cls(
            architecture=Architecture.from_dict(values["architecture"]),
            palette=Palette.from_dict(values["palette"]),
            fractions=tuple(float(f) for f in values["fractions"]),
            size=(values["size"][0], values["size"][1]),
            native=(values["native"][0], values["native"][1]),
            mode=values["mode"],
            injects=tuple(values["injects"]),
            amplitudes=tuple(float(a) for a in values["amplitudes"]),
            has_data=values["has_data"],
            seismic=stats,
            geometry=GridGeometry.from_dict(values["geometry"]),
            header=GridHeader.from_dict(values["header"]) if values["header"] else None,
            sections=tuple(_section_from_dict(part) for part in values["sections"]),
        )


def read_card(values: dict[str, Any], where: str | Path) -> ModelCard:
    """Return what `ModelCard.to_dict` described, of the file or folder `where`.

    Raises:
        DataError: an entry is missing or wrong.
    """
    try:
        card = ModelCard.from_dict(values)
        if not 0 < card.num_trained <= len(card.fractions):
            raise ValueError(f"{card.num_trained} of {len(card.fractions)} scales")
        card.scales(card.size)
    except DataError as error:
        raise DataError(f"{where}: {error}; train again") from error
    except _DAMAGE as error:
        raise DataError(f"{where}: its description cannot be read ({error!r}); train again") from error
    return card


def scales_from_fractions(top: Size, fractions: tuple[float, ...]) -> list[Size]:
    """Return (H_k, W_k) = round(top * fraction), odd ones + 1; the finest is exact."""

    def side(n: int, fraction: float) -> int:
        shrunk = int(np.floor(n * fraction + 0.5))
        return max(2, shrunk + shrunk % 2)

    return [*((side(top[0], f), side(top[1], f)) for f in fractions[:-1]), top]


def _section_to_dict(section: StoredSection) -> dict[str, Any]:
    wells = section.wells
    columns = (wells.rows, wells.cols, wells.facies, wells.well_id)
    table = np.stack([column.astype(np.int32) for column in columns])
    return {
        "stem": section.stem,
        "shape": list(section.shape),
        "wells": torch.from_numpy(table) if len(wells) else None,
        "names": list(wells.names),
        "labels": None if section.labels is None else torch.from_numpy(section.labels.copy()),
        "z_rec": section.z_rec,
        "seismic": None if section.seismic is None else torch.from_numpy(section.seismic.copy()),
    }


def _section_from_dict(values: dict[str, Any]) -> StoredSection:
    table = values["wells"]
    wells = WellSet.empty()
    if table is not None:
        rows, cols, facies, ids = table.numpy()
        wells = WellSet(rows, cols, facies, ids, tuple(values["names"]))
    labels, seismic = values["labels"], values["seismic"]
    return StoredSection(
        values["stem"],
        (values["shape"][0], values["shape"][1]),
        wells,
        None if labels is None else labels.numpy(),
        values["z_rec"],
        None if seismic is None else seismic.numpy(),
    )
