"""Trainings of `simulgen_vae.py` by the commands of users: errors, ratios, guard, error bars, inversion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._table import row
from common.errors import DataError

if TYPE_CHECKING:
    from benchmarks.simulgen_vae import Config

ROOT = Path(__file__).resolve().parents[1]
BURGERS = "simulgen/burgers_mini.npz"
CPU_SECONDS = {"wave": 450.0, "advdiff": 100.0, "burgers": 100.0}  # of the predictors that train longer
BAND = (0.85, 0.97)  # of all points, inside the 0.9 band
GUARD_TIE = 1.01  # within it the simpler candidate ships
TAIL = {  # of ours -> what it is in the summary of a method
    "95 % quantile": ("relative_l2_p95", "relative L2"),
    "the worst run": ("relative_l2_max", "relative L2"),
    "VRMSE": ("vrmse", "RMSE / std of the truth"),
}
Rows = list[dict[str, Any]]


def script(name: str, *flags: str) -> float:
    """Run a script of the package and return its CPU seconds.

    Raises:
        DataError: it failed; its own message stands above.
    """
    before = os.times()
    command = [sys.executable, str(ROOT / f"scripts/simulgen_vae/{name}.py"), *flags]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise DataError(f"{name}.py: exit code {done.returncode}, expected 0; its message stands above")
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def quality(case: str, config: Config, seed: int, folder: Path) -> Rows:
    """Train and evaluate through the commands; return errors and ratios."""
    data = folder / f"{case}.h5"
    train = ["--preset", "demo_wave", "--max_cpu_s", str(config.max_cpu_s or CPU_SECONDS[case])]
    if case == "wave":  # the grid network sees the picture; the conditioner's part is cheap and short
        train += ["--input_type", "fusion", "--fusion_encoder", "vit", "--lc_epochs", "2"]
    if case == "burgers":
        data = config.real_data / BURGERS
        train += ["--epochs", "10", "--lc_epochs", "10"]
    else:
        sizes = ["--num", "24", "--nx", "16", "--ny", "8", "--frames", "8"] if config.smoke else []
        made = ["--num", str(config.num or 128), *sizes, "--seed", str(seed), "--path", str(data)]
        made += ["--no_figures"]
        script("make_data", "--kind", case, *made)
    if config.smoke:
        train = ["--preset", "smoke", "--input_type", "csv", "--conditioner", "gp"]
    run, place = folder / "run", ["--seed", str(seed), "--threads", str(config.threads)]
    seconds = script("train", "--data", str(data), *train, *place, "--out", str(run), "--no_tensorboard")
    report = folder / "report"
    script("evaluate", "--model", str(run), *place, "--out", str(report), "--no_figures")
    lines = quality_rows(case, read(report / "evaluation.json"), seconds, config.smoke)
    lines.insert(-1, guard_row(case, read(run / "model_save" / "guard.json")))
    if case == "wave":
        lines[-1:-1] = inversion(data, run, place, config.smoke)
    return lines


def read(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def quality_rows(case: str, found: dict[str, Any], seconds: float, smoke: bool) -> Rows:
    """Return the lines of a case from the document of an evaluation; the last one is text."""
    error = {name: m["summary"]["relative_l2"] for name, m in found["methods"].items()}
    shared = [row(f"{case}: {name}", value, "relative L2") for name, value in error.items()]
    regressions = {n: v for n, v in error.items() if n.startswith("pod") and not n.endswith("_oracle")}
    gprs = {n: v for n, v in regressions.items() if "_gpr" in n}
    plain = {n: v for n, v in gprs.items() if not n.endswith("_mirror")}
    rival, most = {
        "wave": ({n: v for n, v in plain.items() if n.endswith("gpr_shared")}, 0.60),
        "advdiff": (plain, 0.95),
        "burgers": ({n: v for n, v in regressions.items() if n.endswith("_krr")}, 0.50),
    }[case]
    best = min(rival, key=lambda n: rival[n])
    rivals, ours = min(gprs, key=lambda n: gprs[n]), error["ours"]
    most, limit = (None, None) if smoke else (most, 1.05)
    lines = [
        row(f"{case}: ours / {best}", ours / rival[best], "ratio", most, baseline=best),
        row(f"{case}: ours / best GPR", ours / gprs[rivals], "ratio", limit, baseline=rivals),
        row(f"{case}: training", seconds, "CPU s"),
        *further_rows(case, found["methods"], rivals),
        *band_rows(case, found["error_bars"], smoke),
    ]
    return [*shared, *lines, {"what": f"{case}: ships", "value": found["line"], "unit": "", "at_most": None}]


def further_rows(case: str, methods: Mapping[str, Any], rival: str) -> Rows:
    """Return other measures of what ships than the mean error, beside those of the best GPR."""
    ours, other = methods["ours"]["summary"], methods[rival]["summary"]
    lines = [
        row(f"{case}: ours, {what}", ours[key], unit, baseline=rival, ratio=ours[key] / other[key])
        for what, (key, unit) in TAIL.items()
    ]
    lines.append(row(f"{case}: ours, R2", ours["r2"], "-"))
    return [*lines, row(f"{case}: ours, a trajectory", methods["ours"]["ms_a_trajectory"], "ms")]


def band_rows(case: str, bars: Mapping[str, Any] | None, smoke: bool) -> Rows:
    """Return how good the error bars are, where there are any."""
    if not bars:
        return []
    least, most = (None, None) if smoke else BAND
    band = f"the {bars['nominal']:g} band"
    return [
        row(f"{case}: points inside {band}", bars["coverage"], "share", most, least=least),
        row(f"{case}: mean width of {band}", bars["mean_width"], "of the field"),
        row(f"{case}: CRPS of the error bars", bars["crps"], "of the field"),
    ]


def guard_row(case: str, guard: Mapping[str, Any]) -> dict[str, Any]:
    """Return the held-out error of what the guard chose beside that of its best candidate."""
    entries = guard["candidates"]
    key = (guard["members"], guard["weight"])
    chosen = next(e["mean_relative_l2"] for e in entries if (e["members"], e["weight"]) == key)
    best = min(entries, key=lambda e: e["mean_relative_l2"])
    what = f"{case}: guard: chosen / best candidate on validation"
    return row(what, chosen / best["mean_relative_l2"], "ratio", GUARD_TIE, baseline=best["name"])


def inversion(data: Path, run: Path, place: list[str], smoke: bool) -> Rows:
    """Seek the parameters of unseen waves with the demo's training, whose inputs are numbers alone.

    What the case itself trains takes pictures too, so parameters alone cannot be sought with it; the training
    at tiny sizes takes none.
    """
    search = ["--num_test", "10", "--starts", "4", "--steps", "100"]
    if smoke:
        search = ["--num_test", "3", "--starts", "1", "--steps", "5"]
    else:
        run = run.with_name("numbers")
        flags = ["--preset", "demo_wave", "--out", str(run), "--no_tensorboard"]
        script("train", "--data", str(data), *flags, *place)
    out = run.with_name("inverted")
    seconds = script("invert", "--model", str(run), *search, *place, "--out", str(out), "--no_figures")
    return inversion_rows(read(out / "inverse_test.json"), seconds, smoke)


def inversion_rows(found: Mapping[str, Any], seconds: float, smoke: bool) -> Rows:
    """Return the lines of an inversion of unseen waves from its document."""
    medians, lines = found["median"], []
    for what, key, unit, baseline, rival in (
        ("median misfit", "relative_l2", "relative L2", "nearest training sample", "nearest_l2"),
        ("parameter error", "param_error", "std", "the prior's mean", "param_error_of_mean"),
    ):
        value, other = medians[key], medians[rival]
        most = None if smoke else other
        lines.append(
            row(f"wave: inversion, {what}", value, unit, most, baseline=baseline, ratio=value / other)
        )
    return [*lines, row("wave: inversion of a run", seconds / len(found["samples"]), "CPU s")]
