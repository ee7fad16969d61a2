"""What a training needs of its data is known before it writes anything; odd and small data are fine."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from common.errors import UserError
from common.run import BasicOptions
from tests.voxel_ode.cases_data import config as prep_config
from tests.voxel_ode.cases_data import prepared, truth, write_raw
from tests.voxel_ode.cases_train import config, run
from voxel_ode.constraints import range_warnings
from voxel_ode.infer import load, predict
from voxel_ode.prep import prep_data
from voxel_ode.prepped import open_simulation


def test_cells_that_cannot_be_turned_are_refused_first(tmp_path: Path):
    """--aug_xy_rot on cells with dy unlike dx is told before the run has a folder; flips go on."""

    def stretch(file: h5py.File) -> None:
        file.attrs["cell_size_m"] = (10.0, 50.0, 40.0)

    data = prepared(tmp_path / "data", raw={"change": stretch})
    with pytest.raises(UserError, match="--aug_xy_rot: cells of 50 x 40 m"):
        run(config(data, aug_xy_rot=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert run(config(data, max_steps=1, unroll_steps=1), tmp_path / "run").state == "finished"


def test_one_patch_for_a_larger_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """An index file of one patch trains with a batch of four, with one line; the next command is printed."""
    root = prepared(tmp_path / "data")
    first = (root / "index_train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[0]
    (tmp_path / "one.jsonl").write_text(first, encoding="utf-8")
    chosen = config(root, train_index=tmp_path / "one.jsonl", batch_size=4, max_steps=2, unroll_steps=1)
    assert run(chosen, tmp_path / "my run").state == "finished"
    said = capsys.readouterr().err
    assert said.count("1 patches for 4 a step: some are used more than once a step") == 1
    best = tmp_path / "my run" / "checkpoints" / "best.pt"
    assert f"next: python scripts/voxel_ode/evaluate.py --prepped_root {root} --ckpt_path '{best}'" in said


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("film_hidden", [0, 3])
def test_simulations_without_parameters(tmp_path: Path, film_hidden: int):
    """Files whose ParamsScalar is empty are prepared, learned from and predicted like others."""
    for number in range(1, 5):
        case = truth(number)
        case.params = np.zeros(0)
        write_raw(tmp_path / "raw" / f"v2.4_{number:04d}.h5", case)
    prep_data(prep_config(tmp_path / "raw", tmp_path / "data"), BasicOptions())
    chosen = config(tmp_path / "data", film_hidden=film_hidden, max_steps=1, unroll_steps=1)
    assert run(chosen, tmp_path / "run").state == "finished"
    model = load(tmp_path / "run" / "checkpoints" / "best.pt", precision="fp32")
    sim = open_simulation(tmp_path / "data" / "test" / "v2.4_0001.prepped.h5")
    states, _ = predict(model, sim)
    assert len(model.normalizer.param_mean) == 0 and np.isfinite(states).all()
    assert not any("param" in line for line in range_warnings(sim, model.normalizer))
