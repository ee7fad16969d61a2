"""Coordinates, line numbers and times of an open volume, for tables of objects."""

from __future__ import annotations

import numpy as np

from common.errors import DataError
from common.log import get_logger
from fault_seg.objects import SurveyGeometry
from fault_seg.segy import SegySurvey
from fault_seg.slabs import Volume


def geometry_of(volume: Volume) -> SurveyGeometry:
    """Return where the traces and samples of `volume` lie.

    SEG-Y: numbers, coordinates, sample interval and delay (byte 109) of the headers; where a trace is
    missing, the coordinates come from the straight-line fit; without any, the line numbers stand for them.
    Other formats: voxel indices as numbers, origin and spacing as coordinates.
    """
    if isinstance(volume, SegySurvey):
        return _of_segy(volume)
    n1, n2, n3 = volume.shape
    (z0, y0, x0), (dz, dy, dx) = volume.origin, volume.spacing
    y, x = np.meshgrid(y0 + dy * np.arange(n2), x0 + dx * np.arange(n3), indexing="ij")
    return SurveyGeometry(np.arange(n3), np.arange(n2), x, y, z0, dz)


def _of_segy(survey: SegySurvey) -> SurveyGeometry:
    xline, iline = np.meshgrid(survey.xlines, survey.ilines, indexing="ij")
    coordinates = survey.coordinates()
    if not any(values.any() for values in coordinates):
        get_logger().info(
            f"{survey.path}: no coordinates at bytes 181 and 185; x and y of the tables are the inline and "
            "crossline numbers"
        )
        x, y = iline.astype(np.float64), xline.astype(np.float64)
    else:
        x, y = (values[survey.trace_of] for values in coordinates)
        _fill_missing(survey, iline, xline, x, y)
    return SurveyGeometry(survey.ilines, survey.xlines, x, y, survey.delay_ms, survey.dt_ms or 1.0)


def _fill_missing(
    survey: SegySurvey, iline: np.ndarray, xline: np.ndarray, x: np.ndarray, y: np.ndarray
) -> None:
    """Give places without a trace the coordinates of the fit, or NaN where the traces lie on one line."""
    missing = survey.trace_of < 0
    if not missing.any():
        return
    try:
        matrix = survey.affine()
    except DataError:
        matrix = np.full((2, 3), np.nan)
    for values, row in zip((x, y), matrix, strict=True):
        values[missing] = (row[0] * iline + row[1] * xline + row[2])[missing]
