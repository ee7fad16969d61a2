"""A model, or any simulator's files, beside baselines and the reference's own band: tables, JSON, figures."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common import distributed
from common.device import explain_out_of_memory, peak_memory_bytes, resolve_precision
from common.errors import UserError
from common.files import require_writable, write_json, write_text
from common.log import get_logger
from common.report import Row, save_rows
from common.run import MachineOptions, describe_run, machine
from facies_gan import evaluate_figures as pictures
from facies_gan.baselines import REFERENCE_SOURCE, STREBELLE_REFERENCE, is_strebelle
from facies_gan.comparison import PUBLISHED, facies_table, match_table, row_guess_accuracy, score
from facies_gan.config import PACKAGE
from facies_gan.config_evaluate import EvaluateConfig
from facies_gan.evaluate_data import Case, read_case, read_realisations
from facies_gan.evaluate_page import write_page
from facies_gan.evaluate_report import demo_rows, markdown
from facies_gan.evaluate_sets import Group, Maker, MethodSet, pasted
from facies_gan.evaluate_wells import Blending, measure_blending, measure_calibration
from facies_gan.infer import ADVICE
from facies_gan.metrics import DISTANCES, entropy_of_nearest, split_half
from facies_gan.model_files import load
from facies_gan.simulator import Simulator
from facies_gan.wells import WellSet

GIVEN, OURS, FREE = "given", "ours", "unconditioned"


def evaluate(config: EvaluateConfig, options: MachineOptions, out: Path) -> list[Row]:
    """Measure realisations; write evaluation.{json,md}, index.html, results.json and figures into `out`.

    Returns:
        The headline measures.

    Raises:
        UserError: flags that do not fit the model, or `out` holds an earlier report.
        DataError: the model, the reference, the data or the realisations cannot be used.
    """
    require_writable(out)
    if (out / "evaluation.json").exists() and not options.overwrite:
        raise UserError(f"{out}: holds a report; replace it with --overwrite, or choose another --out")
    with machine(options) as device, explain_out_of_memory(ADVICE):
        simulator = None
        if config.model_path is not None:
            name = "fp32" if options.precision == "auto" else options.precision
            simulator = load(config.model_path, device, precision=resolve_precision(name, device))
        case = read_case(config, simulator.card if simulator else None)
        get_logger().info(
            f"reference: {len(case.scenes)} sections, the first of {case.scenes[0].shape[0]} x "
            f"{case.scenes[0].shape[1]} cells (H x W), {len(case.palette)} facies, "
            f"{sum(len(s.wells) for s in case.scenes)} data"
        )
        if options.dry_run:
            return []
        report = _Report(config, case, simulator, options.seed)
        document = report.document() | {"peak_memory_bytes": peak_memory_bytes(device)}
        rows = demo_rows(document, _parameters(simulator))
        if distributed.is_main():
            write_json(out / "evaluation.json", document)
            text = markdown(document)
            write_text(out / "evaluation.md", text)
            save_rows(out / "results.json", rows)
            if config.figures:
                report.draw(out / "figures", document)
            write_page(out / "index.html", text, case.palette)
            get_logger().info(f"\n{text}\n{out / 'index.html'}: the report with its figures")
        return rows


def _parameters(simulator: Simulator | None) -> int | None:
    """Return the number of weights of the generators."""
    if simulator is None:
        return None
    return sum(p.numel() for block in simulator.blocks for p in block.parameters())


class _Report:
    """All that is measured in one call.

    Args:
        config: the flags.
        case: the reference.
        simulator: the model; None when there are files alone.
        seed: of everything.
    """

    def __init__(self, config: EvaluateConfig, case: Case, simulator: Simulator | None, seed: int) -> None:
        self.config, self.case, self.seed = config, case, seed
        self.maker = Maker(config, case, simulator, seed)
        self.ours = GIVEN if config.realisations is not None else OURS
        self.blending: list[Blending] = []
        self.calibration: dict[str, Any] = {}
        self.not_run: dict[str, str] = {}
        self.sets = self._given() if config.realisations is not None else self._made()

    def _given(self) -> dict[str, MethodSet]:
        """Return the set of existing files, and baselines on the same grid with the same data."""
        assert self.config.realisations is not None
        grids = read_realisations(self.config.realisations, self.case.palette, self.config)
        shape = grids[0].shape[0], grids[0].shape[1]
        scene = self.case.scenes[0]
        wells = scene.wells if scene.shape == shape and self.case.is_single else WellSet.empty()
        same = self.case.is_single and scene.shape == shape
        stack = Group(grids=np.stack(grids), wells=wells, truth=scene.truth if same else None)
        sets = {GIVEN: MethodSet(GIVEN, [stack])}
        if self.config.hard_data is not None and not same:
            raise UserError(
                f"--hard_data: the realisations have {shape[0]} x {shape[1]} cells, the reference "
                f"{scene.shape[0]} x {scene.shape[1]}; both must be the same grid"
            )
        place = replace(scene, truth=scene.truth if same else grids[0])
        return sets | self._baselines([wells], len(grids), [place], keep_truth=same)

    def _made(self) -> dict[str, MethodSet]:
        """Return the model's sets with and without the data, and those of the baselines."""
        case, count = self.case, self.config.how_many
        wells = [scene.wells for scene in case.scenes]
        nothing = [WellSet.empty() for _ in wells]
        free = self.maker.model(nothing, count, FREE)
        if any(len(data) for data in wells):
            sets = {OURS: self.maker.model(wells, count), FREE: free, "paste": pasted(free, wells)}
        else:
            sets = {OURS: replace(free, name=OURS)}
        sets |= self._baselines(wells, count, case.scenes)
        assert self.maker.simulator is not None
        if self.maker.simulator.card.has_data:
            if self.config.blending_count:
                few = min(self.config.blending_count, count)
                self.blending = measure_blending(self.maker, free, few, self.seed)
            if self.config.holdout_wells:
                self.calibration = measure_calibration(
                    self.maker, self.config.holdout_wells, count, self.seed
                )
        elif self.config.holdout_wells:
            raise UserError("--holdout_wells: the model was trained without wells; leave it out")
        return sets

    def _baselines(
        self, wells: Any, count: int, scenes: Any, *, keep_truth: bool = True
    ) -> dict[str, MethodSet]:
        found = {}
        for name in self.config.baseline_names:
            made = self.maker.baseline(name, wells, count, scenes)
            if not made.groups:
                self.not_run[name] = made.note
                continue
            groups = made.groups if keep_truth else [replace(g, truth=None) for g in made.groups]
            found[name] = replace(made, groups=groups)
        return found

    def document(self) -> dict[str, Any]:
        """Return everything measured, as plain values."""
        case, lag = self.case, self.config.max_lag
        scores = {name: score(made, case, lag, self.seed) for name, made in self.sets.items()}
        about = describe_run(PACKAGE, self.seed)
        published = {}
        if is_strebelle(case.truths) and "snesim" not in scores:
            published = {k: v for k, (v, _) in STREBELLE_REFERENCE.items() if v is not None}
            scores[PUBLISHED] = published
        ours = self.sets[self.ours]
        return {
            "command": shlex.join(about["command"]),
            "run": about,
            "ours": self.ours,
            "how_many": len(ours.groups[0].grids),
            "sections": len(ours.groups),
            "shape": list(ours.groups[0].grids.shape[1:]),
            "num_data": sum(len(group.wells) for group in ours.groups),
            "scores": scores,
            "half_vs_half": split_half(case.truths, len(case.palette), max_lag=lag),
            "published_source": REFERENCE_SOURCE if published else "",
            "reference": self._reference_scores(),
            "row_guess_accuracy": row_guess_accuracy(case),
            "facies": facies_table(self.sets, case),
            "hard_data": match_table(ours, case),
            "blending": [{"wells": b.pattern.name, "methods": b.scores} for b in self.blending],
            "calibration": self.calibration,
            "not_run": self.not_run,
            "cpu_seconds_each": {name: made.seconds_each for name, made in self.sets.items()},
        }

    def _reference_scores(self) -> dict[str, float]:
        """Return what the reference itself shows at the same data, and its bodies."""
        case = self.case
        truths = [Group(s.truth[None], s.wells, s.truth) for s in case.scenes]
        found = score(MethodSet("reference", truths), case, self.config.max_lag, self.seed)
        with_data = [scene for scene in case.scenes if len(scene.wells)]
        if case.is_single and with_data:
            scene = with_data[0]
            left = entropy_of_nearest([scene.truth], scene.wells, len(case.palette))
            found |= {f"entropy_{d}": float(e) for d, e in zip(DISTANCES, left, strict=True) if e >= 0}
        return found

    def draw(self, folder: Path, document: Mapping[str, Any]) -> None:
        """Draw all figures that there is something for."""
        case, scores = self.case, document["scores"]
        ours = self.sets[self.ours]
        compared = {name: made for name, made in self.sets.items() if name != FREE}
        shown = {"ours" if name == GIVEN else name: made for name, made in compared.items()}
        pictures.draw_realisations(folder / "realisations.png", case, ours)
        pictures.draw_curves(folder / "curves.png", case, shown, self.config.max_lag)
        pictures.draw_scores(folder / "scores.png", scores, document["half_vs_half"], self.ours)
        pictures.draw_mds(folder / "mds.png", case, shown)
        pictures.draw_entropy_curves(
            folder / "entropy.png",
            {n: s for n, s in scores.items() if n not in (FREE, "paste")}
            | {"reference, nearest datum alone": document["reference"]},
        )
        if not case.is_single:
            pictures.draw_proportion_curves(folder / "proportions.png", case, ours)
        if self.blending:
            pictures.draw_blending(folder / "blending.png", case, self.blending)
        if self.calibration:
            pictures.draw_calibration(folder / "calibration.png", self.calibration)
