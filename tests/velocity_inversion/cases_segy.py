"""SEG-Y files of shots, written as acquisition software does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import segyio

from velocity_inversion.geometry import Survey


def write_shots(path: Path, gathers: np.ndarray, survey: Survey, *, shuffled: bool = True) -> None:
    """Write gathers [S, T, R]: coordinates in decimetres (scalar -10), traces in any order."""
    spec = segyio.spec()
    spec.format, spec.samples = 5, np.arange(gathers.shape[1]) * survey.dt_s * 1000
    spec.tracecount = gathers.shape[0] * gathers.shape[2]
    places = [(s, r) for s in range(gathers.shape[0]) for r in range(gathers.shape[2])]
    if shuffled:
        places = [places[i] for i in np.random.default_rng(0).permutation(len(places))]
    field = segyio.TraceField
    with segyio.create(str(path), spec) as file:
        file.bin.update(hdt=round(survey.dt_s * 1e6))
        for number, (shot, receiver) in enumerate(places):
            x, z = survey.source_xz[shot]
            group_x, group_z = survey.receiver_xz[shot][receiver]
            file.header[number] = {
                field.FieldRecord: 100 + shot,
                field.SourceX: round(10 * (x + 1000)),
                field.GroupX: round(10 * (group_x + 1000)),
                field.SourceGroupScalar: -10,
                field.SourceDepth: round(z),
                field.ReceiverGroupElevation: -round(group_z),
                field.ElevationScalar: 1,
                field.TRACE_SAMPLE_INTERVAL: round(survey.dt_s * 1e6),
            }
            file.trace[number] = np.ascontiguousarray(gathers[shot, :, receiver])
