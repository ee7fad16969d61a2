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
from benchmarks import _fault_seg_survey as surveys
from benchmarks import _table
from benchmarks import fault_seg as benchmark
from fault_seg.config import TRAIN_PRESETS
from fault_seg.infer import load
from fault_seg.model import HEADS
from tests.fault_seg.cases import make_cubes, save_model
from tests.fault_seg.volume_files import make_segy

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
    assert result["settings"]["cpu_seconds"] == 0.4 and result["command"] == _table.command_line()
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


def by_name(rows: quality.Rows) -> Lines:
    """Return lines by what they say."""
    return {line["what"]: line for line in rows}


def test_streaming_is_measured_on_a_sparse_file(monkeypatch: pytest.MonkeyPatch):
    """Two sizes go to the child, the second of twice the inlines; what they add and their ratio are told."""
    seen = []

    def child(_: str, folder: str, *words: int) -> dict[str, float]:
        status = (Path(folder) / "big.bin").stat()
        assert status.st_size == 4 * math.prod(words[:3])
        assert status.st_blocks * 512 < 0.5 * status.st_size
        seen.append(words)
        base, added = 2**30, 2**28 * len(seen)
        return {"base": base, "peak": base + added, "seconds": 9.0}

    monkeypatch.setattr(surveys, "ask", child)
    lines = by_name(surveys.streaming_rows(0.004, (32, 32), 0.25))
    assert seen == [(32, 32, 488, 0.25), (32, 32, 976, 0.25)]
    added, flat = list(lines.values())[1:3]
    assert added["value"] == 0.5 and added["at_most"] == 0.375 and _table.wanted(added)[1] == "missed"
    assert flat["value"] == pytest.approx(1.5 / 1.25) and flat["at_most"] == 1.05
    assert "0.004 GB" in added["what"] and flat["baseline"] == "half the inlines"


def test_streaming_in_this_process(tmp_path: Path):
    """The child's work: a cube whose later inlines are a hole goes through the cheap network."""
    with (tmp_path / "big.bin").open("wb") as file:
        file.write(surveys.make_volume((32, 32, 4)).transpose(2, 1, 0).tobytes())
        file.truncate(4 * 32**3)
    found = surveys.measure_stream([str(tmp_path), "32", "32", "32", "0.25"])
    assert found["peak"] >= found["base"] > 1e8 and found["seconds"] > 0
    assert len(list(tmp_path.glob("big.*"))) == 1 + 5 + 1  # input, volumes, side-car


def test_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The network alone is timed in this process, the whole by the command line; absent data are told."""
    assert surveys.crop_rows(tmp_path) == [] and "f3.sgy is not there" in capsys.readouterr().out
    path = tmp_path / surveys.F3
    path.parent.mkdir()
    make_segy(path, surveys.make_volume((20, 17, 16)))
    runs: list[tuple[object, ...]] = []

    def script(_: Path, *words: object) -> str:
        runs.append(words)
        for name in ("fsem", "fdip", "fstrike", "rgt", "dhr")[: 5 if len(runs) == 1 else 4]:
            Path(f"{words[3]}.{name}.sgy").touch()
        return ""

    monkeypatch.setattr(surveys, "run_script", script)
    monkeypatch.setattr(surveys, "REPEATS", 1)
    network, wall = surveys.crop_rows(tmp_path)
    assert network["value"] > 0 and network["unit"] == "CPU s" and network["at_most"] == 2.0
    assert wall["at_most"] is None and runs[0][1] == path
    with pytest.raises(RuntimeError, match="five"):
        surveys.crop_rows(tmp_path)


def test_seams_and_gpu_rows_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Overlapping tiles lie nearer to the whole cube than abutting ones; seconds are those of the network."""
    abutting, blended = surveys.seam_rows((32, 32, 64), block=32, overlap=16)
    assert 0 < blended["value"] < abutting["value"] and blended["baseline"] == "abutting tiles"
    assert blended["ratio"] == pytest.approx(blended["value"] / abutting["value"], rel=1e-4)
    monkeypatch.setattr(surveys, "REPEATS", 1)
    model = str(save_model(tmp_path / "model.ckpt"))
    network, whole = surveys.gpu_rows(torch.device("cpu"), (24, 20, 16), "fp32", model)
    assert network["what"] == "16 x 20 x 24, fp32: network" and network["at_most"] == 5.0
    assert 0 < network["value"] < whole["value"]


def test_cases_without_their_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Without a GPU its case is told and stores nothing; --help names every case."""
    if not torch.cuda.is_available():
        benchmark.run(["--case", "gpu", "--result", str(tmp_path / "r.json")])
        assert "GPU rows skipped" in capsys.readouterr().out and not (tmp_path / "r.json").exists()
    with pytest.raises(SystemExit):
        benchmark.run(["--help"])
    said = capsys.readouterr().out
    assert all(case in said for case in benchmark.CASES) and "Case streaming" in said


def test_the_streaming_case_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It has a result of its own, with its command."""
    monkeypatch.setattr(benchmark, "streaming_rows", lambda gb: [_table.row("a", gb, "GB")])
    benchmark.run(["--case", "streaming", "--stream_gb", "3", "--result", str(tmp_path / "r.json")])
    stored = json.loads((tmp_path / "r.json").read_text())
    assert stored["streaming"]["rows"][0]["value"] == 3 and stored["streaming"]["command"]
