"""The benchmark at tiny sizes: every line is there, ratios are what they say, nothing tiny is stored."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import simulgen_vae as benchmark
from benchmarks import simulgen_vae_full, simulgen_vae_peer, simulgen_vae_scaling


@pytest.fixture(autouse=True)
def no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Store results elsewhere; return where."""
    path = tmp_path / "result.json"
    monkeypatch.setattr(benchmark, "RESULT", path)
    return path


def values(said: str) -> dict[str, float]:
    """Return the values of a printed table by what they are."""
    lines = [re.split(r"\s{2,}", line) for line in said.splitlines()]
    return {line[0]: float(line[1].split()[0]) for line in lines if len(line) > 1}


def test_speed(no_result: Path, capsys: pytest.CaptureFixture[str]):
    """Epochs, decoding and solvers are timed; ratios are those of the lines; tiny runs leave no file."""
    benchmark.run(["--case", "speed", "--smoke"])
    value = values(capsys.readouterr().out)
    pod, plain = (value[f"speed: epoch of 16 runs, {kind}, 64 nodes"] for kind in ("pod", "none"))
    assert value["speed: pod / none, 64 nodes"] == pytest.approx(pod / plain, rel=2e-3)
    assert min(value.values()) > 0 and not no_result.exists()


def test_scale_reads_a_file_in_its_own_process(capsys: pytest.CaptureFixture[str]):
    """The streamed file's size is told, and the peak memory is that of the child."""
    benchmark.run(["--case", "scale", "--smoke"])
    said = capsys.readouterr().out
    assert "0.64 MB" in said and "scale: peak memory" in said


def test_full_runs_every_phase(
    no_result: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Fields of many modes lie in a far smaller file; basis, coefficients and epochs are told, with peaks."""

    def here(command: list[str], **_: object) -> None:  # three processes would import everything thrice
        simulgen_vae_full.run(command[2:])

    monkeypatch.setattr(simulgen_vae_full.subprocess, "run", here)
    benchmark.run(["--case", "full", "--smoke", "--threads", "1"])
    value = values(capsys.readouterr().out)
    assert value["full: the same in the file"] < 0.7 * value["full: fields"]
    assert 0 < value["full: projection of unseen runs, the worst"] < 0.2
    peaks = [value[f"full: peak memory, {name}"] for name in ("basis", "coefficients", "epochs")]
    assert value["full: peak memory"] >= max(peaks) > 0.1 and value["full: epoch of the VAE"] > 0
    assert not no_result.exists()


def test_cases_keep_each_other(no_result: Path):
    """Storing one case leaves the others' lines; an empty or tiny run stores nothing."""
    config = benchmark.Config()
    benchmark.save("speed", [benchmark.row("a", 1.23456, "s", 2.0)], 1.0, config, 0)
    benchmark.save("scale", [benchmark.row("b", 3.0, "GB")], 1.0, config, 0)
    benchmark.save("gp", [], 1.0, config, 0)
    benchmark.save("speed", [benchmark.row("c", 9.0, "s")], 1.0, benchmark.Config(smoke=True), 0)
    stored = json.loads(no_result.read_text())
    assert set(stored) == {"speed", "scale"}
    assert stored["speed"]["rows"] == [benchmark.row("a", 1.23456, "s", 2.0)]


def test_ratios_of_quality():
    """Wave is held against shared GPR without mirror, heat against the better GPR, Burgers against KRR."""
    names = {"ours": 0.2, "pod56_oracle": 0.1, "pod56_krr": 0.8, "pod56_gpr": 0.5, "pod56_gpr_shared": 0.4}
    names |= {"pod56_gpr_shared_mirror": 0.25}
    methods = {name: {"summary": {"relative_l2": value}} for name, value in names.items()}
    found = {"methods": methods, "error_bars": None, "line": "shipping gp2"}
    for case, ratio in (("wave", 0.5), ("advdiff", 0.5), ("burgers", 0.25)):
        lines = {line["what"]: line for line in benchmark.quality_rows(case, found, 1.0, smoke=False)}
        chosen = next(line for what, line in lines.items() if what.startswith(f"{case}: ours / pod"))
        assert chosen["value"] == pytest.approx(ratio) and chosen["at_most"] is not None
        assert lines[f"{case}: ours / best GPR"]["value"] == pytest.approx(0.8)


def test_a_peer_on_the_same_runs(capsys: pytest.CaptureFixture[str]):
    """The whole-mesh VAE, the regression and gp2 are scored on the same unseen rows; the ratio is theirs."""
    simulgen_vae_peer.run(["--smoke"])
    said = dict(line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines() if "ation" not in line)
    peers = [float(said[f"whole-mesh VAE + MLP, {kind} output"]) for kind in ("normalised", "plain")]
    ratio = float(said["ours (gp2)"]) / min(peers)
    assert float(said["ours / the better whole-mesh VAE + MLP"]) == pytest.approx(ratio, rel=1e-3)


def test_more_runs_less_error(capsys: pytest.CaptureFixture[str]):
    """Every method has a line for every number of runs, and twice the runs leave less error."""
    simulgen_vae_scaling.run(["--smoke"])
    found: dict[str, list[float]] = {}
    for line in capsys.readouterr().out.splitlines():
        if " runs: " in line:
            name, value = line.split(" runs: ")[1].rsplit(" CPU s", 1)[0].rsplit(", ", 1)[0].rsplit(" ", 1)
            found.setdefault(name, []).append(float(value))
    assert set(found) == {"POD-56 + shared GPR", "the same, mirrored rows", "gp2", "direct"}
    assert all(few > many for few, many in found.values())
