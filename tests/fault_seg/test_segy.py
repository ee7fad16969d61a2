"""SEG-Y in: what segyio or plain bytes put into a file comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import segyio

from common.errors import DataError, UserError
from fault_seg.segy import open_segy
from fault_seg.segy_format import IBM, decode, encode_ibm
from fault_seg.survey_geometry import geometry_of
from fault_seg.volumes import open_volume, write_sidecar, write_volume
from tests.fault_seg.cases import noisy_layers
from tests.fault_seg.volume_files import (
    ILINES,
    N1,
    XLINES,
    ibm_bits,
    make_segy,
    position_cube,
    read_all,
)


@pytest.mark.parametrize("endian", ["big", "little"])
@pytest.mark.parametrize("code", [1, 2, 3, 5, 8])
def test_every_format_and_byte_order_gives_the_same_array(tmp_path, code, endian):
    """IBM, int32, int16, IEEE and int8 in either byte order are found and decoded; n1, n2, n3 = z, y, x."""
    cube = position_cube()
    if code in (3, 8):
        cube = (cube % 251 - 125).astype(np.float32)
    path = make_segy(tmp_path / "a.sgy", cube, code=code, endian=endian)
    with open_segy(path) as survey:
        assert (survey.layout.endian, survey.layout.code) == (endian, code)
        assert survey.shape == cube.shape
        assert survey.dt_ms == 2.0
        assert survey.live.all()
        np.testing.assert_array_equal(survey.ilines, ILINES)
        np.testing.assert_array_equal(survey.xlines, XLINES)
        assert survey.read(1, 2).dtype == np.float32
    np.testing.assert_array_equal(read_all(path), cube)
    np.testing.assert_array_equal(read_all(path, endian=endian), cube)


def test_ibm_known_values_and_rounding():
    """-118.625 is C276A000; encoding then decoding floats of any size keeps them to 2^-21."""
    assert encode_ibm(np.array([-118.625], np.float32))[0] == 0xC276A000
    rng = np.random.default_rng(0)
    values = (rng.normal(size=4000) * 10.0 ** rng.integers(-30, 30, 4000)).astype(np.float32)
    values[:5] = [
        0,
        1,
        -1,
        np.nextafter(np.float32(1), np.float32(0)),
        np.nextafter(np.float32(16), np.float32(0)),
    ]
    out = np.empty((1, values.size), np.float32)
    decode(encode_ibm(values)[None], IBM, out)
    np.testing.assert_allclose(out[0], values, rtol=2.0**-21, atol=0)
    np.testing.assert_array_equal(
        ibm_bits(np.array([0.1, -3e20, 7e-9])) >> 4, encode_ibm(np.array([0.1, -3e20, 7e-9])) >> 4
    )


@pytest.mark.parametrize("code", [1, 2, 3, 5, 8])
def test_equals_segyio(tmp_path, code):
    """Our array is segyio's cube, whichever way the file is sorted."""
    cube = (np.random.default_rng(1).normal(size=(N1, 4, 3)) * 60).clip(-127, 127).astype(np.float32)
    for crossline_sorted in (False, True):
        path = make_segy(tmp_path / "a.sgy", cube, code=code, crossline_sorted=crossline_sorted)
        theirs = segyio.tools.cube(str(path)).astype(np.float32)  # slow axis, fast axis, samples
        theirs = theirs.transpose(2, 0, 1) if crossline_sorted else theirs.transpose(2, 1, 0)
        np.testing.assert_array_equal(read_all(path), theirs)


def test_crossline_sorted_and_shuffled_traces(tmp_path):
    """Any trace order gives the same array."""
    cube = position_cube()
    path = make_segy(tmp_path / "a.sgy", cube, crossline_sorted=True)
    np.testing.assert_array_equal(read_all(path), cube)
    assert open_segy(path).info()["sorted_by"] == "crossline"
    data = path.read_bytes()
    size = 240 + 4 * N1
    traces = [data[3600 + i * size : 3600 + (i + 1) * size] for i in np.random.default_rng(2).permutation(12)]
    path.write_bytes(data[:3600] + b"".join(traces))
    np.testing.assert_array_equal(read_all(path), cube)


def test_steps_and_missing_traces_and_lines(tmp_path):
    """Numbers in steps of 2 and 5 make a dense axis; missing traces and inlines keep their place."""
    cube = position_cube(n3=5) + 1
    ilines, xlines = [100, 102, 104, 106, 108], [7, 12, 17, 22]
    skip = {(102, 12), (100, 7), *((106, xl) for xl in xlines)}
    path = make_segy(tmp_path / "a.sgy", cube, ilines=ilines, xlines=xlines, skip=skip)
    with open_segy(path) as survey:
        np.testing.assert_array_equal(survey.ilines, ilines)
        np.testing.assert_array_equal(survey.xlines, xlines)
        expected = np.ones((4, 5), bool)
        expected[1, 1] = expected[0, 0] = False
        expected[:, 3] = False
        np.testing.assert_array_equal(survey.live, expected)
        np.testing.assert_array_equal(survey.read(0, 5), np.where(expected, cube, 0))
        assert survey.info()["missing_traces"] == 6


