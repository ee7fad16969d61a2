"""A minute of training teaches something: shapes, data and their shares, and not one picture only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common.device import Precision
from common.guard import Guard
from facies_gan.metrics import compare
from facies_gan.setup import prepare
from facies_gan.simulator import Conditioning, Simulator, realisation_noise
from facies_gan.synthetic import make_channels
from facies_gan.train import FaciesTask
from tests.facies_gan.cases_gan import CPU, options, run_options, write_image

ITERATIONS = 60


def shares_at_data(task: FaciesTask, first: int) -> tuple[float, float]:
    """Return the mean share of facies 1 at data of scale 1: of the draws, and of the section itself."""
    trainer, samples = task.trainer, task.setup.samples
    assert trainer is not None and not trainer.pyramid.injects[1]
    made, own = [], []
    for i in range(first, first + 30):
        batch = samples.batch(trainer.plan, i)
        previous, inputs = trainer.inputs(batch, 0, rebuild=True)
        with torch.no_grad():
            fake = trainer.generator(previous, inputs)[1].logits.softmax(dim=1)[:, 1]
        mask = batch.real_condition[1][0, 2] > 0
        made.append(fake[:, mask].reshape(-1))
        own.append(batch.real[1][0, 1][mask])
    return float(torch.cat(made).mean()), float(torch.cat(own).mean())


def realised(task: FaciesTask) -> np.ndarray:
    """Return four realisations uint8 [4, 64, 64] without data."""
    model = Simulator(task.card(), task.averaged_blocks(), CPU)
    return model.realise(
        Conditioning(model.card, (64, 64)), realisation_noise(model.card, 1), range(4)
    ).labels


@pytest.mark.slow
def test_sixty_iterations_teach(tmp_path: Path):
    """Patterns come closer to the image, data are learnt, coarse shares at data are right, draws differ."""
    labels = make_channels(0, 0, 64, 64)
    image = write_image(tmp_path / "image.png", labels)
    chosen = options(
        training_image=image, cache_dir=tmp_path / "cache", min_size=16, num_iter=ITERATIONS, num_feature=16,
        min_num_feature=16, crop_size=64, coarse_iter_factor=2.0, no_well_prob=0.2,
    )  # fmt: skip
    run = run_options(tmp_path / "run")
    untrained, task = (
        FaciesTask(prepare(chosen, run), Guard(CPU), Precision(CPU, torch.float32), run) for _ in range(2)
    )
    wells: dict[int, list[float]] = {}
    for plan in task.setup.plans:
        untrained.start_phase(f"group {plan.index + 1}")
        task.start_phase(f"group {plan.index + 1}")
        for i in range(plan.iterations):
            values = task.step(task.setup.samples.batch(plan, i), i)
            wells.setdefault(plan.index, []).append(float(values["Mean/G_Well_Constraint"]))
        if plan.index == 0:
            made, own = shares_at_data(task, plan.iterations)
            assert abs(made - own) < 0.10 and 0.1 < own < 0.9
    for losses in wells.values():
        assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:5])
    before, after = (compare(realised(t), labels, 2)["mph3"] for t in (untrained, task))
    assert after < 0.7 * before
    found = realised(task)
    assert all((found[0] != other).mean() > 0.02 for other in found[1:])
