"""Wells drawn from the reference itself: how data blend in, and how true predicted probabilities are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import UserError
from common.noise import numpy_stream
from facies_gan import metrics as M
from facies_gan.comparison import well_scores
from facies_gan.evaluate_data import Case, Scene
from facies_gan.evaluate_sets import Group, Maker, MethodSet, pasted
from facies_gan.wells import WellSet

MOST_SCENES = 4  # sections on which blending is measured
SMALL = 8  # cells of a small body


@dataclass(frozen=True)
class Pattern:
    """A number of columns, or of scattered points, that are known."""

    name: str
    count: int
    points: bool = False

    def draw(self, truth: np.ndarray, seed: int, scene: int) -> WellSet:
        """Return data of a section [H, W]: a seeded choice; at most half of its columns."""
        rng = numpy_stream(seed, f"evaluation {self.name}", scene)
        height, width = truth.shape
        if self.points:
            cells = rng.permutation(height * width)[: self.count]
            rows, cols = np.divmod(np.sort(cells), width)
            return WellSet.from_cells(rows, cols, truth[rows, cols], np.arange(len(rows)))
        columns = rng.permutation(width)[: min(self.count, width // 2)]
        return WellSet.from_columns(truth, sorted(columns.tolist()))


PATTERNS = (
    Pattern("1 well", 1),
    Pattern("8 wells", 8),
    Pattern("64 wells", 64),
    Pattern("64 points", 64, points=True),
)


@dataclass(frozen=True, eq=False)
class Blending:
    """The realisations through one pattern of wells, and their scores.

    Attributes:
        pattern: what was drawn.
        sets: of each method.
        scores: {method: {measure: value}}; of the reference itself under "reference".
    """

    pattern: Pattern
    sets: dict[str, MethodSet]
    scores: dict[str, dict[str, float]]


def measure_blending(maker: Maker, free: MethodSet, count: int, seed: int) -> list[Blending]:
    """Return how the model and its baselines honour 1, 8 and 64 wells and 64 points of the reference."""
    case = maker.case
    scenes = case.scenes[:MOST_SCENES]
    free = MethodSet("free", [Group(g.grids[:count], g.wells, g.truth) for g in free.groups[:MOST_SCENES]])
    found = []
    for pattern in PATTERNS:
        wells = [pattern.draw(scene.truth, seed, i) for i, scene in enumerate(scenes)]
        sets = {"ours": maker.model(wells, count, scenes=scenes), "paste": pasted(free, wells)}
        for name in maker.config.baseline_names:
            sets[name] = maker.baseline(name, wells, count, scenes)
        scores = {name: blending_scores(made, case) for name, made in sets.items() if made.groups}
        own = [Group(s.truth[None], w, s.truth) for s, w in zip(scenes, wells, strict=True)]
        scores["reference"] = blending_scores(MethodSet("reference", own), case)
        found.append(Blending(pattern, sets, scores))
    return found


def blending_scores(made: MethodSet, case: Case) -> dict[str, float]:
    """Return how data are honoured and embedded, and the mean number of bodies below 8 cells."""
    classes = len(case.palette)
    small = float(np.mean([M.small_bodies(grid, classes, SMALL) for grid in made.grids]))
    return {**well_scores(made.groups, case), "small_bodies": small}


def measure_calibration(maker: Maker, held_out: int, count: int, seed: int) -> dict[str, Any]:
    """Return how predicted probabilities at wells that were held out agree with what is there.

    The wells are those of --hard_data, or of the sections; a section with too few gets 8 columns of its own
    besides the held-out ones.

    Raises:
        UserError: no well would be left to condition on.
    """
    case, given = maker.case, maker.config.hard_data is not None
    kept, hidden = [], []
    for number, scene in enumerate(case.scenes):
        wells, out = _hold_out(scene, held_out, seed, number, given=given)
        kept.append(wells)
        hidden.append(out)
    shares = M.proportions(case.truths, len(case.palette))
    found: dict[str, Any] = {"held_out_wells": held_out, "held_out_data": sum(map(len, hidden))}
    for made in (maker.model(kept, count), *(maker.baseline(n, kept, count) for n in _fast(maker))):
        found[made.name] = _calibration(made.groups, hidden, shares)
    return found


def _fast(maker: Maker) -> Sequence[str]:
    """Return the baselines that honour data while they simulate: pasted data say nothing beside them."""
    return [name for name in maker.config.baseline_names if name != "tgs"]


def _hold_out(scene: Scene, count: int, seed: int, number: int, *, given: bool) -> tuple[WellSet, WellSet]:
    """Return the wells that are kept and those held out; `given` ones are all there are."""
    wells = scene.wells
    if wells.num_wells <= count and not given:
        wells = wells.merged(Pattern("held-out wells", 8 + count).draw(scene.truth, seed, number))
    numbers = np.unique(wells.well_id)
    if count >= len(numbers):
        raise UserError(
            f"--holdout_wells {count}: {scene.stem} has {len(numbers)} wells; hold out "
            "fewer, so that one is left"
        )
    order = numpy_stream(seed, "held-out wells", number).permutation(numbers)
    return wells.select(sorted(order[count:].tolist())), wells.select(sorted(order[:count].tolist()))


def _calibration(groups: Sequence[Group], hidden: Sequence[WellSet], shares: np.ndarray) -> dict[str, Any]:
    """Return the calibration over all sections, their cells laid side by side."""
    if not groups:
        return {}
    count = len(groups[0].grids)
    cells = np.concatenate([g.grids[:, w.rows, w.cols] for g, w in zip(groups, hidden, strict=True)], axis=1)
    facies = np.concatenate([w.facies for w in hidden])
    row = np.arange(len(facies))
    line = WellSet(np.zeros_like(row), row, facies, np.zeros_like(row), ("held out",))
    found = M.calibration(cells.reshape(count, 1, -1), line, shares)
    return {
        "ece": found.ece,
        "log_score": found.log_score,
        "proportions_log_score": found.baseline_log_score,
        "predicted": found.predicted.tolist(),
        "observed": found.observed.tolist(),
    }