def test_dead_traces_are_masked(tmp_path):
    """Traces of zeros, of one value, or with trace identification 2 are not live; the latter read as zero."""
    cube = position_cube() + 1
    cube[:, 2, 1] = 0
    cube[:, 3, 2] = 5
    path = make_segy(
        tmp_path / "a.sgy", cube, fields=lambda il, xl, _: {(29, 2): 2} if (il, xl) == (5, 21) else {}
    )
    with open_segy(path) as survey:
        assert not survey.live[1, 0]
        assert survey.live[2, 1]  # all-zero traces show when they are read
        slab = survey.read(0, 3)
        assert not survey.live[[1, 2, 3], [0, 1, 2]].any()
        assert survey.live.sum() == 9
        assert survey.null.sum() == 2
        assert not slab[:, 1, 0].any()


def test_other_byte_positions(tmp_path):
    """Swapped bytes transpose the survey; the flags find numbers elsewhere, 9/21 need no flag."""
    cube = position_cube()
    path = make_segy(tmp_path / "a.sgy", cube)
    np.testing.assert_array_equal(read_all(path, iline=193, xline=189), cube.transpose(0, 2, 1))

    def moved(il: int, xl: int, _: int) -> dict[tuple[int, int], int]:
        return {(189, 4): 0, (193, 4): 0, (17, 4): il, (25, 4): xl}

    path = make_segy(tmp_path / "b.sgy", cube, fields=moved)
    np.testing.assert_array_equal(read_all(path, iline=17, xline=25), cube)

    def old(il: int, xl: int, _: int) -> dict[tuple[int, int], int]:
        return {(189, 4): 1, (193, 4): 1, (9, 4): il, (21, 4): xl}

    path = make_segy(tmp_path / "c.sgy", cube, fields=old)
    np.testing.assert_array_equal(read_all(path), cube)
    assert "9" in open_segy(path).info()["geometry_from"]
    with pytest.raises(UserError, match="--iline 239"):
        open_segy(path, iline=239)


@pytest.mark.parametrize("angle_deg", [0, 33, 120])
def test_coordinates_alone_make_a_grid(tmp_path, angle_deg):
    """Without numbers a rotated CDP grid with gaps is found from x and y; spacing and affine fit follow."""
    cube = position_cube(n2=9, n3=6)
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))

    def at(il: int, xl: int, _: int) -> dict[tuple[int, int], int]:
        u, v = 12.5 * (xl - 20), 25.0 * (il - 5)
        x, y = 6e5 + c * u - s * v, 6e6 + s * u + c * v
        return {(189, 4): 0, (193, 4): 0, (181, 4): round(100 * x), (185, 4): round(100 * y)}

    skip = {(6, 20), (7, 24), (10, 28)}
    path = make_segy(tmp_path / "a.sgy", cube, fields=at, skip=skip)
    with open_segy(path) as survey:
        assert "CDP x" in survey.info()["geometry_from"]
        assert survey.shape == cube.shape
        found = survey.read(0, 6)
        if angle_deg == 120:  # lines are counted along the positive x of the trace order
            found = found[:, ::-1, ::-1]
        live = np.ones((9, 6), bool)
        live[[0, 4, 8], [1, 2, 5]] = False
        np.testing.assert_array_equal(found, np.where(live, cube, 0))
        np.testing.assert_allclose(survey.spacing, (2.0, 12.5, 25.0), rtol=1e-4)
        x, y = survey.coordinates()
        grid = survey.geometry
        numbers = np.stack([survey.ilines[grid.il_index], survey.xlines[grid.xl_index], np.ones(len(x))])
        np.testing.assert_allclose(survey.affine() @ numbers, np.stack([x, y]), atol=0.02)


def test_without_numbers_or_coordinates_it_is_a_line(tmp_path):
    """Nothing in the headers: one 2-D line in file order; a line across a survey is one too."""
    cube = position_cube()
    blank = {(189, 4): 0, (193, 4): 0}
    path = make_segy(tmp_path / "a.sgy", cube, fields=lambda *_: blank)
    expected = cube.transpose(0, 2, 1).reshape(N1, 12, 1)
    np.testing.assert_array_equal(read_all(path), expected)
    with open_segy(path) as survey:
        assert "2-D line" in survey.info()["geometry_from"]
        with pytest.raises(DataError, match="no coordinates"):
            survey.affine()
    path = make_segy(
        tmp_path / "b.sgy", cube, fields=lambda il, xl, i: {(189, 4): 100 + i, (193, 4): 300 + 2 * i}
    )
    np.testing.assert_array_equal(read_all(path), expected)


def test_single_inline_and_single_trace(tmp_path):
    """One inline, one crossline and one trace keep their numbers."""
    cube = position_cube()
    for part, shape in (
        (cube[:, :, :1], (N1, 4, 1)),
        (cube[:, :1], (N1, 1, 3)),
        (cube[:, :1, :1], (N1, 1, 1)),
    ):
        path = make_segy(tmp_path / "a.sgy", part)
        with open_segy(path) as survey:
            assert survey.shape == shape
            assert survey.ilines[0] == 5
            assert survey.xlines[0] == 20
            np.testing.assert_array_equal(survey.read(0, shape[2]), part)


