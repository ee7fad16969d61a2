"""Faults, folds and erosion of the generator: geometry, labels and the undoing of slip."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fault_seg.angles import normal_from_angles
from fault_seg.folding import Folding, draw_erosion, draw_folding
from fault_seg.structure import (
    Fault,
    FaultStyle,
    displacement,
    draw_faults,
    fault_volumes,
    grid,
    pull_back,
    sheet,
)
from fault_seg.synthetic import draw_style, preset, undo_history
from tests.fault_seg.planes import angle_between_deg

SHAPE = (64, 64, 64)


def _fault(**changes) -> Fault:
    values = {"centre": (32, 30, 34), "dip_deg": 65, "strike_deg": 40, "rake_deg": 80, "displacement": 6}
    return Fault(**{**values, **changes})


def _labels(*faults: Fault, width: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    _, nearest, normal = pull_back(grid(SHAPE), list(faults), width)
    return fault_volumes(nearest, normal, SHAPE)


def _flat_folding(tilt: float = 0.0) -> Folding:
    """Return beds that drop by `tilt` voxels a voxel of y, and nothing else."""
    margin, n = 40, SHAPE[1]
    maps = np.zeros((4, n + 2 * margin, n + 2 * margin), dtype=np.float32)
    maps[0] = tilt * (np.arange(n + 2 * margin)[:, None] - margin)
    maps[1] = 1
    return Folding(maps=maps, margin=margin, n1=SHAPE[0], growing=False)


def _plane_normal(points: np.ndarray) -> np.ndarray:
    return np.linalg.svd(points - points.mean(0), full_matrices=False)[2][-1]


def _labelled_normals(fdip: np.ndarray, fstrike: np.ndarray, at: np.ndarray) -> torch.Tensor:
    dip, strike = (torch.from_numpy(180 * v[tuple(at.T)]).double() for v in (fdip, fstrike))
    return normal_from_angles(dip, strike)


@pytest.mark.parametrize("dip,strike", [(50, 5), (65, 100), (85, 175), (100, 60), (128, 130)])
def test_plane_through_labels_has_the_labelled_angles(dip, strike):
    """A plane fitted to the labels of one flat fault has the normal of its dip and strike."""
    fsem, fdip, fstrike = _labels(_fault(dip_deg=dip, strike_deg=strike))
    at = np.argwhere(fsem > 0)
    fitted = _plane_normal(at)
    assert abs(fitted @ _labelled_normals(fdip, fstrike, at)[:, 0].numpy()) > 0.995
    np.testing.assert_allclose(180 * fdip[fsem > 0], dip, atol=1e-3)
    np.testing.assert_allclose(180 * fstrike[fsem > 0], strike, atol=1e-3)


@pytest.mark.parametrize("curvature", [0.003, -0.003])
def test_curved_faults_have_local_angles(curvature):
    """On a curved fault the plane fitted around a labelled voxel has the normal labelled there."""
    fault = _fault(curvature=curvature, rake_deg=0)
    fsem, fdip, fstrike = _labels(fault)
    at = np.argwhere(fsem > 0)
    normals = _labelled_normals(fdip, fstrike, at).numpy().T
    assert np.ptp(180 * fdip[fsem > 0]) > 15, "the fault is meant to be curved"
    checked = 0
    for centre, normal in zip(at[::500], normals[::500], strict=True):
        if (np.minimum(centre, 63 - centre) >= 8).all():
            patch = at[((at - centre) ** 2).sum(1) <= 64]
            assert abs(_plane_normal(patch) @ normal) > 0.995
            checked += 1
    assert checked >= 5


@pytest.mark.parametrize("width,curvature", [(2, 0.0), (2, 0.003), (3, 0.0), (3, -0.003)])
def test_slab_is_as_thick_as_asked(width, curvature):
    """The labels measure the fault width across the sheet, also where it is curved."""
    fault = _fault(dip_deg=70, curvature=curvature, rake_deg=0)
    fsem, fdip, fstrike = _labels(fault, width=width)
    at = np.argwhere(fsem > 0)
    across = np.abs(_labelled_normals(fdip, fstrike, at).numpy())
    axis = across.mean(1).argmax()
    runs = fsem.sum(axis)
    inside = runs > 0
    cosine = np.zeros(SHAPE)
    cosine[tuple(at.T)] = across[axis]
    thickness = (runs * (cosine.sum(axis) / np.maximum(runs, 1)))[inside]
    assert abs(thickness[thickness > 0.5 * width].mean() - width) < 0.25
    assert abs(thickness.mean() - width) < 0.5


@pytest.mark.parametrize("dip,size,tilt", [(65, 6.0, 0.0), (65, -5.0, 0.2), (120, 8.0, -0.3)])
def test_beds_meet_again_when_the_slip_is_undone(dip, size, tilt):
    """Geological time is equal on both sides of a fault once the slip is undone."""
    fault = _fault(dip_deg=dip, displacement=size)
    n, td, ts = fault.frame
    rng = np.random.default_rng(0)
    b, a = rng.uniform(-12, 12, (2, 200, 1)).astype(np.float32)
    on = np.float32(fault.centre) + b * td + a * ts
    before = (on + 0.01 * n).T  # grains that touched across the sheet before it slipped
    moved = before + size * fault.slip[:, None]
    still = (on - 0.01 * n).T
    folding = _flat_folding(tilt)
    time = [undo_history(p.astype(np.float32), [fault], folding, 2.0)[0] for p in (moved, still)]
    np.testing.assert_allclose(time[0], time[1], atol=0.05)
    unmoved = undo_history(before.astype(np.float32), [fault], folding, 2.0)[0]
    assert np.abs(unmoved - time[1]).mean() > 2, "the throw is meant to be seen"


def test_older_fault_is_offset_by_the_newer_one():
    """The label of an older fault is displaced with the block that the newer fault moved."""
    newer = _fault(dip_deg=80, strike_deg=0, rake_deg=0, displacement=10, centre=(32, 32, 32))
    older = _fault(dip_deg=80, strike_deg=90, rake_deg=90, displacement=5, centre=(32, 32, 30))
    fsem, _, _ = _labels(newer, older)
    distance, _, _ = sheet(newer, grid(SHAPE))
    distance = distance.reshape(SHAPE)
    x = np.arange(64)
    sides = []
    for side in (distance > 6, distance < -6):
        level = (fsem * side)[32]
        sides.append((level * x).sum() / level.sum())
    step = newer.slip[2] * newer.displacement
    np.testing.assert_allclose(sides[0] - sides[1], step, atol=1)


@pytest.mark.parametrize(
    "law,size", [("gaussian", (16.0,)), ("ramp", (64.0,)), ("ramp", (-64.0,)), ("ellipse", (20.0, 14.0))]
)
def test_labels_only_where_the_fault_moved_a_voxel(law, size):
    """A voxel is labelled just where it is within half the width and the displacement reaches one voxel."""
    fault = _fault(law=law, size=size, displacement=-4.0, curvature=0.002)
    fsem, _, _ = _labels(fault)
    distance, down, along = sheet(fault, grid(SHAPE))
    moved = np.abs(displacement(fault, along, down, distance))
    expected = (np.abs(distance) <= 1) & (moved >= 1)
    np.testing.assert_array_equal(fsem.ravel() > 0, expected)
    assert ((np.abs(distance) <= 1) & (moved < 1)).sum() > 100, "some of the sheet is meant to be unlabelled"
    assert moved.max() <= 4


def test_faults_of_the_presets_move_the_right_way():
    """Hanging walls go down in wu2019; rgm displaces evenly; parallel faults keep their distance."""
    rng = np.random.default_rng(1)
    normal_faults = FaultStyle(laws=("gaussian",), any_rake=0.0, normal_only=True)
    for fault in draw_faults(rng, SHAPE, 40, normal_faults):
        towards_hanging_wall = -np.sign(fault.frame[0][0])  # the moved side lies along +n; above is -z
        assert fault.displacement * fault.slip[0] * towards_hanging_wall > 0
        assert 50 <= min(fault.dip_deg, 180 - fault.dip_deg) <= 85
    faults = draw_faults(rng, (128, 128, 128), 12, FaultStyle())
    for i, fault in enumerate(faults):
        for other in faults[:i]:
            if abs(fault.frame[0] @ other.frame[0]) > 0.85:
                assert abs(np.subtract(fault.centre, other.centre) @ other.frame[0]) >= 8
    assert draw_style(rng, preset("rgm")).faults.laws == ("constant",)
    assert preset("rgm").fault_width == 3


def test_erosion_cuts_older_beds_and_faults():
    """Below an unconformity the beds are cut at an angle, and only there do the older faults exist."""
    rng = np.random.default_rng(0)
    erosion = draw_erosion(rng, SHAPE, 40)
    old = _fault(displacement=8)
    points = grid(SHAPE)
    position, _, nearest, _ = undo_history(
        points, [], _flat_folding(), 2.0, erosion, ([old], _flat_folding(0.4))
    )
    below = erosion.below(points)
    assert np.isfinite(nearest[below]).any()
    assert not np.isfinite(nearest[~below]).any()
    assert position[below].min() > position[~below].max()
    last_above = np.abs(points[0] - np.float32(erosion.depth.mean())) < 8
    jump = np.diff(np.where(last_above, position, np.nan).reshape(SHAPE), axis=0)
    assert np.nanmax(jump) - erosion.hiatus > 10, "more is missing where more was eroded"


def test_folds_stay_within_their_bounds():
    """Shifts stay within the folds, roughness and tilts allowed for the size of the cube."""
    for index in range(10):
        folding = draw_folding(np.random.default_rng(index), SHAPE, 10)
        inside = folding.maps[:, 10:-10, 10:-10]
        assert np.abs(inside[0]).max() <= (2 * 28 + 2 + 25) * 0.5
        assert np.abs(inside[1] - 1).max() <= 0.08
        assert np.abs(inside[2:]).max() <= 1


def test_angles_of_spurious_and_true_faults_agree_with_the_drawn_ones():
    """Each labelled normal of a cube of flat faults is that of one of its faults."""
    faults = [
        _fault(strike_deg=s, dip_deg=d, centre=(32, 32, c)) for s, d, c in ((10, 60, 15), (95, 110, 45))
    ]
    fsem, fdip, fstrike = _labels(*faults)
    normals = _labelled_normals(fdip, fstrike, np.argwhere(fsem > 0))
    apart = torch.stack([angle_between_deg(normals, torch.from_numpy(f.frame[0])[:, None]) for f in faults])
    assert apart.min(0).values.max() < 0.1
    assert (apart.argmin(0) == 0).any()
    assert (apart.argmin(0) == 1).any()
