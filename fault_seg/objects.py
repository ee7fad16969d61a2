"""Faults as separate surfaces with tables and sticks, and horizons, from the volumes of one survey.

Volumes are NumPy arrays [n1, n2, n3] = (z down, crossline y, inline x). Angles are degrees: dip 0..180 (above
90 the plane dips the other way), strike 0..180 from +x towards +y. The writers are in `objects_files`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from scipy.spatial import KDTree

from common.errors import DataError
from fault_seg.angles import (
    angles_from_normal,
    fold_dip,
    normal_from_angles,
    normal_from_outer,
    outer_from_normal,
)
from fault_seg.metrics_fault import Array
from fault_seg.metrics_fields import horizon_depth

Columns = dict[str, NDArray[np.integer] | NDArray[np.floating]]

MAX_ANGLE_DEG = 20.0
CROSSING_REACH = 6.0  # voxels over which a fault is followed through another one that crosses it


@dataclass(frozen=True)
class SurveyGeometry:
    """Where the voxels of a survey lie.

    Attributes:
        ilines: inline numbers [n3].
        xlines: crossline numbers [n2].
        x: easting (or any first coordinate) of each trace [n2, n3].
        y: northing of each trace [n2, n3].
        sample_start: time (ms) or depth of the first sample.
        sample_step: sample interval in the same unit.
        voxel_size: (dz, dy, dx) in one unit, in which dip and strike are true angles; ones where the angles
            are those of the voxel grid.
    """

    ilines: NDArray[np.integer]
    xlines: NDArray[np.integer]
    x: Array
    y: Array
    sample_start: float = 0.0
    sample_step: float = 1.0
    voxel_size: tuple[float, float, float] = field(default=(1.0, 1.0, 1.0))

    def __post_init__(self) -> None:
        expected = (len(self.xlines), len(self.ilines))
        for name in ("x", "y"):
            if getattr(self, name).shape != expected:
                raise DataError(
                    f"survey geometry: {name} has shape {getattr(self, name).shape}, expected {expected} "
                    "(crosslines, inlines); give one coordinate a trace"
                )

    def check(self, volume: Array, name: str) -> None:
        """Raise DataError unless `volume` has the survey's traces."""
        if volume.ndim != 3 or volume.shape[1:] != self.x.shape:
            raise DataError(
                f"{name}: shape {volume.shape}, expected (samples, {len(self.xlines)}, {len(self.ilines)}); "
                "take volumes and geometry of the same survey"
            )

    def depth(self, sample: Array) -> Array:
        """Return time or depth of (fractional) sample numbers."""
        return self.sample_start + self.sample_step * np.asarray(sample, dtype=np.float64)


def grid_normals(dip_deg: Array, strike_deg: Array, voxel_size: tuple[float, float, float]) -> Array:
    """Return unit normals [3, N] in voxel space (z, y, x) of true angles [N].

    True and voxel coordinates differ by a scaling, so the normal covector takes the voxel sizes as factors.
    """
    normal = normal_from_angles(
        torch.as_tensor(dip_deg).double(), torch.as_tensor(strike_deg).double()
    ).numpy()
    normal = normal * np.asarray(voxel_size, dtype=np.float64)[:, None]
    return normal / np.linalg.norm(normal, axis=0)


@dataclass(frozen=True)
class FaultVoxels:
    """The voxels of thinned faults, fault after fault.

    Attributes:
        index: indices (z, y, x) [N, 3].
        normal: unit normals in voxel space [3, N].
        fault_id: number of the fault, 1, 2, ... in rising order [N].
    """

    index: NDArray[np.integer]
    normal: Array
    fault_id: NDArray[np.integer]

    def volume(self, shape: tuple[int, int, int]) -> NDArray[np.int32]:
        """Return the label volume: 0, or the number of the fault."""
        labels = np.zeros(shape, dtype=np.int32)
        labels[tuple(self.index.T)] = self.fault_id
        return labels


