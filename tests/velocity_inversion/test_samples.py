"""Decimation, flip, augmentation, the cache and the readers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from common.errors import DataError, UserError
from common.noise import numpy_stream
from common.sampling import Draw
from tests.velocity_inversion.cases import random_batch
from velocity_inversion.augment import (
    augment,
    draw_scaling,
    flip,
    mask_frequencies,
    scale_velocity,
    shift,
)
from velocity_inversion.dataset import ShotDataset, collate, split_rows
from velocity_inversion.geometry import Wavelet, challenge_survey, openfwi_survey
from velocity_inversion.preprocess import band_pass, decimate, decimate_tensor
from velocity_inversion.simulate import default_simulation, ricker, simulate
from velocity_inversion.sources import open_source


def test_decimation_keeps_the_wavelet_and_stops_aliases():
    """0.1 ms data keep a 15 Hz Ricker at 4 ms to 0.1 % and lose a 600 Hz tone by 60 dB; tensors alike."""
    wave = ricker(15, 10001, 1e-4, 0.5).numpy()[:, None]
    found = decimate(wave, 40, 250)
    assert np.linalg.norm(found - wave[::40][:250]) < 1e-3 * np.linalg.norm(found)
    tone = np.sin(2 * np.pi * 600 * np.arange(10001) * 1e-4)[:, None]
    assert np.abs(decimate(tone, 40, 250)[20:-20]).max() < 1e-3
    x = torch.randn(1, 2, 400, 3)
    expected = torch.from_numpy(decimate(x.numpy(), 4, 100))
    torch.testing.assert_close(decimate_tensor(x, 4, 100), expected, atol=1e-5, rtol=1e-5)


def test_band_pass_uses_the_interval_of_the_data():
    """5 to 50 Hz on 0.1 ms data keep 95 % of a 15 Hz Ricker; corners above Nyquist are refused."""
    wave = ricker(15, 10001, 1e-4, 0.5).numpy()[:, None]
    assert (band_pass(wave, 1e-4, 5, 50) ** 2).sum() > 0.95 * (wave**2).sum()
    with pytest.raises(UserError, match="Nyquist"):
        band_pass(wave, 4e-3, 5, 130)


def test_flip_twice_is_nothing():
    """P(P(sample)) = sample bit for bit; columns turn; the challenge's shots map as they stand."""
    sample = {k: v[0] for k, v in random_batch().items() if isinstance(v, torch.Tensor)}
    sample["vp"] = torch.rand(1, 70, 70)
    once = flip(sample, 690.0)
    assert torch.equal(once["vp"], sample["vp"].flip(-1))
    twice = flip(once, 690.0)
    assert all(torch.equal(twice[name], value) for name, value in sample.items())
    turned = flip(random_batch(challenge_survey(), 1), 299.0)["source_xz"][0, :, 0]
    assert turned.tolist() == [0, 75, 150, 225, 299]


def test_shift_never_wraps_and_masks_empty_their_band():
    """Late energy does not reach the start of the record; a frequency mask leaves empty frequencies."""
    gathers = np.zeros((2, 100, 3))
    gathers[:, -2:] = 1.0
    for seed in range(5):
        assert np.abs(shift(gathers, 0.004, np.random.default_rng(seed))[:, :30]).max() < 0.02
    rng = np.random.default_rng(0)
    masked = mask_frequencies(rng.standard_normal((2, 250, 3)), 0.004, rng)
    assert (np.abs(np.fft.rfft(masked, axis=1)).max((0, 2)) < 1e-9).any()


@torch.no_grad()
def test_scaled_velocities_and_times_are_physics():
    """Gathers at d(a t) are those of a v and a wavelet a times as high; nothing leaves the bounds."""
    a = 1.05
    wavelet = Wavelet(peak_s=0.08, delay_samples=0)
    survey = replace(openfwi_survey(1, 6), num_samples=300, wavelet=wavelet)
    faster = replace(survey, wavelet=replace(wavelet, peak_hz=a * wavelet.peak_hz, peak_s=0.08 / a))
    vp = torch.full((1, 70, 70), 2.0)
    vp[:, 20:] = 3.0
    one, other = simulate(vp, default_simulation(survey))[0], simulate(a * vp, default_simulation(faster))[0]
    found = scale_velocity({"gathers": one, "vp": vp}, 1e-3, (1.5, 4.5), a)
    torch.testing.assert_close(found["vp"], a * vp)
    known = slice(0, int(300 / a))
    assert float((found["gathers"] - other)[:, known].norm()) < 0.03 * float(other[:, known].norm())
    assert float((one - other)[:, known].norm()) > 0.2 * float(other[:, known].norm())
    assert float(found["gathers"][:, -1].abs().max()) == 0
    same = scale_velocity({"gathers": one, "vp": vp}, 1e-3, (1.5, 3.1), a)
    assert torch.equal(same["gathers"], one) and torch.equal(same["vp"], vp)
    draws = [draw_scaling(0, position, 0.5) for position in range(40)]
    assert 5 < draws.count(None) < 35 and all(0.95 <= d <= 1.05 for d in draws if d is not None)


