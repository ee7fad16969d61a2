"""The files of a run beside the house's: model.pt, options.json, wells.npz and one folder a scale.

    model.pt   <k>/generator.pt  <k>/discriminator.pt  <k>/noise_amp.pt  <k>/shape.json  <k>/samples/*.png

Every one goes through the writer of `common.checkpoint` or `common.files`. The folders of the scales hold
enough to make model.pt again.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import checkpoint as checkpoints
from common.checkpoint import Checkpoint
from common.errors import DataError
from common.files import write_json
from facies_gan.arrays import write_npz
from facies_gan.config import PACKAGE, TrainingOptions
from facies_gan.generator import ScaleGenerator
from facies_gan.model_card import ModelCard, StoredSection, read_card

KIND = "gan"
SCALE_KINDS = {"generator": "generator", "discriminator": "critic", "noise_amp": "amplitude"}
PREFIX = "generators"
Weights = Mapping[str, torch.Tensor]


def flat_weights(blocks: Mapping[int, Weights]) -> dict[str, torch.Tensor]:
    """Return the weights of all scales under names like generators.3.convolutions.0.weight."""
    return {
        f"{PREFIX}.{k}.{name}": value.detach().cpu()
        for k, weights in sorted(blocks.items())
        for name, value in weights.items()
    }


def blocks_from(card: ModelCard, weights: Weights, where: str | Path) -> list[ScaleGenerator]:
    """Return the generators of the trained scales.

    Raises:
        DataError: weights are missing or of another shape.
    """
    blocks = []
    for k in range(card.num_trained):
        prefix = f"{PREFIX}.{k}."
        own = {name.removeprefix(prefix): v for name, v in weights.items() if name.startswith(prefix)}
        try:
            block = ScaleGenerator(card.architecture, k)
            block.load_state_dict(own)
        except (RuntimeError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            first = (str(error).strip().splitlines() or [repr(error)])[-1]
            raise DataError(
                f"{where}: scale {k} does not fit its description ({first}); train again"
            ) from error
        blocks.append(block)
    return blocks


def model_checkpoint(card: ModelCard, weights: Weights, config: dict[str, Any], step: int) -> Checkpoint:
    """Return the content of model.pt."""
    return Checkpoint(PACKAGE, KIND, config, card.to_dict(), dict(weights), step=step)


def write_scale(
    folder: Path,
    k: int,
    card: ModelCard,
    generator: Weights,
    critic: Weights,
    config: dict[str, Any],
    step: int,
) -> None:
    """Write the folder of scale k."""
    own = folder / str(k)
    card = replace(card, sections=card.sections if k == 0 else ())
    contents = {
        "generator": {name: value.detach().cpu() for name, value in generator.items()},
        "discriminator": {name: value.detach().cpu() for name, value in critic.items()},
        "noise_amp": {"noise_amp": torch.tensor(card.amplitudes[k])},
    }
    for name, weights in contents.items():
        checkpoints.save(
            own / f"{name}.pt",
            Checkpoint(PACKAGE, SCALE_KINDS[name], config, card.to_dict(), weights, step=step),
        )
    height, width = card.scales(card.size)[k]
    write_json(own / "shape.json", {"scale": k, "height": height, "width": width})


def assemble(folder: Path) -> Checkpoint:
    """Return what model.pt would hold, from the folders of the scales.

    Raises:
        DataError: a scale is missing or damaged.
    """
    found: list[Checkpoint] = []
    while (folder / str(len(found)) / "generator.pt").is_file():
        path = folder / str(len(found)) / "generator.pt"
        found.append(checkpoints.load(path, package=PACKAGE, kinds=[SCALE_KINDS["generator"]]))
    if not found:
        raise DataError(f"{folder}: neither model.pt nor 0/generator.pt; name the folder of a finished run")
    cards = [read_card(part.normalization, folder) for part in found]
    card = cards[0]
    if any(k >= len(one.amplitudes) for k, one in enumerate(cards)):
        raise DataError(f"{folder}: its scales are of different runs; train again")
    amplitudes = [one.amplitudes[k] for k, one in enumerate(cards)]
    weights = flat_weights({k: part.state_dict for k, part in enumerate(found)})
    card = replace(card, amplitudes=tuple(amplitudes))
    return model_checkpoint(card, weights, found[0].config, found[-1].step)


def read_critic(source: Path, k: int) -> dict[str, torch.Tensor] | None:
    """Return the critic of scale k of the run that `source` (its folder, or a file in it) belongs to."""
    folder = source if source.is_dir() else source.parent
    for place in (folder, folder.parent):
        path = place / str(k) / "discriminator.pt"
        if path.is_file():
            return checkpoints.load(path, package=PACKAGE, kinds=["critic"]).state_dict
    return None


def write_start(folder: Path, options: TrainingOptions, sections: Sequence[StoredSection]) -> None:
    """Write options.json and wells.npz."""
    write_json(folder / "options.json", dataclasses.asdict(options))
    wells = [section for section in sections if len(section.wells)]
    parts = [section.wells for section in wells]
    stems = np.array([s.stem for s in wells for _ in range(len(s.wells))] or [""], dtype=np.str_)
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        if parts
        else np.zeros(0, dtype=np.int32)
        for name in ("rows", "cols", "facies", "well_id")
    }
    write_npz(folder / "wells.npz", {**arrays, "image_names": stems if wells else stems[:0]})


def remove_scales(folder: Path) -> None:
    """Delete the scale folders and the model of an earlier run."""
    for path in folder.glob("[0-9]*"):
        if path.name.isdecimal() and (path / "shape.json").is_file():
            shutil.rmtree(path)
    for name in ("model.pt", "options.json", "wells.npz", "profiler_trace.json"):
        (folder / name).unlink(missing_ok=True)
