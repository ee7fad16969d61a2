"""The benchmark at tiny sizes: every case trains, scores, and keeps the lines of the others."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import _fault_seg_quality as quality
from benchmarks import fault_seg as benchmark
from fault_seg.config import TRAIN_PRESETS
from fault_seg.infer import load
from fault_seg.model import HEADS
from tests.fault_seg.cases import make_cubes, save_model

Lines = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of two training cubes and one held-out cube."""
    return make_cubes(tmp_path_factory.mktemp("cubes"), ntrain=2, nvalid=1)


def measured(cubes: Path, folder: Path, case: str, networks: str) -> Lines:
    """Run a case and return its stored lines by what they say."""
    flags = ["--quality", case, f"--{case}_seconds", "0.4", "--data", str(cubes), "--checkpoints", "2"]
    flags += ["--crop", "16", "--ntune", "1", "--networks", *networks.split()]
    benchmark.run([*flags, "--result", str(folder / "r.json"), "--figure", str(folder / "curves.png")])
    result = json.loads((folder / "r.json").read_text())[case]
    assert result["settings"]["networks"] == networks.split() and result["seconds"] > 0
    return {line["what"]: line for line in result["rows"]}


def test_short_training(cubes: Path, tmp_path: Path):
    """The trained network is evaluated as users do: every goal has its line, and its baseline beside it."""
    lines = measured(cubes, tmp_path, "short", "hr")
    assert lines["short: hr: training"]["value"] >= 0.4
    for title, baseline in (("AP", "coherence"), ("median angle", "constant"), ("dhr PSNR", "input")):
        ours, base = (lines[f"short: {name}: {title}"]["value"] for name in ("hr", baseline))
        assert lines[f"short: hr - {baseline}: {title}"]["value"] == pytest.approx(ours - base, abs=1e-4)
    assert lines["short: hr: AP"]["at_least"] == 0.60 and lines["short: hr: median angle"]["at_most"] == 15
    assert lines["short: hr - input: dhr PSNR"]["at_least"] == 3.0


def test_learning_curves(cubes: Path, tmp_path: Path):
    """Each network is scored at each time, more steps behind the later one, and there is a figure."""
    lines = measured(cubes, tmp_path, "curves", "hr unet")
    for name in ("hr", "unet"):
        steps = [lines[f"curves: {name}, {mark:g} CPU s: steps"]["value"] for mark in (0.2, 0.4)]
        assert 1 <= steps[0] < steps[1]
        assert 0 < lines[f"curves: {name}, 0.4 CPU s: AP"]["value"] < 1
    ahead = lines["curves: hr - unet, 0.4 CPU s: AP"]
    ours, rival = (lines[f"curves: {name}, 0.4 CPU s: AP"]["value"] for name in ("hr", "unet"))
    assert ahead["value"] == pytest.approx(ours - rival, abs=1e-4) and ahead["at_least"] == 0
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_losses_beside_mtl(cubes: Path, tmp_path: Path):
    """Both layouts have four finite losses; the ratios are theirs."""
    lines = measured(cubes, tmp_path, "mtl", "hr mtl")
    for part in quality.LOSSES:
        ours, theirs = (lines[f"mtl: {name}: held-out loss {part}"]["value"] for name in ("hr", "mtl"))
        assert lines[f"mtl: held-out loss {part}, hr / mtl"]["value"] == pytest.approx(
            ours / theirs, rel=1e-4
        )
        assert math.isfinite(ours) and ours > 0


def test_the_schedule_ends_with_the_seconds(cubes: Path, monkeypatch: pytest.MonkeyPatch):
    """The learning rate rises, then falls to a few percent by the time that the seconds are spent."""
    clock = itertools.count()
    monkeypatch.setattr(quality.time, "process_time", lambda: 0.25 * next(clock))  # of every step
    given = quality.Quality(cubes, {}, crop=16)
    found = [(step, task.update.lr) for _, step, task in quality.trained("hr_faults", given, [0.5, 1, 2])]
    assert [step for step, _ in found] == [2, 4, 8]
    rates = [rate / 2e-3 for _, rate in found]
    assert rates[0] > 0.9 > rates[1] > 0.4 and rates[2] < 0.1


def test_losses_of_a_known_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """True volumes in either layout's form cost nothing; a normal turned by 60 degrees costs sin^2 60."""
    model = load(save_model(tmp_path / "model.ckpt", layout="mtl"))
    shape = (8, 8, 8)
    rgt = np.broadcast_to(np.linspace(0, 1, 8, dtype=np.float32)[:, None, None], shape).copy()
    fsem = np.zeros(shape, np.float32)
    fsem[:, 3] = 1
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    half = np.full(shape, 0.5, np.float32)
    cube = {"image": noise, "fsem": fsem, "rgt": rgt, "dhr": noise, "fdip": half, "fstrike": 0 * half}
    normal = torch.tensor([0.0, 1.0, 0.0])  # dip 90, strike 0

    def answer(normal: torch.Tensor) -> torch.Tensor:
        outer = torch.stack(
            [normal[i] * normal[j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))]
        )
        maps = [torch.from_numpy(fsem)[None], outer[:, None, None, None].expand(6, *shape)]
        maps += [torch.from_numpy(noise)[None], torch.from_numpy(3 + 2 * rgt)[None]]
        return torch.cat(maps)[None]

    monkeypatch.setattr(type(model), "maps", lambda *_: answer(normal))
    found = quality.task_losses(model, cube)
    assert set(found) == set(quality.LOSSES) and max(found.values()) < 1e-3
    normal = torch.tensor([math.sqrt(0.75), 0.5, 0.0])
    assert quality.task_losses(model, cube)["angle"] == pytest.approx(0.75, abs=1e-3)


def test_a_case_replaces_its_own_lines(tmp_path: Path):
    """Other cases stay, those of a file without cases too, as the costs."""
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"rows": [{"what": "a"}], "torch": "1"}))
    benchmark.save(path, "short", [{"what": "b"}], 1.0, {})
    benchmark.save(path, "mtl", [{"what": "c"}], 1.0, {})
    benchmark.save(path, "short", [{"what": "d"}], 1.0, {"seed": 1})
    stored = json.loads(path.read_text())
    assert {case: result["rows"][0]["what"] for case, result in stored.items()} == {
        "cost": "a",
        "short": "d",
        "mtl": "c",
    }
    assert stored["short"]["settings"] == {"seed": 1}


def test_contestants_are_trained_alike(cubes: Path):
    """Only what a contestant's name says differs from the preset; the better rival is the one to beat."""
    given = quality.Quality(cubes, {})
    preset = TRAIN_PRESETS["standard"]()
    for name in quality.NETWORKS:
        config = given.training(name)
        same = ("batch_train", "ema", "augment", "disturb", "crop", "w_orient")
        assert all(getattr(config, key) == getattr(preset, key) for key in same)
        assert config.optimizer == ("adamw" if name.endswith("adamw") else "muon")
    assert given.training("hr").heads == HEADS and given.training("hr_faults").heads == ("fault",)
    losses = {
        name: dict.fromkeys(quality.LOSSES, value)
        for name, value in {"hr": 1, "mtl": 4, "mtl_adamw": 2}.items()
    }
    assert {line["value"] for line in quality.ratio_rows(losses)} == {0.5}