def test_shots_share_what_is_drawn_once():
    """Equal shots keep one delay and, but for 5 % each, one gain; two shots stay whatever is drawn."""
    batch = random_batch(openfwi_survey(3, 6), 1, 100)
    sample = {k: v[0] for k, v in batch.items() if isinstance(v, torch.Tensor)}
    sample["gathers"] = sample["gathers"][:1].expand(3, -1, -1).contiguous()
    gathers = sample["gathers"].numpy()
    moved = shift(gathers, 0.004, np.random.default_rng(1))
    np.testing.assert_allclose(moved, moved[:1].repeat(3, 0))
    names = ("spectral tilt", "phase", "frequency mask", "shift", "gain", "time mask", "noise")
    names += ("trace dropout", "shot dropout")

    def drawn(position: int) -> list[str]:
        return [name for name in names if numpy_stream(0, f"augment {name}", position).random() < 0.2]

    position = next(k for k in range(1000) if drawn(k) == ["gain"])
    ratio = augment(sample, 0.004, 15.0, 0.2, 0, position)["gathers"].numpy() / gathers
    gains = ratio.mean((1, 2))
    np.testing.assert_allclose(ratio, gains[:, None, None].repeat(100, 1).repeat(6, 2), rtol=1e-4)
    assert 0.76 <= gains.min() < gains.max() <= 1.26 and gains.max() / gains.min() < 1.05 / 0.95
    alive = [augment(sample, 0.004, 15.0, 1.0, 0, k)["live"].any(-1).sum() for k in range(12)]
    assert min(alive) >= 2


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_and_batches_change_no_sample(data: Path, workers: int):
    """The samples of a loader are those that are asked for one by one."""
    shots = ShotDataset(open_source(data / "train"), flips=True, augment_probability=1.0, seed=3)
    draws = [Draw(index, position) for position, index in enumerate((4, 1, 1, 0))]
    alone = torch.stack([shots[draw]["gathers"] for draw in draws])
    for size in (1, 3):
        loader = DataLoader(shots, size, sampler=draws, collate_fn=collate, num_workers=workers)  # type: ignore[arg-type]
        assert torch.equal(torch.cat([batch["gathers"] for batch in loader]), alone)


def test_samples_depend_on_the_position_alone(data: Path):
    """The same draw gives the same sample, another position another one."""
    shots = ShotDataset(open_source(data / "train"), flips=True, augment_probability=1.0, seed=3)
    first, again, other = shots[Draw(1, 7)], shots[Draw(1, 7)], shots[Draw(1, 8)]
    assert torch.equal(first["gathers"], again["gathers"])
    assert not torch.equal(first["gathers"], other["gathers"])


def test_cache_gives_what_the_files_give(data: Path, tmp_path: Path):
    """Cached samples equal those from files, also after the cache was cut; the last time row is zeroed."""
    source = open_source(data / "train")
    plain = ShotDataset(source)[2]["gathers"]
    assert torch.equal(ShotDataset(source, cache_dir=tmp_path)[2]["gathers"], plain)
    cut = next(p for p in tmp_path.glob("*.npy") if not p.name.endswith("live.npy"))
    (tmp_path / "cut").write_bytes(cut.read_bytes()[:200])  # the file itself is mapped by this process
    (tmp_path / "cut").replace(cut)
    assert torch.equal(ShotDataset(source, cache_dir=tmp_path)[2]["gathers"], plain)
    assert float(np.abs(source.read_gathers(0)[0][:, -1]).max()) == 0


def test_split_leaves_nobody_in_both_parts(data: Path):
    """The split is seeded by sample name."""
    source = open_source(data / "train")
    train, valid = split_rows(source, 0.3, 0)
    assert not set(train) & set(valid) and len(train) + len(valid) == len(source)
    assert split_rows(source, 0.3, 0) == (train, valid)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("data1.npy", lambda x: x[:, :2], "3 shots"),
        ("data1.npy", lambda x: x.transpose(0, 1, 3, 2), "transposed"),
        ("data1.npy", lambda x: x * np.float32("nan"), "NaN"),
        ("data1.npy", lambda x: np.zeros_like(x), "all values are zero"),
        ("model1.npy", lambda x: x / 1000, "geometry says m/s"),
        ("model1.npy", lambda x: x * 3, "4.5"),
        ("model1.npy", lambda x: x[:2], "expected"),
    ],
)
def test_bad_data_is_named(
    data: Path, tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray], message: str
):
    """Each broken file ends in one line that says what was found."""
    for path in (data / "train").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    np.save(tmp_path / name, change(np.load(tmp_path / name)))
    with pytest.raises(DataError, match=message):
        ShotDataset(open_source(tmp_path), training=True)[0]
