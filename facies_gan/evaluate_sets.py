"""The realisations that are measured: of the model, of the model without data, and of the baselines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from facies_gan.baselines import run_baseline
from facies_gan.config_evaluate import EvaluateConfig
from facies_gan.evaluate_data import Case, Scene
from facies_gan.gaussian import Covariance, fit_covariance, paste
from facies_gan.infer import realisations
from facies_gan.simulator import Conditioning, Simulator
from facies_gan.wells import WellSet


@dataclass(frozen=True, eq=False)
class Group:
    """Realisations of one section.

    Attributes:
        grids: uint8 [N, H, W].
        wells: data that they honour.
        truth: uint8 [H, W], the section; None when they are of no section of the reference.
        plain: uint8 [N, n], what the network alone says at the data; None for other methods.
    """

    grids: np.ndarray
    wells: WellSet
    truth: np.ndarray | None = None
    plain: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class MethodSet:
    """All realisations of a method.

    Attributes:
        name: of the method.
        groups: one for each section; empty when it was not run.
        cpu_seconds: that they took in all, fitting included.
        note: why it was not run.
    """

    name: str
    groups: list[Group] = field(default_factory=list)
    cpu_seconds: float = 0.0
    note: str = ""

    @property
    def grids(self) -> list[np.ndarray]:
        """All realisations."""
        return [grid for group in self.groups for grid in group.grids]

    @property
    def seconds_each(self) -> float | None:
        """CPU seconds of one realisation."""
        return self.cpu_seconds / len(self.grids) if self.groups and self.cpu_seconds else None


class Maker:
    """Makes the sets of one case.

    Args:
        config: the flags.
        case: the reference.
        simulator: the model; None when realisations are given.
        seed: of everything.
    """

    def __init__(self, config: EvaluateConfig, case: Case, simulator: Simulator | None, seed: int) -> None:
        self.config, self.case, self.simulator, self.seed = config, case, simulator, seed
        self._covariance: Covariance | None = None
        self._not_run: dict[str, str] = {}

    def model(
        self, wells: Sequence[WellSet], count: int, name: str = "ours", scenes: Sequence[Scene] = ()
    ) -> MethodSet:
        """Return `count` realisations of each scene through its wells."""
        simulator = self.simulator
        assert simulator is not None
        scenes = scenes or self.case.scenes
        started = time.process_time()
        groups = []
        for number, (scene, data) in enumerate(zip(scenes, wells, strict=True)):
            known = Conditioning(simulator.card, scene.shape, data, scene.seismic)
            indices = [number * count + i for i in range(count)]
            made = [
                one
                for _, one in realisations(
                    simulator,
                    known,
                    indices,
                    seed=self.seed,
                    batch_size=self.config.batch_size,
                    tile=self.config.tile,
                )
            ]
            grids = np.concatenate([one.labels for one in made])
            plain = np.concatenate([one.plain for one in made])
            groups.append(Group(grids, data, scene.truth, self._ordered(plain, known, data)))
        return MethodSet(name, groups, time.process_time() - started)

    def _ordered(self, plain: np.ndarray, known: Conditioning, wells: WellSet) -> np.ndarray | None:
        """Return what the network says, in the order of the wells' data."""
        if not len(wells) or self.simulator is None:
            return None
        rows, cols, _ = known.cells(known.sizes[self.simulator.top])
        grid = np.full(known.size, -1)
        grid[rows.numpy(), cols.numpy()] = np.arange(len(rows))
        return plain[:, grid[wells.rows, wells.cols]]

    def baseline(
        self, name: str, wells: Sequence[WellSet], count: int, scenes: Sequence[Scene] = ()
    ) -> MethodSet:
        """Return `count` realisations of each scene by a baseline; a note when it cannot run."""
        scenes = scenes or self.case.scenes
        if name in self._not_run:  # it failed before, and said so
            return MethodSet(name, note=self._not_run[name])
        classes = len(self.case.palette)
        groups, seconds = [], 0.0
        if name == "tgs" and self._covariance is None:
            started = time.process_time()
            self._covariance = fit_covariance(self.case.truths, classes)
            seconds = time.process_time() - started
        for number, (scene, data) in enumerate(zip(scenes, wells, strict=True)):
            done = run_baseline(
                name, self.case.truths, classes, scene.shape, count,
                wells=data, seed=self.seed + 1000 * number, covariance=self._covariance,
            )  # fmt: skip
            if done.realisations is None:
                self._not_run[name] = done.note
                return MethodSet(name, note=done.note)
            seconds += done.cpu_seconds
            groups.append(Group(done.realisations, data, scene.truth))
        return MethodSet(name, groups, seconds)


def pasted(free: MethodSet, wells: Sequence[WellSet]) -> MethodSet:
    """Return realisations made without data, with the data written into their cells alone."""
    groups = [
        Group(paste(group.grids, data), data, group.truth)
        for group, data in zip(free.groups, wells, strict=True)
    ]
    return MethodSet("paste", groups, free.cpu_seconds)
