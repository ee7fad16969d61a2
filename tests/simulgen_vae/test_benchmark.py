"""The benchmark at tiny sizes: every line is there, ratios are what they say, nothing tiny is stored."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import _simulgen_vae_quality as quality
from benchmarks import simulgen_vae as benchmark
from benchmarks import simulgen_vae_full, simulgen_vae_infer, simulgen_vae_peer, simulgen_vae_scaling
from benchmarks._table import wanted
from common.errors import UserError
from simulgen_vae.graph import load
from tests.cli.test_printed_commands import ending_after_parse
from tests.cli.test_scripts import ROOT, call
from tests.simulgen_vae.cases_infer import make_model


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


def test_speed(no_result: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Epochs, decoding and solvers are timed; ratios are those of the lines; tiny runs leave no file."""

    def here(case: str, path: Path, config: benchmark.Config) -> dict[str, float]:
        assert case == "speed"  # scale starts a process; another would import everything again
        return benchmark.speed_child(replace(config, file=str(path)))

    monkeypatch.setattr(benchmark, "child", here)
    benchmark.run(["--case", "speed", "--smoke"])
    value = values(capsys.readouterr().out)
    pod, plain = (value[f"speed: epoch of 16 runs, {kind}, 64 nodes"] for kind in ("pod", "none"))
    assert value["speed: pod / none, 64 nodes"] == pytest.approx(pod / plain, rel=2e-3)
    told = "12 runs of 8 x 64"
    assert value[f"speed: epoch, {told}"] == pytest.approx(pod, rel=2)
    assert 0.1 < value[f"speed: peak memory of the process that trains on {told}"] < 2
    assert min(value.values()) > 0 and not no_result.exists()


def test_scale_reads_a_file_in_its_own_process(capsys: pytest.CaptureFixture[str]):
    """The streamed file's size is told, and the peak memory is that of the child."""
    benchmark.run(["--case", "scale", "--smoke"])
    said = capsys.readouterr().out
    assert "0.64 MB" in said and "scale: peak memory" in said
    value = values(said)
    bound = 16 * 2000 * (value["scale: modes"] + 20) + 4 * 20 * 2000
    assert value["scale: 4 D (r_s + 20) floats and a trajectory"] == pytest.approx(bound / 2**30, rel=1e-3)
    assert 0 < value["scale: basis, working memory"] < value["scale: peak memory"]


def test_working_memory_has_its_limit():
    """The bound is the limit, and what the basis takes is told beside it; tiny sizes have none."""
    cost = {"working_bytes": 3 * 2**29, "bound_bytes": 2**30}
    line, bound = simulgen_vae_full.memory_rows("full", cost, smoke=False)
    assert wanted(line) == ("at most 1", "missed") and line["ratio"] == 1.5
    assert line["baseline"] in bound["what"] and bound["value"] == 1.0
    assert wanted(simulgen_vae_full.memory_rows("full", cost, smoke=True)[0]) == ("", "")


def test_memory_is_that_of_this_process():
    """What a process takes and gives back stays in its peak and leaves what it has now."""
    block = np.ones(2**23)  # 64 MiB
    with_block, _ = simulgen_vae_full.resident_bytes()
    del block
    now, peak = simulgen_vae_full.resident_bytes()
    assert with_block - now > 2**25 and peak > with_block - 2**22  # the kernel counts in batches


def test_epoch_beside_a_whole_mesh_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """64 runs of 32 frames train on 1024 nodes; above a second an epoch is too long."""
    written = []
    monkeypatch.setattr(benchmark, "write_large", lambda path, *sizes: written.append(sizes))
    found = {"runs": 64, "epoch_s": 1.1, "peak_bytes": 6e8}
    monkeypatch.setattr(benchmark, "child", lambda *_: found)
    epoch, peak = benchmark.rival_rows(benchmark.Config(), tmp_path)
    assert written == [(86, 32, 1024)] and epoch["what"] == "speed: epoch, 64 runs of 32 x 1024"
    assert wanted(epoch) == ("at most 1", "missed") and epoch["ratio"] == 1.1
    assert peak["value"] == peak["ratio"] == 0.6 and wanted(peak) == ("", "")


