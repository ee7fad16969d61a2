"""Volumes from format to format, into patches and back: nothing is lost, nothing is overwritten by chance."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segyio

from common.errors import DataError, StrataError, UserError
from common.run import BasicOptions
from fault_seg import patches
from fault_seg.config_tools import ConvertConfig
from fault_seg.convert import convert
from fault_seg.patches import MergedVolume, PatchGrid, write_patches
from fault_seg.volumes import open_volume, read_volume, write_volume
from tests.fault_seg.volume_files import make_segy, plain

OPTIONS = BasicOptions()
N1, N2, N3 = 11, 9, 8


def cube(index: int = 0) -> np.ndarray:
    """Return float32 noise with full mantissas, [n1, n2, n3]."""
    return np.random.default_rng(index).standard_normal((N1, N2, N3)).astype(np.float32)


def survey(folder: Path, values: np.ndarray, **settings: Any) -> Path:
    """Write a survey with inlines 5, 7, .., one missing trace and coordinates."""
    return make_segy(
        folder / "survey.sgy",
        values,
        ilines=[5 + 2 * i for i in range(values.shape[2])],
        skip={(7, 22)},
        fields=lambda il, xl, trace: {(181, 4): 1000 * il, (185, 4): 1000 * xl},
        **settings,
    )


def traces(path: Path) -> Any:
    """Open a survey with segyio, trace by trace."""
    return segyio.open(path, ignore_geometry=True)


def run(**flags: Any) -> dict[str, Any]:
    """Convert with these flags."""
    flags = {name: str(v) if isinstance(v, Path) else v for name, v in flags.items()}
    return convert(ConvertConfig(**flags), OPTIONS)


@pytest.mark.parametrize("kind", ["raw", "npy", "h5", "mhd", "vti"])
def test_there_and_back_is_the_same_survey(tmp_path: Path, kind: str):
    """SEG-Y to any format and back with --like gives every sample and every trace header back."""
    source = survey(tmp_path, cube())
    there = run(input=source, output=tmp_path / "v", format=kind)["file"]
    run(input=there, output=tmp_path / "back.sgy", like=source)
    with traces(source) as a, traces(tmp_path / "back.sgy") as b:
        np.testing.assert_array_equal(a.trace.raw[:], b.trace.raw[:])
        assert int(b.format) == 5
        for i in range(a.tracecount):
            different = {k for k in a.header[i] if a.header[i][k] != b.header[i][k]}
            assert different <= {segyio.su.ns, segyio.su.dt}


@pytest.mark.parametrize("kind", ["mhd", "vti", "h5"])
def test_axes_and_spacing_survive(tmp_path: Path, kind: str):
    """Formats with a header keep axis order, spacing and origin of the volume they come from."""
    z, y, x = np.ogrid[:N1, :N2, :N3]
    values = (10000 * z + 100 * y + x).astype(np.float32)
    write_volume(tmp_path / "a.vti", values, like=plain(values.shape))
    path = Path(run(input=tmp_path / "a.vti", output=tmp_path / f"b.{kind}")["file"])
    with open_volume(path) as volume:
        assert volume.spacing == plain().spacing
        assert volume.origin == plain().origin
        np.testing.assert_array_equal(volume.read(2, 3)[:, :, 0], values[:, :, 2])
    if kind == "mhd":
        raw = np.fromfile(path.with_suffix(".raw"), "<f4").reshape(N1, N2, N3)  # ITK: x fastest, then y, z
        np.testing.assert_array_equal(raw, values)


def test_raw_knows_its_sizes(tmp_path: Path):
    """A raw file that convert wrote needs no sizes again: --info and reading find them in the side-car."""
    source = survey(tmp_path, cube())
    run(input=source, output=tmp_path / "v.bin")
    found = run(input=tmp_path / "v.bin", info=True)
    assert [found[f"n{i} ({name})"] for i, name in enumerate(("samples", "crosslines", "inlines"), 1)] == [
        N1,
        N2,
        N3,
    ]
    np.testing.assert_array_equal(read_volume(tmp_path / "v.bin"), read_volume(source))


def test_info_writes_nothing(tmp_path: Path):
    """--info prints the geometry of the headers and leaves no file."""
    source = survey(tmp_path, cube())
    found = run(input=source, info=True)
    assert found["inlines"] == "5 to 19, step 2"
    assert found["missing_traces"] == 1
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(("dtype", "code"), [("int16", 3), ("int8", 8)])
def test_integers_that_fit_are_kept(tmp_path: Path, dtype: str, code: int):
    """Whole numbers within range are stored as they are: SEG-Y integers come back to the byte."""
    limits = np.iinfo(dtype)
    values = np.random.default_rng(1).integers(limits.min, limits.max + 1, (N1, N2, N3)).astype(np.float32)
    values[0, 0, 0], values[1, 0, 0] = limits.min, limits.max
    source = survey(tmp_path, values, code=code)
    run(input=source, output=tmp_path / "v.bin")
    found = run(input=tmp_path / "v.bin", output=tmp_path / "back.sgy", like=source, dtype=dtype)
    assert "scale" not in found
    with traces(source) as a, traces(tmp_path / "back.sgy") as b:
        assert int(b.format) == code
        np.testing.assert_array_equal(a.trace.raw[:], b.trace.raw[:])
    run(input=source, output=tmp_path / "v.npy", dtype=dtype)
    stored = np.load(tmp_path / "v.npy", allow_pickle=False)
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, read_volume(source))


@pytest.mark.parametrize(("dtype", "steps"), [("int16", 32767), ("int8", 127)])
@pytest.mark.parametrize("suffix", [".sgy", ".npy"])
def test_other_amplitudes_are_scaled(tmp_path: Path, dtype: str, steps: int, suffix: str):
    """Other values are stored to half a step of largest/limit, and the scale is told."""
    source = survey(tmp_path, cube())
    found = run(input=source, output=tmp_path / f"v{suffix}", dtype=dtype)
    scale, true = float(found["scale"].split()[0]), read_volume(source)
    assert scale == pytest.approx(np.abs(true).max() / steps)
    stored = read_volume(tmp_path / f"v{suffix}")
    assert np.abs(stored * scale - true).max() <= 0.5001 * scale


def test_ibm_floats(tmp_path: Path):
    """--ibm writes format code 1 with a relative error of at most 2^-20, and refuses NaN by its place."""
    source = survey(tmp_path, cube())
    run(input=source, output=tmp_path / "ibm.sgy", ibm=True)
    with traces(tmp_path / "ibm.sgy") as file:
        assert int(file.format) == 1
    np.testing.assert_allclose(read_volume(tmp_path / "ibm.sgy"), read_volume(source), rtol=2**-20)
    bad = cube()
    bad[3, 2, 1] = np.nan
    write_volume(tmp_path / "bad.npy", bad)
    with pytest.raises(DataError, match="sample 3, crossline 2, inline 1"):
        run(input=tmp_path / "bad.npy", output=tmp_path / "x.sgy", like=source, ibm=True)


@pytest.mark.parametrize(
    ("shape", "patch", "overlap"),
    [
        ((11, 9, 8), (4, 5, 3), 2),
        ((11, 9, 8), (11, 9, 8), 0),
        ((5, 9, 1), (8, 4, 6), 1),
        ((7, 7, 7), (3, 3, 3), 0),
    ],
)
def test_patches_merge_to_the_same_bits(tmp_path: Path, shape: Any, patch: Any, overlap: int):
    """Any volume, thicker or thinner than the patch, comes back from its patches bit by bit."""
    values = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    write_volume(tmp_path / "v.npy", values)
    run(input=tmp_path / "v.npy", output=tmp_path / "cubes", patch=patch, patch_overlap=overlap)
    sizes = {p.stat().st_size for p in (tmp_path / "cubes").glob("*.bin")}
    assert sizes == {4 * int(np.prod(patch))}
    run(merge=tmp_path / "cubes", output=tmp_path / "back.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "back.npy", allow_pickle=False), values)


def test_patches_of_a_survey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """SEG-Y to patches in slabs of one inline and merged is the survey; a patch is where it says."""
    monkeypatch.setattr(patches, "WINDOW_BYTES", 1)
    source = survey(tmp_path, cube())
    run(input=source, output=tmp_path / "cubes", patch=(6,), patch_overlap=3)
    index = json.loads((tmp_path / "cubes/index.json").read_text(encoding="utf-8"))
    place = index["patches"][5]
    z, y, x = place["start"]
    patch = np.fromfile(tmp_path / "cubes" / place["file"], "<f4").reshape(6, 6, 6).transpose(2, 1, 0)
    np.testing.assert_array_equal(patch, read_volume(source)[z : z + 6, y : y + 6, x : x + 6])
    run(merge=tmp_path / "cubes", like=source, output=tmp_path / "back.sgy")
    with traces(source) as a, traces(tmp_path / "back.sgy") as b:
        np.testing.assert_array_equal(a.trace.raw[:], b.trace.raw[:])


def test_each_voxel_comes_from_the_middle_of_a_patch():
    """The parts that patches give tile the volume, and keep from inner patch edges half the overlap."""
    for n, size, overlap in itertools.product((1, 7, 20, 33), (8, 16), (0, 3, 6)):
        grid = PatchGrid((n, n, n), (size,) * 3, overlap)
        owned, starts = grid.owned(0), grid.starts(0)
        assert owned[0][0] == 0
        assert owned[-1][1] == n
        for (a, b), start in zip(owned, starts, strict=True):
            assert start <= a < b <= max(start + size, n)
            assert a == 0 or a - start >= overlap // 2
            assert b == n or start + size - b >= overlap // 2


def test_damaged_patches(tmp_path: Path):
    """A missing or cut patch, or an index that is missing or lies, is bad data and is named."""
    write_volume(tmp_path / "v.npy", cube())
    folder = tmp_path / "cubes"
    with open_volume(tmp_path / "v.npy") as volume:
        write_patches(volume, PatchGrid(volume.shape, (6, 6, 6), 2), folder)
    whole, index = (folder / "3.bin").read_bytes(), (folder / "index.json").read_text(encoding="utf-8")
    (folder / "3.bin").write_bytes(whole[:-4])
    with pytest.raises(DataError, match=r"3\.bin: 860 bytes, expected 864"):
        MergedVolume(folder)
    (folder / "3.bin").unlink()
    with pytest.raises(DataError, match=r"3\.bin"):
        MergedVolume(folder)
    (folder / "3.bin").write_bytes(whole)
    for old, new in (
        ('"overlap": 2', '"overlap": 6'),
        ('"overlap": 2', '"overlap": 4'),
        ("6,", "-6,"),
        ("{", ""),
    ):
        (folder / "index.json").write_text(index.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(DataError, match=r"index\.json"):
            MergedVolume(folder)
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match="convert.py --patch"):
        MergedVolume(folder)


def test_patches_are_not_mixed(tmp_path: Path):
    """A second cut into the same folder is refused, and with --overwrite leaves none of the first."""
    write_volume(tmp_path / "v.npy", cube())
    flags = {"input": tmp_path / "v.npy", "output": tmp_path / "cubes", "patch_overlap": 0}
    run(**flags, patch=(4,))
    (tmp_path / "cubes/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        run(**flags, patch=(11,))
    config = ConvertConfig(
        input=str(flags["input"]), output=str(flags["output"]), patch=(11,), patch_overlap=0
    )
    convert(config, BasicOptions(overwrite=True))
    assert sorted(p.name for p in (tmp_path / "cubes").iterdir()) == ["0.bin", "index.json", "notes.txt"]


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """When the input breaks off half-way the old output stays and no temporary file is left."""
    source = survey(tmp_path, cube())
    (tmp_path / "v.npy").write_bytes(b"old")
    before = sorted(tmp_path.iterdir())

    def broken(self: Any, x0: int, x1: int) -> np.ndarray:
        raise DataError("gone")

    monkeypatch.setattr("fault_seg.segy.SegySurvey._read", broken)
    with pytest.raises(DataError, match="gone"):
        convert(
            ConvertConfig(input=str(source), output=str(tmp_path / "v.npy")), BasicOptions(overwrite=True)
        )
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "v.npy").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        ({"output": "x.vgi"}, UserError, "--format mhd or vti"),
        ({"output": "x", "format": "vgi"}, UserError, "--format mhd or vti"),
        ({"output": "x.xyz"}, UserError, "add --format"),
        ({"output": "survey.sgy", "overwrite": True}, UserError, "choose another --output"),
        ({"output": "there.npy"}, UserError, "--overwrite"),
        ({"output": "x.sgy", "input": "v.npy"}, UserError, "--like survey.sgy"),
        ({"output": "x.npy", "input": "v.npy", "like": "survey.sgy"}, DataError, "take the survey"),
        ({"output": "x.npy", "ibm": True}, UserError, "--ibm"),
        ({"output": "x.vti", "dtype": "int16"}, UserError, "--dtype int16"),
        ({"output": "x.npy", "input": "cut.bin", "n1": 3, "n2": 4, "n3": 5}, DataError, "230 bytes"),
        ({"output": "x.npy", "input": "short.sgy"}, DataError, "short.sgy"),
        ({"output": "x.npy", "input": "none.sgy"}, DataError, "no such file"),
        ({"output": "x.npy", "merge": ".", "input": ""}, DataError, "index.json"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags, error, words):
    """Wrong flags are usage errors, bad files data errors; both come before anything is written."""
    monkeypatch.chdir(tmp_path)
    source = survey(Path("."), cube())
    Path("short.sgy").write_bytes(source.read_bytes()[:-8])
    Path("cut.bin").write_bytes(bytes(230))
    write_volume("v.npy", cube()[:5])
    Path("there.npy").write_bytes(b"old")
    before = {p.name: p.read_bytes() for p in Path(".").iterdir()}
    options = BasicOptions(overwrite=flags.pop("overwrite", False))
    with pytest.raises(StrataError, match=words) as caught:
        convert(ConvertConfig(**{"input": "survey.sgy", **flags}), options)
    assert isinstance(caught.value, error)
    assert {p.name: p.read_bytes() for p in Path(".").iterdir()} == before


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"input": "a.sgy"},
        {"input": "a.sgy", "merge": "b", "output": "c"},
        {"input": "a.sgy", "output": "c", "patch": (4, 4)},
        {"input": "a.sgy", "output": "c", "patch": (16,)},
        {"input": "a.sgy", "output": "c", "patch": (32,), "dtype": "int8"},
        {"input": "a.sgy", "output": "c", "ibm": True, "dtype": "int8"},
    ],
)
def test_flags_that_contradict_each_other(flags: dict[str, Any]):
    """What the flags alone can say wrong is refused before any file is opened."""
    with pytest.raises(ValueError, match="--"):
        ConvertConfig(**flags)


def test_mhd_never_writes_over_its_input(tmp_path: Path):
    """cube.raw to cube.mhd would put the voxels into cube.raw itself: refused even with --overwrite."""
    write_volume(tmp_path / "cube.raw", cube())
    config = ConvertConfig(
        input=str(tmp_path / "cube.raw"), output=str(tmp_path / "cube.mhd"), n1=N1, n2=N2, n3=N3
    )
    with pytest.raises(UserError, match="is read for this conversion"):
        convert(config, BasicOptions(overwrite=True))


def test_real_survey_to_the_byte(tmp_path: Path, real_data: Path):
    """F3: int16 to raw to int16 gives every trace byte back except 115 and 117; patches merge exactly."""
    source = real_data / "fault/f3.sgy"
    run(input=source, output=tmp_path / "f3.bin")
    run(input=tmp_path / "f3.bin", like=source, output=tmp_path / "back.sgy", dtype="int16")
    a, b = (
        np.frombuffer(p.read_bytes()[3600:], "u1").reshape(414, -1) for p in (source, tmp_path / "back.sgy")
    )
    same = (a == b).all(axis=0)
    assert set(np.flatnonzero(~same)) <= {114, 115, 116, 117}
    run(input=source, output=tmp_path / "cubes", patch=(32, 16, 16), patch_overlap=4)
    run(merge=tmp_path / "cubes", like=source, output=tmp_path / "merged.sgy")
    np.testing.assert_array_equal(read_volume(tmp_path / "merged.sgy"), read_volume(source))