def thin_faults(
    fsem: Array,
    dip_deg: Array,
    strike_deg: Array,
    threshold: float = 0.5,
    voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> tuple[NDArray[np.integer], Array]:
    """Return (indices [N, 3], grid normals [3, N]) of the voxels on the crest of the fault probability.

    Non-maximum suppression: a voxel with fsem >= threshold stays when the crest of the parabola through fsem
    there and one voxel away on either side along its normal lies within half a voxel. A Gaussian of sigma 1
    first gives a crest to masks and saturated values.
    """
    index = np.argwhere(np.nan_to_num(fsem) >= threshold)
    if len(index) == 0:
        return index, np.zeros((3, 0))
    at = tuple(index.T)
    dip, strike = (np.nan_to_num(a[at]) for a in (dip_deg, strike_deg))
    normal = grid_normals(dip, strike, voxel_size)
    smooth = ndimage.gaussian_filter(np.nan_to_num(fsem).astype(np.float32), 1.0, mode="nearest")
    here = smooth[at]
    ahead, behind = (
        ndimage.map_coordinates(smooth, index.T + sign * normal, order=1, mode="nearest") for sign in (1, -1)
    )
    bend = np.maximum(2 * here - ahead - behind, 1e-6)
    crest = 0.5 * (ahead - behind) / bend
    # Of two equal voxels one stays; the window is a little wide so that no step of the grid opens a gap.
    keep = (crest >= -0.65) & (crest <= 0.45)
    return index[keep], normal[:, keep]


def _neighbour_links(
    index: NDArray[np.integer], normal: Array, shape: tuple[int, int, int]
) -> NDArray[np.integer]:
    """Return pairs [2, M] of touching voxels (26 neighbours) whose normals agree."""
    number = np.full(tuple(n + 2 for n in shape), -1, dtype=np.int64)
    number[tuple(index.T + 1)] = np.arange(len(index))
    limit, pairs = np.cos(np.radians(MAX_ANGLE_DEG)), []
    for offset in itertools.product((-1, 0, 1), repeat=3):
        if offset <= (0, 0, 0):
            continue
        other = number[tuple((index + 1 + np.array(offset)).T)]
        first = np.flatnonzero(other >= 0)
        second = other[first]
        agree = np.abs((normal[:, first] * normal[:, second]).sum(axis=0)) >= limit
        pairs.append(np.stack((first[agree], second[agree])))
    return np.concatenate(pairs, axis=1)


def _crossing_links(
    index: NDArray[np.integer], normal: Array, component: NDArray[np.integer], mask: NDArray[np.bool_]
) -> NDArray[np.integer]:
    """Return pairs [2, M] that carry a fault through another one that cuts it in two.

    Two voxels of different components are linked when they lie within CROSSING_REACH in each other's plane,
    their normals agree, and the voxel half-way between them is fault as well.
    """
    labels = np.zeros(mask.shape, dtype=np.int32)
    labels[tuple(index.T)] = component + 1
    highest = ndimage.maximum_filter(labels, size=3)
    lowest = -ndimage.maximum_filter(np.where(labels > 0, -labels, np.iinfo(np.int32).min), size=3)
    at = tuple(index.T)
    border = np.flatnonzero(highest[at] != lowest[at])
    if len(border) < 2:
        return np.zeros((2, 0), dtype=np.int64)
    pairs = KDTree(index[border]).query_pairs(CROSSING_REACH, output_type="ndarray")
    first, second = border[pairs[:, 0]], border[pairs[:, 1]]
    apart = component[first] != component[second]
    first, second = first[apart], second[apart]
    step = (index[second] - index[first]).T
    limit = np.cos(np.radians(MAX_ANGLE_DEG))
    agree = np.abs((normal[:, first] * normal[:, second]).sum(axis=0)) >= limit
    for end in (first, second):
        agree &= np.abs((normal[:, end] * step).sum(axis=0)) <= 1.0
    agree &= mask[tuple((index[first] + index[second]).T // 2)]
    return np.stack((first[agree], second[agree]))


def _components(num_voxels: int, pairs: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the number of the connected component of each voxel."""
    links = sparse.coo_matrix((np.ones(pairs.shape[1], dtype=np.int8), pairs), shape=(num_voxels, num_voxels))
    return csgraph.connected_components(links, directed=False)[1]


def find_faults(
    fsem: Array,
    dip_deg: Array,
    strike_deg: Array,
    threshold: float = 0.5,
    min_size: int = 100,
    voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> FaultVoxels:
    """Return the faults of a volume, numbered from 1 by falling size.

    Thinned voxels that touch (26 neighbours) and agree in normal within 20 degrees are one fault; a fault
    that another one cuts is joined again. Faults of fewer than `min_size` thinned voxels are dropped.
    """
    index, normal = thin_faults(fsem, dip_deg, strike_deg, threshold, voxel_size)
    if len(index) == 0:
        return FaultVoxels(index, normal, np.zeros(0, dtype=np.int32))
    links = _neighbour_links(index, normal, fsem.shape)
    component = _components(len(index), links)
    across = _crossing_links(index, normal, component, np.nan_to_num(fsem) >= threshold)
    component = _components(len(index), np.concatenate((links, across), axis=1))
    size = np.bincount(component)
    order = np.argsort(-size, kind="stable")
    number = np.zeros(len(size), dtype=np.int32)
    number[order] = np.arange(1, len(size) + 1)
    number[size < min_size] = 0
    fault_id = number[component]
    kept = np.flatnonzero(fault_id)
    kept = kept[np.argsort(fault_id[kept], kind="stable")]
    return FaultVoxels(index[kept], normal[:, kept], fault_id[kept])


def mean_plane(
    normal: Array, voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> tuple[float, float, float]:
    """Return (dip 0..90, strike 0..180, dip azimuth 0..360) in degrees of the mean of grid normals [3, N].

    The mean is the leading eigenvector of the mean n n^T, which the sign of the normals does not touch.
    Strike and azimuth count from +x towards +y; the azimuth is the direction in which the plane goes down.
    """
    true = torch.as_tensor(normal) / torch.tensor(voxel_size, dtype=torch.float64)[:, None]
    true = true / torch.linalg.vector_norm(true, dim=0)
    mean, _ = normal_from_outer(outer_from_normal(true).mean(dim=1, keepdim=True))
    dip, strike = angles_from_normal(mean[:, 0])
    nz, ny, nx = mean[:, 0].tolist()
    down = -1.0 if nz > 0 else 1.0  # with nz < 0 the horizontal part of n points down the plane
    azimuth = np.degrees(np.arctan2(down * ny, down * nx)) % 360
    return fold_dip(dip).item(), strike.item(), float(azimuth)


def _runs(keys: NDArray[np.integer]) -> list[tuple[NDArray[np.integer], slice]]:
    """Return (key, slice) of each run of equal rows of sorted `keys` [N, K]."""
    starts = np.flatnonzero(np.append(True, (keys[1:] != keys[:-1]).any(axis=1))) if len(keys) else []
    stops = np.append(starts[1:], len(keys)) if len(keys) else []
    return [(keys[a], slice(a, b)) for a, b in zip(starts, stops, strict=True)]


def fault_table(faults: FaultVoxels, fsem: Array, geometry: SurveyGeometry) -> list[dict[str, float]]:
    """Return one row a fault: size, mean and largest fsem, mean plane, centre and extent."""
    geometry.check(fsem, "fsem")
    rows = []
    for number, member in _runs(faults.fault_id[:, None]):
        number = int(number[0])
        index = faults.index[member]
        p = fsem[tuple(index.T)]
        dip, strike, azimuth = mean_plane(faults.normal[:, member], geometry.voxel_size)
        # The centre is the voxel of the fault nearest to its mean, so it lies on the fault.
        z, y, x = index[((index - index.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        low, high = index.min(axis=0), index.max(axis=0)
        row = {"fault_id": number, "size": len(index), "mean_p": p.mean(), "max_p": p.max()}
        row |= {"dip_deg": dip, "strike_deg": strike, "dip_azimuth_deg": azimuth}
        row |= {"centre_inline": geometry.ilines[x], "centre_crossline": geometry.xlines[y]}
        row |= {"centre_x": geometry.x[y, x], "centre_y": geometry.y[y, x]}
        row |= {"centre_sample": z, "centre_z": geometry.depth(z)}
        for name, lines, axis in (("inline", geometry.ilines, 2), ("crossline", geometry.xlines, 1)):
            ends = sorted((lines[low[axis]], lines[high[axis]]))
            row |= {f"{name}_min": ends[0], f"{name}_max": ends[1]}
        row |= {"z_min": geometry.depth(low[0]), "z_max": geometry.depth(high[0])}
        rows.append(row)
    return rows


def fault_points(
    faults: FaultVoxels, fsem: Array, dip_deg: Array, strike_deg: Array, geometry: SurveyGeometry
) -> Columns:
    """Return the columns of the table of all thinned fault voxels; dip is folded to 0..90."""
    geometry.check(fsem, "fsem")
    z, y, x = faults.index.T
    return {
        "fault_id": faults.fault_id,
        "inline": geometry.ilines[x],
        "crossline": geometry.xlines[y],
        "x": geometry.x[y, x],
        "y": geometry.y[y, x],
        "sample": z,
        "time_or_depth": geometry.depth(z),
        "p": fsem[z, y, x],
        "dip_deg": fold_dip(torch.as_tensor(dip_deg[z, y, x])).numpy(),
        "strike_deg": strike_deg[z, y, x],
    }


def _polyline(points: Array) -> Array:
    """Return the line [M, 2] through section points [N, 2]: means over unit steps of the main direction."""
    centred = points - points.mean(axis=0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    direction = direction * (1 if direction[0] >= 0 else -1)  # from the top downwards
    along = centred @ direction
    _, step = np.unique(np.round(along - along.min()).astype(np.int64), return_inverse=True)
    count = np.bincount(step)
    return np.stack([np.bincount(step, weights=points[:, axis]) / count for axis in (0, 1)], axis=1)


def fault_sticks(faults: FaultVoxels, geometry: SurveyGeometry, every: int = 2, spacing: int = 4) -> Columns:
    """Return the columns of the fault sticks: one polyline for each fault and every `every`-th inline.

    Args:
        faults: result of `find_faults`.
        geometry: of the same survey.
        every: inline step.
        spacing: distance of the points along a stick in voxels; the two ends are always kept.
    """
    names = ("stick_id", "fault_id", "inline", "crossline", "x", "y", "z")
    parts: list[Array] = []
    traces = np.arange(len(geometry.xlines))
    order = np.lexsort((faults.index[:, 2], faults.fault_id))
    keys = np.stack((faults.fault_id[order], faults.index[order, 2]), axis=1)
    for (number, inline), member in _runs(keys):
        if inline % every:
            continue
        line = _polyline(faults.index[order[member], :2].astype(np.float64))
        if len(line) < 2:
            continue
        keep = np.arange(0, len(line), spacing)
        z, y = line[np.unique(np.append(keep, len(line) - 1))].T
        columns = [np.full(len(z), len(parts) + 1), np.full(len(z), number)]
        columns += [np.full(len(z), geometry.ilines[inline]), np.interp(y, traces, geometry.xlines)]
        columns += [np.interp(y, traces, c[:, inline]) for c in (geometry.x, geometry.y)]
        parts.append(np.stack([*columns, geometry.depth(z)]))
    table = np.concatenate(parts, axis=1) if parts else np.zeros((len(names), 0))
    integers = ("stick_id", "fault_id", "inline")
    return {n: c.astype(np.int64) if n in integers else c for n, c in zip(names, table, strict=True)}


def horizon_levels(count: int) -> Array:
    """Return `count` values of rgt, evenly spaced inside 0..1."""
    return np.arange(1, count + 1) / (count + 1)


def horizon_surface(rgt: Array, value: float, fault: NDArray[np.bool_] | None = None) -> Array:
    """Return the depth in samples [n2, n3] of the surface rgt = value.

    Linear interpolation in the trace; NaN without a crossing, or where one of the two samples is fault.
    """
    depth = horizon_depth(rgt, value)
    if fault is None:
        return depth
    upper = np.nan_to_num(np.floor(depth)).astype(np.int64)
    lower = np.nan_to_num(np.ceil(depth)).astype(np.int64)
    cut = [np.take_along_axis(fault, row[None], axis=0)[0] for row in (upper, lower)]
    return np.where(cut[0] | cut[1], np.nan, depth)


def horizon_columns(depth: Array, geometry: SurveyGeometry) -> Columns:
    """Return the columns inline, crossline, x, y, z of a surface [n2, n3] in samples, inline by inline."""
    crossline, inline = np.meshgrid(geometry.xlines, geometry.ilines, indexing="ij")
    columns = {"inline": inline, "crossline": crossline, "x": geometry.x, "y": geometry.y}
    columns["z"] = geometry.depth(depth)
    return {name: values.T.ravel() for name, values in columns.items()}
