"""The benchmark at tiny sizes: every new line is there, limits and ratios are what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _child, _table
from benchmarks import _velocity_inversion_gpu as gpu
from benchmarks import _velocity_inversion_memory as memory
from benchmarks import velocity_inversion as benchmark
from velocity_inversion.config import TrainConfig
from velocity_inversion.geometry import openfwi_survey
from velocity_inversion.refine import Refined, RefineSettings

TINY = TrainConfig(embed_dim=32, num_layers=1, stem=8, num_models=1, physics_every=0)
SURVEY = openfwi_survey(1, 4)


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return lines by what they say."""
    return {line["what"]: line for line in rows}


def test_memory_is_that_of_children(monkeypatch: pytest.MonkeyPatch):
    """Each figure comes from a process of its own; ratios and the limit are told."""
    answers = {"ensemble": 300.0, "inversionnet": 400.0, "1.pth": 200.0, "5.pth": 250.0}
    monkeypatch.setattr(memory, "write_ensembles", lambda *_: None)
    monkeypatch.setattr(memory, "ask", lambda _, __, name, *___: answers[Path(name).name])
    lines = by_name(memory.memory_rows())
    ours = lines["peak memory, training, batch 8, ours"]
    assert (ours["value"], ours["ratio"], ours["baseline"]) == (300, 0.75, "InversionNet")
    several = lines["memory of inference, five members / one"]
    assert (several["value"], several["at_most"]) == (1.25, 1.2) and _table.wanted(several)[1] == "missed"


def test_children_train_and_predict(tmp_path: Path):
    """What they run, small: an update of each network, and an ensemble of five over a batch of samples."""
    memory.train_a_little(TINY, SURVEY)
    memory.write_ensembles(tmp_path, SURVEY, TINY)
    found = {}
    for count in memory.MEMBERS:
        memory.predict_all(tmp_path / f"{count}.pth", tmp_path / "data", tmp_path / f"out{count}")
        found[count] = (tmp_path / f"out{count}/predictions.csv").read_text().splitlines()
        assert len(found[count]) == 1 + memory.BATCH
    assert found[1] != found[5]


def test_a_child_answers_and_fails(tmp_path: Path):
    """The last line is the answer; a failure brings what the script said. The peak is that of the process."""
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint('first')\nprint(sys.argv[1]) if sys.argv[1:] else sys.exit('why')")
    assert _child.ask(script, 2.5) == 2.5
    with pytest.raises(RuntimeError, match="why"):
        _child.ask(script)
    before = _child.peak_bytes()
    block = torch.ones(2**25)  # 128 MiB
    assert _child.peak_bytes() >= before and _child.peak_bytes() > 4 * block.numel()


def test_cache():
    """One challenge sample is 6.2 MB; the cache holds 250 of its 10001 time samples."""
    lines = by_name(memory.cache_rows())
    raw, kept = lines["raw gathers of a challenge sample"], lines["cache of a challenge sample"]
    assert raw["value"] == pytest.approx(5 * 10001 * 31 * 4 / 1e6, rel=1e-3)
    assert kept["ratio"] == pytest.approx(250 / 10001, rel=0.05) and kept["baseline"] == "raw gathers"


def test_an_iteration_is_what_a_longer_refinement_adds(monkeypatch: pytest.MonkeyPatch):
    """The time before and after the iterations cancels, and iterations that were left out do not count."""
    clock = [0.0]
    monkeypatch.setattr(benchmark.time, "process_time", lambda: clock[0])

    def refined(settings: RefineSettings) -> Refined:
        count = settings.iterations + 1
        clock[0] += 10 + 3 * count
        return Refined(torch.zeros(1), 0.0, 0.0, [0.0] * (1 + count))

    assert benchmark.iteration_s(refined, RefineSettings(), 2) == 3


def test_refinement_lines(monkeypatch: pytest.MonkeyPatch):
    """Both kinds of iteration are timed on the grid that their line names."""
    monkeypatch.setattr(benchmark, "openfwi_survey", lambda: SURVEY)
    monkeypatch.setattr(benchmark, "challenge_survey", lambda: SURVEY)
    lines = by_name(benchmark.refinement_rows(1))
    assert set(lines) == {
        "data-space iteration, 70 x 70",
        "waveform iteration, challenge grid at 10 m",
    }
    assert all(line["value"] > 0 and line["unit"] == "CPU s" for line in lines.values())


def test_gpu_lines_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    """Training and inference in both precisions, the second compiled, and a simulation on its own cells."""
    compiled = []
    monkeypatch.setattr(gpu.devices, "compile_if", lambda on, f: compiled.append(on) or f)
    monkeypatch.setattr(gpu, "WARM_UP", 1)
    lines = by_name(gpu.gpu_rows(torch.device("cpu"), SURVEY, SURVEY, TINY, (2,), 1))
    for what in ("training", "inference"):
        for mode in ("fp32", "bf16, compiled"):
            line = lines[f"{what}, batch 2, {mode}"]
            assert line["value"] > 0 and line["unit"] == "samples/s"
    assert compiled == [False, False, True, True]
    assert lines["simulation of a 70 x 70 section on its own cells of 10 m"]["unit"] == "s"


def test_cases_are_stored_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A result from before there were cases is that of the CPU; each case has its command."""
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"rows": [{"what": "old"}]}))
    benchmark.save(path, "gpu", [_table.row("a", 1, "s")], 0.0, "a GPU")
    stored = json.loads(path.read_text())
    assert stored["cpu"]["rows"][0]["what"] == "old" and stored["gpu"]["command"] == _table.command_line()
    monkeypatch.setattr(benchmark, "cpu_rows", lambda repeats: [_table.row("b", repeats, "s")])
    benchmark.main(["--case", "cpu", "--quick", "--result", str(path)])
    stored = json.loads(path.read_text())
    assert (stored["cpu"]["rows"][0]["value"], stored["gpu"]["rows"][0]["what"]) == (1, "a")