def test_scalar_byte_scales_coordinates(tmp_path):
    """Byte 71: negative divides, positive multiplies, zero leaves as is."""
    for scalar, factor in ((-100, 0.01), (10, 10.0), (0, 1.0)):
        values = {(71, 2): scalar, (181, 4): 1234, (185, 4): -4321}
        path = make_segy(tmp_path / "a.sgy", position_cube(), fields=lambda *_, v=values: v)
        x, y = open_segy(path).coordinates()
        np.testing.assert_allclose([x[0], y[0]], [1234 * factor, -4321 * factor])


def test_extended_text_headers_are_skipped(tmp_path):
    """Byte 3505 counts headers of 3200 bytes before the first trace."""
    path = make_segy(tmp_path / "a.sgy", position_cube(), extended=2)
    np.testing.assert_array_equal(read_all(path), position_cube())


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 9000, dtype=np.uint8).tobytes())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_truncated, "7001 bytes = headers, 11 traces and 277 bytes too many"),
        (_garbage, "sample format .* at byte 3225"),
        (lambda path: path.write_bytes(b""), "0 bytes, expected a SEG-Y"),
        (lambda path: path.write_bytes(path.read_bytes()[:3700]), "3700 bytes"),
        (lambda path: path.unlink(), "cannot be opened"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be opened"),
    ],
)
def test_bad_files_give_one_line(tmp_path, spoil, message):
    """Truncated, random, empty, missing: DataError that names the file and what was expected."""
    path = make_segy(tmp_path / "a.sgy", position_cube())
    spoil(path)
    with pytest.raises(DataError, match=message) as caught:
        open_segy(path)
    assert str(path) in str(caught.value)
    assert "expected" in str(caught.value)


def test_wrong_endian_is_refused(tmp_path):
    """A byte order that was asked for but does not fit is an error, not a guess."""
    path = make_segy(tmp_path / "a.sgy", position_cube())
    with pytest.raises(DataError, match="1280 .little endian"):
        open_segy(path, endian="little")
    with pytest.raises(UserError, match="--endian middle"):
        open_segy(path, endian="middle")


def test_duplicates_and_prestack_are_refused(tmp_path):
    """The first pair that occurs twice is named; several offsets at one place are called pre-stack."""
    path = make_segy(
        tmp_path / "a.sgy", position_cube(), fields=lambda il, xl, i: {(193, 4): 21} if xl == 23 else {}
    )
    with pytest.raises(DataError, match="inline 5, crossline 21 is in traces 2 and 4.*--iline"):
        open_segy(path)
    path = make_segy(
        tmp_path / "b.sgy",
        position_cube(),
        fields=lambda il, xl, i: {(193, 4): xl // 2, (37, 4): 100 * (xl % 2)},
    )
    with pytest.raises(DataError, match="pre-stack, 2 offsets at byte 37"):
        open_segy(path)
    path = make_segy(
        tmp_path / "c.sgy",
        position_cube(),
        fields=lambda il, xl, i: {(189, 4): 0, (193, 4): 0, (37, 4): 50 * xl},
    )
    with pytest.raises(DataError, match="pre-stack, 4 offsets"):
        open_segy(path)


def test_delay_is_the_time_of_the_first_sample(tmp_path: Path):
    """Byte 109 shifts the times of the survey, of what is converted from it, and stays in what is written."""
    path = make_segy(tmp_path / "s.sgy", noisy_layers((16, 5, 6)), fields=lambda *_: {(109, 2): 1200})
    with open_segy(path) as survey:
        assert survey.delay_ms == 1200 and survey.origin == (1200.0, 0.0, 0.0)
        assert geometry_of(survey).sample_start == 1200
        cube = survey.read(0, 6)
        write_volume(tmp_path / "c.mhd", cube, like=survey)
        write_volume(tmp_path / "o.sgy", cube, like=survey)
        write_volume(tmp_path / "c.fsem", cube, like=survey)
        write_sidecar(tmp_path / "c", survey)
    with open_volume(tmp_path / "c.mhd") as image, open_volume(tmp_path / "c.fsem") as raw:
        assert image.origin[0] == raw.origin[0] == 1200
        assert geometry_of(raw).sample_start == 1200
    with open_segy(tmp_path / "o.sgy") as written:
        assert written.delay_ms == 1200


def test_delays_that_differ(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """The most common delay counts, dead traces apart, and a line says that they differ."""
    fields = lambda il, xl, n: {(109, 2): 40 if n == 3 else 100, (29, 2): 2 if n == 4 else 1}  # noqa: E731
    path = make_segy(tmp_path / "s.sgy", noisy_layers((16, 5, 6)), fields=fields)
    with open_segy(path) as survey:
        assert survey.delay_ms == 100
    assert "2 delays at byte 109, 40 to 100 ms" in capfd.readouterr().err
