"""SEG-Y out: what we write keeps the survey, and others read it."""

from __future__ import annotations

import numpy as np
import pytest
import segyio

from common.errors import DataError, UserError
from fault_seg.segy import SegyWriter, open_segy
from tests.fault_seg.volume_files import (
    N1,
    make_segy,
    position_cube,
    read_all,
)


@pytest.mark.parametrize("ibm", [False, True])
@pytest.mark.parametrize("endian", ["big", "little"])
@pytest.mark.parametrize("crossline_sorted", [False, True])
def test_writer_keeps_headers_order_and_gaps(tmp_path, ibm, endian, crossline_sorted):
    """Every trace header byte but 115 and 117 stays, values round-trip, missing and dead traces stay null."""
    cube = position_cube() + 1
    cube[:, 0, 2] = 0
    settings = {
        "endian": endian,
        "crossline_sorted": crossline_sorted,
        "skip": {(6, 22)},
        "code": 3,
        "extended": 1,
    }
    path = make_segy(tmp_path / "a.sgy", cube % 1000, fields=lambda il, xl, i: {(233, 4): 7 * i}, **settings)
    values = np.random.default_rng(0).normal(size=cube.shape).astype(np.float32)
    out = tmp_path / "new" / "b.sgy"
    with open_segy(path) as survey, SegyWriter(out, survey, "fdip", "degrees", "hr_v1", ibm=ibm) as writer:
        for x in (2, 0, 1):
            writer.write(x, values[:, :, x : x + 1])
        assert not out.exists()
    with open_segy(path) as old, open_segy(out) as new:
        assert new.layout.code == (1 if ibm else 5)
        assert new.layout.endian == endian
        assert (new.num_traces, new.layout.interval_us) == (old.num_traces, 2000)
        before, after = old.headers(0, 10), new.headers(0, 10)
        changed = np.flatnonzero((before != after).any(axis=0)) + 1
        assert set(changed) <= {115, 116, 117, 118}
        order = ">" if endian == "big" else "<"
        assert set(after[:, 114:116].copy().view(order + "u2").ravel()) == {N1}
        assert set(after[:, 116:118].copy().view(order + "u2").ravel()) == {2000}
        expected = values.copy()
        expected[:, 0, 2] = expected[:, 2, 1] = 0
        np.testing.assert_allclose(new.read(0, 3), expected, rtol=2.0**-21 if ibm else 0)
        old.scan()
        np.testing.assert_array_equal(new.null, old.null)
    head, old_head = out.read_bytes()[:3200], path.read_bytes()[:3200]
    assert head[: 38 * 80] == old_head[: 38 * 80]
    tail = head[38 * 80 :].decode("cp037")
    assert tail.startswith("C39 attribute fdip, units degrees")
    assert "C40 model hr_v1, 20" in tail
    assert [p.name for p in out.parent.iterdir()] == ["b.sgy"]


def test_writer_aborts_without_a_trace(tmp_path):
    """An error, abort or an incomplete volume leaves no file, and an older file as it was."""
    path = make_segy(tmp_path / "a.sgy", position_cube())
    out = tmp_path / "out" / "b.sgy"
    out.parent.mkdir()
    out.write_bytes(b"older")
    with open_segy(path) as survey:
        with pytest.raises(RuntimeError), SegyWriter(out, survey, "fsem", "-", "m") as writer:
            writer.write(0, survey.read(0, 1))
            raise RuntimeError("network failed")
        writer = SegyWriter(out, survey, "fsem", "-", "m")
        writer.abort()
        writer.abort()
        with pytest.raises(ValueError, match="before inline 0"):
            SegyWriter(out, survey, "fsem", "-", "m").close()
        with SegyWriter(tmp_path / "nan.sgy", survey, "fsem", "-", "m", ibm=True) as writer:
            with pytest.raises(DataError, match="IBM floats cannot hold"):
                writer.write(0, np.full((N1, 4, 1), np.nan))
            writer.write(0, survey.read(0, 3))
        with pytest.raises(UserError, match="the survey itself"):
            SegyWriter(path, survey, "fsem", "-", "m")
    assert out.read_bytes() == b"older"
    assert [p.name for p in out.parent.iterdir()] == ["b.sgy"]


def test_f3_in_and_five_out(tmp_path, real_data):
    """The F3 crop: our cube is segyio's, and five float32 files keep its headers, numbers and values."""
    path = real_data / "fault" / "f3.sgy"
    cube = segyio.tools.cube(str(path)).astype(np.float32).transpose(2, 1, 0)
    with open_segy(path) as survey:
        assert survey.shape == (75, 18, 23)
        np.testing.assert_array_equal(read_all(path), cube)
        np.testing.assert_array_equal(survey.ilines, np.arange(111, 134))
        np.testing.assert_array_equal(survey.xlines, np.arange(875, 893))
        np.testing.assert_allclose(survey.spacing, (4.0, 25.0, 25.0), rtol=1e-3)
        x, y = survey.coordinates()
        assert (x[5], y[5]) == (620322.2, 6074236.4)
        for k, name in enumerate(("fsem", "fdip", "fstrike", "rgt", "dhr")):
            with SegyWriter(tmp_path / f"{name}.sgy", survey, name, "u", "m") as writer:
                for x0 in range(23):
                    writer.write(x0, (k + 0.5) * survey.read(x0, x0 + 1))
    with segyio.open(str(path)) as old:
        for k, name in enumerate(("fsem", "fdip", "fstrike", "rgt", "dhr")):
            with segyio.open(str(tmp_path / f"{name}.sgy")) as new:
                assert new.tracecount == old.tracecount == 414
                assert list(new.ilines) == list(range(111, 134))
                assert list(new.xlines) == list(range(875, 893))
                assert int(new.format) == 5
                assert len(new.samples) == 75
                assert segyio.tools.dt(new) == 4000.0
                for a, b in zip(old.header, new.header, strict=True):
                    a, b = dict(a), dict(b)
                    a.update({115: 75, 117: 4000})
                    assert {int(key): v for key, v in b.items()} == {int(key): v for key, v in a.items()}
                    assert b[71] == -10
                ours = segyio.tools.cube(new).transpose(2, 1, 0)
                np.testing.assert_array_equal(ours, np.float32(k + 0.5) * cube)
    raw_old = np.frombuffer(path.read_bytes()[3600:], "u1").reshape(414, -1)[:, :240]
    raw_new = np.frombuffer((tmp_path / "fsem.sgy").read_bytes()[3600:], "u1").reshape(414, -1)[:, :240]
    assert set(np.flatnonzero((raw_old != raw_new).any(axis=0)) + 1) <= {115, 116, 117, 118}
