"""Before the first step: device, folder and presets of a run, sizes of its scales, messages about them."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from common.errors import UserError
from facies_gan.config import RunOptions, TrainingOptions
from facies_gan.config_data import PrepConfig
from facies_gan.make_data import write_png
from facies_gan.model_card import scales_from_fractions
from facies_gan.prep import prepare
from facies_gan.presets import TRAIN_PRESETS
from facies_gan.pyramids import generate_scales
from facies_gan.setup import _fractions, resolve_run
from facies_gan.setup import prepare as set_up
from tests.facies_gan.cases_gan import bands, options, palette, run_options, write_folder, write_image


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPU 3 may be there")
def test_absent_gpu_falls_back_with_one_line(capsys: pytest.CaptureFixture[str]):
    """--gpu_device of an absent GPU takes the best device there is and says so once; --use_cpu is silent."""
    found = resolve_run(TrainingOptions(), RunOptions(gpu_device=3), {})
    said = capsys.readouterr().err
    assert found.device in ("cpu", "mps") and said.count("--gpu_device 3: no such GPU, using") == 1
    assert resolve_run(TrainingOptions(), RunOptions(gpu_device=3, use_cpu=True), {}).device == "cpu"
    assert resolve_run(TrainingOptions(), RunOptions(), {}).device == "auto"
    assert not capsys.readouterr().err


def test_timestamp_and_number_of_scales(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """--timestamp makes a folder named after time and package; --num_scales says that it wins."""
    found = resolve_run(TrainingOptions(), RunOptions(out=tmp_path, timestamp=True), {})
    assert found.out.parent == tmp_path
    assert re.fullmatch(r"\d{4}(_\d\d){5}_facies_gan", found.out.name)
    assert resolve_run(TrainingOptions(), RunOptions(out=tmp_path), {}).out == tmp_path
    both = TrainingOptions(num_scales=3, stop_scale=5)
    assert both.stop_scale == 2
    resolve_run(both, RunOptions(), {"stop_scale": "command line"})
    assert "--num_scales 3 sets --stop_scale" in capsys.readouterr().err


def test_presets():
    """Preset paper is the defaults with smooth pyramids, quick fits a laptop, smoke takes seconds."""
    assert TRAIN_PRESETS["paper"]() == TrainingOptions(interpolator="neural")
    quick, smoke = TRAIN_PRESETS["quick"](), TRAIN_PRESETS["smoke"]()
    assert (quick.min_size, quick.crop_size, quick.stop_scale, quick.num_parallel_scales) == (16, 128, 4, 2)
    assert (quick.generator_steps, quick.discriminator_steps, quick.num_diversity_samples) == (1, 1, 2)
    assert quick.feature_growth == 0 and quick.num_feature == quick.min_num_feature == 32
    assert quick.lr_schedule == "linear" and quick.num_train_pyramids == 64
    assert (smoke.max_size, smoke.stop_scale, smoke.num_iter, smoke.batch_size) == (64, 2, 2, 2)
    assert smoke.min_size == quick.min_size and smoke.lr_schedule == quick.lr_schedule


def test_cap_is_that_of_the_longest_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """--max_size beyond the data is said to be capped, with the longest side of all sections."""
    root = write_folder(tmp_path, count=1)
    write_image(root / "facies" / "large.png", bands((40, 60), 4), 4)
    for most in (60, 61):
        set_up(options(input_path=root, max_size=most, cache_dir=tmp_path / "c"), run_options(tmp_path / "r"))
    said = capsys.readouterr().err
    assert (
        said.count("capped at the native size") == 1 and "--max_size 61: capped at the native size 60" in said
    )


@pytest.mark.parametrize("by", ["prep", "train"])
def test_a_section_that_is_too_small_is_named(tmp_path: Path, by: str):
    """Of many sections, the one whose short side is below 12 cells is named."""
    root = write_folder(tmp_path, count=2)
    write_png(root / "facies" / "thin.png", palette(4).to_rgb(bands((11, 30), 4)))
    with pytest.raises(UserError, match="thin of 11 x 30 cells .* below 12"):
        if by == "prep":
            prepare(PrepConfig(root, check=True))
        else:
            set_up(options(input_path=root, cache_dir=tmp_path / "c"), run_options(tmp_path / "r"))


def test_added_scales_must_differ():
    """On a resumed model, too many added scales are refused with a number that works."""
    old = [(16, 16), (32, 32)]
    card: Any = SimpleNamespace(fractions=(0.5, 1.0), size=(32, 32))
    sections: Any = [SimpleNamespace(shape=(64, 64), stem="a")]
    with pytest.raises(
        UserError, match="--stop_scale 40: two scales between 32 and 64 cells coincide"
    ) as told:
        _fractions(options(stop_scale=40), sections, card)
    working = int(str(told.value).split("--stop_scale ")[-1])
    sizes = scales_from_fractions((64, 64), _fractions(options(stop_scale=working), sections, card))
    assert sizes[:2] == old and len(set(sizes)) == working + 1 > 4
    with pytest.raises(UserError, match="coincide"):
        _fractions(options(stop_scale=working + 1), sections, card)


def test_suggested_values_work():
    """What a refusal suggests is accepted."""
    with pytest.raises(ValueError, match="--min_size 40 is above --max_size 30; use --min_size 12"):
        TrainingOptions(min_size=40, max_size=30)
    assert TrainingOptions(min_size=12, max_size=30).max_size == 30
    with pytest.raises(UserError, match="use --stop_scale 0$"):
        generate_scales(12, 40, 12, 64, 3)
    assert generate_scales(12, 40, 12, 64, 0) == [(12, 40)]