def test_as_likely_as_scikit_learn():
    """A log-likelihood of 0.2 % less is as good, of either sign; one of 0.3 % less is not."""
    for other in (50.0, -50.0):
        for share, verdict in ((0.0019, "met"), (0.003, "missed")):
            own = other - share * abs(other)
            line, theirs = benchmark.likelihood_rows(own, other, smoke=False)
            assert wanted(line)[1] == verdict and line["baseline"] == "scikit-learn"
            assert line["ratio"] == pytest.approx(own / other) and theirs["value"] == other


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


def evaluation(names: dict[str, float], bars: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the document of an evaluation whose methods have these errors."""
    keys = ("relative_l2", "relative_l2_p95", "relative_l2_max", "vrmse", "r2")
    return {
        "methods": {
            name: {
                "summary": {key: (1 + k) * value for k, key in enumerate(keys)},
                "ms_a_trajectory": 100 * value,
            }
            for name, value in names.items()
        },
        "error_bars": bars,
        "line": "shipping gp2",
    }


ERRORS = {"ours": 0.2, "pod56_oracle": 0.1, "pod56_krr": 0.8, "pod56_gpr": 0.5, "pod56_gpr_shared": 0.4}
ERRORS |= {"pod56_gpr_shared_mirror": 0.25}
BARS = {"nominal": 0.9, "coverage": 0.98, "mean_width": 0.3, "crps": 0.05, "factor": 2.0, "over": "points"}


def test_ratios_of_quality():
    """Wave is held against shared GPR without mirror, heat against the better GPR, Burgers against KRR."""
    found = evaluation(ERRORS)
    for case, ratio in (("wave", 0.5), ("advdiff", 0.5), ("burgers", 0.25)):
        lines = {line["what"]: line for line in quality.quality_rows(case, found, 1.0, smoke=False)}
        chosen = next(line for what, line in lines.items() if what.startswith(f"{case}: ours / pod"))
        assert chosen["value"] == pytest.approx(ratio) and chosen["at_most"] is not None
        assert lines[f"{case}: ours / best GPR"]["value"] == pytest.approx(0.8)


def test_further_measures_of_quality():
    """Tails, VRMSE and R2, milliseconds and error bars are told; the band has a limit on both sides."""
    found = evaluation(ERRORS, BARS)
    lines = {line["what"]: line for line in quality.quality_rows("wave", found, 1.0, smoke=False)}
    measures = {"ours, 95 % quantile": 0.4, "ours, the worst run": 0.6, "ours, VRMSE": 0.8, "ours, R2": 1.0}
    measures |= {"mean width of the 0.9 band": 0.3, "CRPS of the error bars": 0.05}
    measures |= {"ours, a trajectory": 20.0}
    for what, value in measures.items():
        assert lines[f"wave: {what}"]["value"] == pytest.approx(value)
        assert wanted(lines[f"wave: {what}"]) == ("", "")
    tail = lines["wave: ours, 95 % quantile"]
    assert tail["baseline"] == "pod56_gpr_shared_mirror" and tail["ratio"] == pytest.approx(0.8)
    band = "points inside the 0.9 band"
    for coverage, verdict in ((0.84, "missed"), (0.9, "met"), (0.98, "missed")):
        line = quality.band_rows("wave", {**BARS, "coverage": coverage}, smoke=False)[0]
        assert line["what"] == f"wave: {band}" and wanted(line) == ("at least 0.85, at most 0.97", verdict)
    assert wanted(quality.band_rows("wave", BARS, smoke=True)[0]) == ("", "")


def test_what_the_guard_chose():
    """The mix of the chosen weight counts, not another of the same two, beside the best of all entries."""
    entries = [
        {"name": "a+b", "members": ["a", "b"], "weight": 0.5, "mean_relative_l2": 0.100},
        {"name": "a+b", "members": ["a", "b"], "weight": 0.25, "mean_relative_l2": 0.102},
        {"name": "a", "members": ["a"], "weight": 1.0, "mean_relative_l2": 0.1005},
    ]
    for chosen, ratio, verdict in ((2, 1.005, "met"), (1, 1.02, "missed"), (0, 1.0, "met")):
        guard = {k: entries[chosen][k] for k in ("members", "weight")} | {"candidates": entries}
        line = quality.guard_row("wave", guard)
        assert line["value"] == pytest.approx(ratio) and wanted(line)[1] == verdict
        assert line["baseline"] == "a+b" and line["what"].startswith("wave: guard: chosen / best")


INVERTED = {"relative_l2": 0.3, "nearest_l2": 0.6, "param_error": 1.2, "param_error_of_mean": 1.0}


def test_waves_are_inverted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A training on numbers alone is inverted, its commands parse, and both lines have their limit."""
    commands = []
    ending_after_parse(monkeypatch)

    def script(name: str, *flags: str) -> float:
        code, said = call(ROOT / f"scripts/simulgen_vae/{name}.py", list(flags), tmp_path)
        assert code == 2 and "it parses" in said, said
        commands.append((name, dict(zip(flags, flags[1:], strict=False))))
        out = Path(commands[-1][1].get("--out", ""))
        if name == "invert":
            out.mkdir()
            document = {"median": INVERTED, "samples": [{}] * 10}
            (out / "inverse_test.json").write_text(json.dumps(document))
        return 5.0

    monkeypatch.setattr(quality, "script", script)
    place = ["--seed", "1", "--threads", "1"]
    misfit, params, each = quality.inversion(tmp_path / "wave.h5", tmp_path / "run", place, smoke=False)
    (_, train), (_, invert) = commands
    assert invert["--model"] == train["--out"] != str(tmp_path / "run") and "--input_type" not in train
    assert (invert["--num_test"], invert["--starts"], invert["--steps"]) == ("10", "4", "100")
    assert misfit["what"] == "wave: inversion, median misfit" and misfit["ratio"] == 0.5
    assert wanted(misfit) == ("at most 0.6", "met") and misfit["baseline"] == "nearest training sample"
    assert params["what"] == "wave: inversion, parameter error" and params["ratio"] == 1.2
    assert wanted(params) == ("at most 1", "missed") and each["value"] == 0.5


def test_a_case_has_all_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Evaluation, guard and inversion of a wave are in one table, which ends with what ships."""

    def script(name: str, *flags: str) -> float:
        entry = {"name": "gp2", "members": ["gp2"], "weight": 1.0, "mean_relative_l2": 0.1}
        documents = {
            "train": ("model_save/guard.json", {**entry, "candidates": [entry]}),
            "evaluate": ("evaluation.json", evaluation(ERRORS, BARS)),
            "invert": ("inverse_test.json", {"median": INVERTED, "samples": [{}]}),
        }
        if name in documents:
            path = Path(flags[flags.index("--out") + 1]) / documents[name][0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(documents[name][1]))
        return 1.0

    monkeypatch.setattr(quality, "script", script)
    for case, count in (("wave", 3), ("burgers", 0)):
        lines = quality.quality(case, benchmark.Config(), 0, tmp_path / case)
        names = [line["what"] for line in lines]
        assert sum(": inversion" in name for name in names) == count and names[-1] == f"{case}: ships"
        assert f"{case}: guard: chosen / best candidate on validation" in names
        assert len(set(names)) == len(names)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a deliverable that takes three numbers."""
    return make_model(tmp_path_factory.mktemp("model"))


def test_an_export_is_held_against_the_model(small_model: Path, monkeypatch: pytest.MonkeyPatch):
    """A graph that is 0.01 % off does not pass; one that takes a row at a time is compared so."""
    model = load(small_model)
    graph, seen = model.require_graph(), []

    def off(factor: float):
        def run(params: torch.Tensor) -> np.ndarray:
            seen.append(len(params))
            return factor * graph(params).numpy()

        return run

    monkeypatch.setattr(simulgen_vae_infer, "CALLS", 2)
    for factor, verdict in ((1.0, "met"), (1.0005, "missed"), (float("nan"), "not measured")):
        far, slow = simulgen_vae_infer.parity_rows("x", model, off(factor), is_free=True)
        assert wanted(far) == ("at most 0.0001", verdict) and seen[0] == 8
        assert slow["baseline"] == "the model" and slow["ratio"] > 0 and slow["unit"] == "CPU ms"
    seen.clear()
    simulgen_vae_infer.parity_rows("x", model, off(1.0), is_free=False)
    assert set(seen) == {1}


def test_onnx_where_it_is_installed(small_model: Path, monkeypatch: pytest.MonkeyPatch):
    """The file that was written is run; without the libraries there are no such lines."""
    model, written = load(small_model), []
    graph = model.require_graph()

    def missing() -> None:
        raise UserError("pip install onnx")

    program: Any = "captured"
    monkeypatch.setattr(simulgen_vae_infer, "CALLS", 2)
    monkeypatch.setattr(simulgen_vae_infer, "require_onnx", missing)
    assert simulgen_vae_infer.onnx_rows("x", model, program, is_free=True) == []
    monkeypatch.setattr(simulgen_vae_infer, "require_onnx", lambda: None)
    monkeypatch.setattr(simulgen_vae_infer, "write_onnx", lambda *given: written.append(given))
    reader = lambda path, _: lambda arguments: 2 * graph(*arguments).numpy()  # noqa: E731
    monkeypatch.setattr(simulgen_vae_infer, "read_onnx", reader)
    far, _ = simulgen_vae_infer.onnx_rows("x", model, program, is_free=True)
    assert written[0][2] == "captured" and far["value"] == 1.0 and wanted(far)[1] == "missed"


def test_decoding_and_simulating_have_their_scale(monkeypatch: pytest.MonkeyPatch):
    """The solver is scaled by cells and frames; one simulation has a limit at full size only."""
    asked = []
    monkeypatch.setattr(simulgen_vae_infer, "solver_ms", lambda kind, _: asked.append(kind) or 10.0)
    line, solver = simulgen_vae_infer.decode_rows(simulgen_vae_infer.Config(smoke=True))
    assert line["what"] == "decode 8 frames of 256 nodes from 4 modes" and asked == ["advdiff"]
    assert solver["value"] == 20.0 and line["baseline"] == solver["what"] == "solver of advdiff, scaled"
    assert line["ratio"] == pytest.approx(line["value"] / 20.0, rel=1e-4)
    for kind, limit in (("advdiff", 205.0), ("wave", 91.0)):
        assert simulgen_vae_infer.simulation_row(kind, 1.0, smoke=False)["at_most"] == limit
        assert simulgen_vae_infer.simulation_row(kind, 1.0, smoke=True)["at_most"] is None


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


def test_limits_by_training_runs():
    """103, 400 and 1000 runs have limits of their own; others, tiny sizes and no networks have none."""
    error = {"POD-56 + shared GPR": 0.5, "the same, mirrored rows": 0.1, "gp2": 0.4, "direct": 0.35}
    config = simulgen_vae_scaling.Config()
    for num, most in ((103, 0.95), (400, 0.75), (1000, 0.65), (200, None)):
        line = simulgen_vae_scaling.ratio_row(num, error, config)
        assert line["value"] == line["ratio"] == 0.7 and line["at_most"] == most
    for flags in ({"smoke": True}, {"networks": False}):
        assert simulgen_vae_scaling.ratio_row(103, error, replace(config, **flags))["at_most"] is None
