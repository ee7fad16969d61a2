"""Augmented crops keep true labels: normals move with the volumes, time runs down, noise is on the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.noise import numpy_stream
from fault_seg.angles import normal_from_angles
from fault_seg.augment import augment, change_polarity, crop, disturb, flip, transpose, turn_and_flip
from fault_seg.synthetic import GeneratorConfig, make_sample

POSES = {
    "flip z": lambda v: flip(v, "z"),
    "flip y": lambda v: flip(v, "y"),
    "flip x": lambda v: flip(v, "x"),
    "transpose": transpose,
    "quarter turn": lambda v: flip(transpose(v), "y"),
}


@pytest.fixture(scope="module")
def plane() -> dict[str, np.ndarray]:
    """Return volumes with one tilted plane of known normal."""
    normal = normal_from_angles(torch.tensor(62.0), torch.tensor(37.0)).numpy()
    z, y, x = np.meshgrid(*(np.arange(24) - 11.5,) * 3, indexing="ij")
    fsem = (np.abs(normal[0] * z + normal[1] * y + normal[2] * x) <= 1).astype(np.float32)
    rgt = ((z - z.min()) / (z.max() - z.min())).astype(np.float32)
    return {
        "image": (fsem + 0.1 * rgt).astype(np.float32),
        "fsem": fsem,
        "fdip": fsem * np.float32(62 / 180),
        "fstrike": fsem * np.float32(37 / 180),
        "rgt": rgt,
        "tau": (rgt * 23).astype(np.float32),
        "dhr": rgt,
    }


def fitted_normal(fsem: np.ndarray) -> np.ndarray:
    """Return the normal of the plane through the fault voxels: their direction of least spread."""
    points = np.argwhere(fsem > 0.5).astype(float)
    return np.linalg.svd(points - points.mean(0), full_matrices=False)[2][2]


@pytest.mark.parametrize("pose", POSES)
def test_labels_follow_the_geometry(plane: dict[str, np.ndarray], pose: str) -> None:
    """After any turn the stored angles are those of the plane through the turned fault voxels."""
    turned = POSES[pose](plane)
    fault = turned["fsem"] > 0.5
    dip, strike = (torch.from_numpy(turned[name][fault] * 180) for name in ("fdip", "fstrike"))
    normals = normal_from_angles(dip, strike).numpy()
    assert np.abs(fitted_normal(turned["fsem"]) @ normals).min() > 0.999
    assert (turned["fdip"][~fault] == 0).all()
    assert (strike >= 0).all() and (strike < 180).all()


def test_flips_undo_themselves(plane: dict[str, np.ndarray]) -> None:
    """Twice the same flip or exchange is nothing at all."""
    for pose in ("flip z", "flip y", "flip x", "transpose"):
        twice = POSES[pose](POSES[pose](plane))
        for name, values in plane.items():
            np.testing.assert_allclose(twice[name], values, atol=2e-6, err_msg=f"{pose} {name}")


def test_time_runs_downwards_after_a_vertical_flip(plane: dict[str, np.ndarray]) -> None:
    """The deepest layer is the oldest, upside down too; solved time stays in voxels."""
    turned = flip(plane, "z")
    assert (np.diff(turned["rgt"], axis=0) > 0).all()
    np.testing.assert_allclose(np.diff(turned["tau"], axis=0), 1, atol=1e-4)


def test_polarity_turns_both_images_and_nothing_else(plane: dict[str, np.ndarray]) -> None:
    """Image and dhr change sign together."""
    turned = change_polarity(plane)
    for name, values in plane.items():
        np.testing.assert_array_equal(turned[name], -values if name in ("image", "dhr") else values)


def test_disturbance_touches_the_image_only() -> None:
    """A disturbed crop has the labels of the undisturbed one in the same pose."""
    sample = make_sample(0, 0, GeneratorConfig(shape=(24, 24, 24))).volumes()
    for position in range(8):
        posed = turn_and_flip(sample, numpy_stream(3, "pose", position))
        changed = {**posed, "image": disturb(posed["image"], numpy_stream(3, "disturb", position))}
        for name in ("fsem", "fdip", "fstrike", "rgt"):
            np.testing.assert_array_equal(changed[name], posed[name])
        assert np.isfinite(changed["image"]).all()
        assert np.corrcoef(np.abs(changed["image"]).ravel(), np.abs(posed["image"]).ravel())[0, 1] > 0.5


def test_augmented_crops_differ_and_repeat() -> None:
    """Positions get poses of their own; the same position always the same one."""
    sample = make_sample(0, 0, GeneratorConfig(shape=(24, 24, 24))).volumes()
    crops = [augment(sample, numpy_stream(3, "pose", k))["image"] for k in (0, 1, 2, 3, 0)]
    np.testing.assert_array_equal(crops[0], crops[4])
    assert len({values.tobytes() for values in crops}) >= 3


def test_same_stream_same_crop() -> None:
    """Augmentation is a function of its stream."""
    image = np.random.default_rng(0).standard_normal((16, 16, 16)).astype(np.float32)
    first = disturb(image, numpy_stream(1, "d", 5))
    np.testing.assert_array_equal(first, disturb(image, numpy_stream(1, "d", 5)))
    assert not np.array_equal(first, disturb(image, numpy_stream(1, "d", 6)))


def test_crop_is_the_box() -> None:
    """A crop of every volume is the same box."""
    values = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    np.testing.assert_array_equal(crop({"a": values}, (1, 2, 3), (2, 2, 2))["a"], values[1:3, 2:4, 3:5])
