"""The five packages as their users run them, tiny: the same promises are tested on all.

Every command runs in a fork of the test process, so that it starts in milliseconds.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.toy_runs import differences, load, run

ROOT = Path(__file__).resolve().parents[2]
QUIET = "--device cpu --threads 1 --precision fp32 --tensorboard false --num_workers 0"


@dataclass(frozen=True)
class Case:
    """One package in its smallest form.

    Attributes:
        package: its name.
        data: (script, flags) that make the data in the current folder, one after another.
        train: flags of train.py but for the run folder and the number of steps.
        saves: flag of the interval of checkpoints in steps, with its value.
        model: what the training leaves for inference, under the run folder.
        use: script that reads a model, and its flags; {model} stands for the model file.
        data_flag: flag of train.py that names the data.
    """

    package: str
    data: tuple[tuple[str, str], ...]
    train: str
    saves: str
    model: str
    use: tuple[str, str]
    data_flag: str

    def script(self, name: str) -> Path:
        """Return one of its scripts."""
        return ROOT / "scripts" / self.package / f"{name}.py"


CASES = (
    Case(
        "fault_seg",
        (("make_data", "--preset smoke --ntrain 3 --nvalid 1 --n1 20 --n2 16 --n3 24 --no_figures --out d"),),
        "--data d --steps 8 --batch_train 2 --crop 16 --log_every 1 --no_rgt --no_dhr",
        "--save_every 1",
        "last.ckpt",
        ("infer", "--input d/data_valid/0.bin --n1 20 --n2 16 --n3 24 --output out/cube --no_figures "
                  "--device cpu --threads 1 --precision fp32 --model {model}"),
        "--data",
    ),
    Case(
        "voxel_ode",
        (
            ("make_data", "--preset smoke --grid 12 10 10 --num_steps 4 --max_doublets 1 --workers 1 "
                          "--out raw"),
            ("prep_data", "--input_root raw --out_root d --patch_size 8 8 8 --stride 4 4 4 --num_test 1 "
                          "--num_val 1"),
        ),
        # The routes of "auto" are timed, so that only a named one gives the same bits in every process.
        "--preset smoke --prepped_root d --max_steps 8 --unroll_steps 1 --log_every 1 --no_flux_inputs "
        "--conv_backend native",
        "--save_every 1",
        "checkpoints/last.pt",
        ("rollout", "--prepped_sim_path d/test --save_path out/p.h5 --no_figures --device cpu --threads 1 "
                    "--precision fp32 --ckpt_path {model}"),
        "--prepped_root",
    ),
    Case(
        "simulgen_vae",
        (("make_data", "--kind wave --num 16 --nx 16 --ny 8 --frames 8 --no_write_images --no_figures "
          "--path d.h5"),),
        "--preset smoke --data d.h5 --conditioner net --field_net off --max_cpu_s 1 --log_every 1",
        "--save_every 1",
        "model_save/SimulGen-VAE",
        ("infer", "--model {model} --params p.csv --no_figures --device cpu --threads 1 --out out"),
        "--data",
    ),
    Case(
        "facies_gan",
        (("make_data", "--num_sections 2 --height 24 --width 32 --num_facies 3 --out d"),),
        "--preset smoke --input_path d --min_size 12 --max_size 24 --stop_scale 1 --num_iter 4 "
        "--num_feature 8 --min_num_feature 8 --no_plot_facies --log_every 1",
        "--save_every 1",
        "model.pt",
        ("generate", "--model_path {model} --how_many 1 --out_path out --device cpu --threads 1"),
        "--input_path",
    ),
    Case(
        "velocity_inversion",
        (
            ("make_data", "--preset smoke --num_train 4 --num_val 2 --num_test 1 --num_shots 2 "
                          "--num_receivers 12 --record_s 0.3 --num_workers 1 --out d"),
        ),
        "--preset smoke --train_data_path d/train --val_data_path d/val --max_steps 6 --log_every 1",
        "--save_every 1",
        "models/best_ensemble_model.pth",
        ("infer", "--test_data_path d/test --model_path {model} --out out --misfit none --figures 0 "
                  "--device cpu --threads 1"),
        "--train_data_path",
    ),
)  # fmt: skip
BY_NAME = {case.package: case for case in CASES}


def command(script: Path, flags: str | Sequence[str], folder: Path) -> Callable[[], None]:
    """Return a function that runs a script in this process, from `folder`."""
    arguments = flags.split() if isinstance(flags, str) else list(flags)

    def child() -> None:
        os.chdir(folder)
        sys.argv = [str(script), *arguments]
        runpy.run_path(str(script), run_name="__main__")

    return child


def call(script: Path, flags: str | Sequence[str], folder: Path, timeout_s: float = 120) -> tuple[int, str]:
    """Run a script in a fork of this process; return its exit code and all it said."""
    said = folder / "said.txt"
    code = run(command(script, flags, folder), said, timeout_s)
    return code, said.read_text(encoding="utf-8", errors="replace")


def must(script: Path, flags: str | Sequence[str], folder: Path) -> str:
    """Run a script that has to succeed; return what it said."""
    code, said = call(script, flags, folder)
    assert code == 0, said[-3000:]
    return said


def make_data(case: Case, folder: Path) -> Path:
    """Make the package's data in `folder` and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, flags in case.data:
        must(case.script(name), flags, folder)
    if case.package == "simulgen_vae":
        (folder / "p.csv").write_text("cx,cy,radius,c1,f0,sy\n1.0,0.5,0.2,1.2,2.0,0.5\n")
    return folder


def training(case: Case, folder: Path, out: str, more: str = "") -> Callable[[], None]:
    """Return a function that trains into `out`, saving at every step."""
    flags = f"{case.train} {QUIET} {case.saves} --out {out} {more}"
    return command(case.script("train"), flags, folder)


def models(out: Path) -> dict[str, dict[str, Any]]:
    """Return the content of every checkpoint or model file that a run left, by relative name."""
    suffixes = {".ckpt", ".pt", ".pth"}
    return {
        str(path.relative_to(out)): load(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and (path.suffix in suffixes or path.name in ("SimulGen-VAE", "LatentConditioner"))
    }


def changed(out: Path, expected: dict[str, dict[str, Any]]) -> list[str]:
    """Return what differs in one bit between the models of a run and the expected ones."""
    found = models(out)
    gone = sorted(expected.keys() - found.keys())
    return gone + [
        d for name in expected.keys() & found.keys() for d in differences(found[name], expected[name], name)
    ]


def state(out: Path) -> str:
    """Return what status.json says of the run: running, finished, stopped or failed."""
    newest = max(out.rglob("status.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text(encoding="utf-8"))["state"]


def error_line(said: str) -> str:
    """Return the one line that starts with "error: ", which has to be the last that a script says."""
    lines = said.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0] and "Traceback" not in said, said[-3000:]
    return errors[0]
