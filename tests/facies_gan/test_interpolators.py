"""Images to pyramids in four ways; the vectorised smoother; the cache on the disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import DataError
from facies_gan import neural_smoother
from facies_gan.cache import PyramidCache, facies_pyramids
from facies_gan.dataset import SectionSet, read_training_data
from facies_gan.images import write_png
from facies_gan.interpolators import (
    AreaInterpolator,
    InterpolatorConfig,
    NearestInterpolator,
    NeuralSmoother,
    WellInterpolator,
    make_interpolator,
)
from facies_gan.palette import Palette, write_palette
from facies_gan.wells import WellSet
from tests.facies_gan.cases_data import COLORS4, options, random_labels, write_root

FAST = {"fit_steps": 3, "upsample": 1}
SCALES = [(6, 8), (16, 20)]


@pytest.mark.parametrize("name", ["area", "nearest", "neural"])
@pytest.mark.parametrize("last", [False, True])
def test_shares_sum_to_one(name: str, last: bool):
    """Every interpolator returns float32 shares that sum to 1, in the layout asked for."""
    config = InterpolatorConfig(4, channels_last=last, **FAST)
    for size, grid in zip(
        SCALES, make_interpolator(name, config).interpolate(random_labels(), SCALES), strict=True
    ):
        assert grid.dtype == torch.float32 and grid.shape == ((*size, 4) if last else (4, *size))
        assert torch.allclose(grid.sum(-1 if last else 0), torch.ones(size), atol=1e-5)
        assert float(grid.min()) >= 0


def test_all_agree_on_a_constant_image():
    """One facies everywhere is that facies on every scale."""
    labels = np.full((12, 12), 1, dtype=np.uint8)
    config = InterpolatorConfig(2, upsample=2, fit_steps=60)
    for kind in (AreaInterpolator, NearestInterpolator, NeuralSmoother):
        for grid in kind(config).interpolate(labels, [(5, 5), (12, 12), (15, 15)]):
            assert float(grid[1].min()) > 0.98
    wells = WellSet.from_columns(labels, [3])
    well = WellInterpolator(InterpolatorConfig(2, geometry=(12, 12)))
    for grid in well.interpolate(wells, [(5, 5), (20, 20)]):
        assert torch.equal(grid[1], grid[2]) and float(grid[0].sum()) == 0


def test_nearest_by_hand():
    """Cell centres: row = floor((i + 0.5) H / H_k)."""
    labels = np.arange(5, dtype=np.uint8)[:, None].repeat(3, axis=1)
    grid = NearestInterpolator(InterpolatorConfig(5)).interpolate(labels, [(2, 3), (10, 3)])
    assert grid[0].argmax(0)[:, 0].tolist() == [1, 3]
    assert grid[1].argmax(0)[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_images_from_files(tmp_path: Path):
    """A PNG, its colours and its labels give one pyramid; another size than expected is refused."""
    labels = random_labels()
    write_png(tmp_path / "a.png", COLORS4[labels])
    maker = AreaInterpolator(InterpolatorConfig(4, geometry=(16, 20)))
    by_path, by_rgb = (
        maker.interpolate(tmp_path / "a.png", SCALES),
        maker.interpolate(COLORS4[labels], SCALES),
    )
    for a, b, c in zip(by_path, by_rgb, maker.interpolate(labels, SCALES), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    with pytest.raises(DataError, match=r"\(4, 4\)"):
        maker.interpolate(np.zeros((4, 4), dtype=np.uint8), SCALES)
    with pytest.raises(DataError, match="facies 3, expected below 2"):
        AreaInterpolator(InterpolatorConfig(2)).interpolate(labels, SCALES)


def test_wells_from_files_and_tensors(tmp_path: Path):
    """A wells PNG with transparency and a wells tensor give the pyramid of their data."""
    labels = random_labels()
    wells = WellSet.from_columns(labels, [2, 9])
    config = InterpolatorConfig(4, palette=Palette.from_colors(COLORS4))
    image = np.zeros((16, 20, 4), dtype=np.uint8)
    image[wells.rows, wells.cols, :3] = COLORS4[wells.facies]
    image[wells.rows, wells.cols, 3] = 255
    write_png(tmp_path / "w.png", image)
    expected = WellInterpolator(InterpolatorConfig(4, geometry=(16, 20))).interpolate(wells, SCALES)
    for found in (tmp_path / "w.png", wells.tensor((16, 20), 4)):
        for a, b in zip(expected, WellInterpolator(config).interpolate(found, SCALES), strict=True):
            assert torch.equal(a, b)


def test_smoother_parameters():
    """330,752 + 257 C parameters beside the frequencies; 331,780 for four facies."""
    for classes in (2, 4, 7):
        weights = neural_smoother.initial_weights(classes)
        assert [tuple(w.shape) for w in weights] == neural_smoother.weight_shapes(classes)
        assert sum(w.numel() for w in weights[1:]) == 330_752 + 257 * classes
    assert 330_752 + 257 * 4 == 331_780


def test_vectorised_equals_single():
    """Images of different size fitted together follow the paths that they follow alone."""
    images = [random_labels((8, 9), seed=1), random_labels((6, 7), seed=2), random_labels((8, 9), seed=3)]
    together = neural_smoother.fit(images, 4, steps=12)
    for image, network in zip(images, together, strict=True):
        (alone,) = neural_smoother.fit([image], 4, steps=12)
        for a, b in zip(network, alone, strict=True):
            assert torch.allclose(a, b, atol=1e-4)
        same = neural_smoother.render(network, 8, 9), neural_smoother.render(alone, 8, 9, chunk_size=10)
        assert torch.allclose(*same, atol=1e-4)


def test_smoother_follows_an_edge():
    """A dipping edge between two facies is reproduced in at least 99 % of the pixels."""
    y, x = np.mgrid[:20, :20]
    labels = (y > 0.4 * x + 5).astype(np.uint8)
    (network,) = neural_smoother.fit([labels], 2, steps=120)
    found = neural_smoother.render(network, 20, 20).argmax(0).numpy()
    assert (found == labels).mean() >= 0.99


def test_smoother_file_is_used(tmp_path: Path):
    """<stem>.pt beside the image gives the pyramid, under any tensor names; a wrong one is refused."""
    labels = random_labels()
    write_png(tmp_path / "a.png", COLORS4[labels])
    network = neural_smoother.initial_weights(4, seed=5)
    torch.save({"model_state": {f"layer{i}": w for i, w in enumerate(network)}}, tmp_path / "a.pt")
    maker = NeuralSmoother(InterpolatorConfig(4, upsample=2))
    expected = neural_smoother.smooth_pyramid(network, (16, 20), SCALES, upsample=2)
    for a, b in zip(maker.interpolate(tmp_path / "a.png", SCALES), expected, strict=True):
        assert torch.equal(a, b)
    torch.save({"model_state": {str(i): w for i, w in enumerate(network[:-1])}}, tmp_path / "a.pt")
    with pytest.raises(DataError, match="a.pt: 18 tensors"):
        maker.interpolate(tmp_path / "a.png", SCALES)


def cached(
    data: SectionSet, folder: Path, name: str = "area", scales: list | None = None
) -> tuple[list, int]:
    """Return the pyramids and how many of them came from the cache."""
    cache = PyramidCache(folder)
    config = InterpolatorConfig(**FAST)
    sizes = [scales or SCALES] * len(data)
    found = facies_pyramids(data.sections, data.palette, sizes, name, cache=cache, config=config)
    return found, cache.pyramid_hits


def test_cache_hits_by_content(tmp_path: Path):
    """Touching a file hits, editing a pixel misses for that file alone, another scale list misses."""
    labels = write_root(tmp_path, ("a", "b", "c"))
    flags, folder = options(input_path=tmp_path), tmp_path / "cache"
    first, hits = cached(read_training_data(flags), folder)
    assert hits == 0 and stat.S_IMODE(os.stat(folder / "facies_gan").st_mode) == 0o700
    os.utime(tmp_path / "facies/a.png", (1, 1))
    again, hits = cached(read_training_data(flags), folder)
    assert hits == 3 and all(
        torch.equal(x, y) for p, q in zip(first, again, strict=True) for x, y in zip(p, q, strict=True)
    )
    labels["b"][3, 3] = (labels["b"][3, 3] + 1) % 4
    write_png(tmp_path / "facies/b.png", COLORS4[labels["b"]])
    changed, hits = cached(read_training_data(flags), folder)
    assert hits == 2 and not torch.equal(changed[1][1], first[1][1])
    assert cached(read_training_data(flags), folder, scales=[(7, 8)])[1] == 0
    assert cached(read_training_data(flags), folder, "nearest")[1] == 0


def test_cache_tells_readings_of_one_file_apart(tmp_path: Path):
    """Another variable or direction of a grid, other values of an image: never the pyramid of the first."""
    grid = random_labels((16, 20), 2)
    both = "\n".join(f"{a} {1 - a}" for a in grid.reshape(-1).tolist())
    (tmp_path / "two").write_text(f"20 16 1\n2\nfirst\nsecond\n{both}\n")
    write_png(tmp_path / "grey.png", np.where(grid, 255, 0).astype(np.uint8))
    shades = Palette(np.array([(v, v, v) for v in (0, 128, 255)]), np.arange(3), ("a", "b", "c"))
    write_palette(tmp_path / "palette.json", shades)
    for name, readings in {
        "two": ({"variable": "first"}, {"variable": "second"}, {"variable": "first", "z_down": True}),
        "grey.png": ({}, {"img_color_range": (0.0, 510.0)}),
    }.items():
        for flags in readings:
            data = read_training_data(options(training_image=tmp_path / name, **flags))
            found, hits = cached(data, tmp_path / "cache")
            assert hits == 0 and (found[0][1].argmax(0).numpy() == data.sections[0].labels).all()
            assert cached(data, tmp_path / "cache")[1] == 1


def test_damaged_and_poisoned_entries(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A damaged entry is made again with a warning; a pickle in its place is never executed."""
    write_root(tmp_path)
    data = read_training_data(options(input_path=tmp_path))
    first, _ = cached(data, tmp_path / "cache")
    one, two = sorted((tmp_path / "cache/facies_gan").glob("*.npz"))
    one.write_bytes(one.read_bytes()[:60])

    class Bad:
        def __reduce__(self) -> tuple:
            return (open, (str(tmp_path / "executed"), "w"))

    np.savez(two, array_0=np.array([Bad()], dtype=object), array_1=np.array([Bad()], dtype=object))
    again, hits = cached(data, tmp_path / "cache")
    assert hits == 0 and not (tmp_path / "executed").exists()
    assert capsys.readouterr().err.count("made again") == 2
    assert all(
        torch.equal(x, y) for p, q in zip(first, again, strict=True) for x, y in zip(p, q, strict=True)
    )
    assert cached(data, tmp_path / "cache")[1] == 2
    assert PyramidCache(tmp_path / "cache").clear() == 2 and cached(data, tmp_path / "cache")[1] == 0


def test_smoothers_are_kept(tmp_path: Path):
    """Fitted networks are cached: another scale list fits nothing again; workers change nothing."""
    write_root(tmp_path)
    data = read_training_data(options(input_path=tmp_path))
    first, _ = cached(data, tmp_path / "cache", "neural")
    fits = []
    original = neural_smoother.fit
    neural_smoother.fit = lambda *args, **kwargs: fits.append(1) or original(*args, **kwargs)
    try:
        cached(data, tmp_path / "cache", "neural", [(5, 6)])
        assert not fits
        sizes, config = [SCALES] * 2, InterpolatorConfig(**FAST)
        alone = facies_pyramids(data.sections, data.palette, sizes, "neural", config=config, num_workers=2)
        assert fits
    finally:
        neural_smoother.fit = original
    assert all(
        torch.equal(x, y) for p, q in zip(first, alone, strict=True) for x, y in zip(p, q, strict=True)
    )
