"""Promises of the figures: valid files, labels with units, NaN shown as such, same data same bytes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from common import figures


def wave(shape=(20, 30)) -> np.ndarray:
    """Return a smooth section [Z, X]."""
    z, x = np.indices(shape)
    return np.sin(z / 3) * np.cos(x / 7)


def pixels(path) -> np.ndarray:
    """Return the picture's pixels [height, width, 3]."""
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_section_is_a_png_of_the_size_asked_for(tmp_path):
    """4 x 3 inches at 100 dpi are 400 x 300 pixels; the file is a whole PNG; its folder is made."""
    figure, axes = figures.new_figure(panel=(4, 3))
    figures.section(axes[0, 0], wave(), x_label="x (m)", z_label="depth (m)", value_label="velocity (m/s)")
    path = figures.save(figure, tmp_path / "new" / "a.png", dpi=100)
    assert path.read_bytes().startswith(b"\x89PNG") and pixels(path).shape == (300, 400, 3)
    assert list(path.parent.iterdir()) == [path]


def test_axes_carry_labels_units_and_coordinates():
    """Labels, title and the colour bar's label are there; axes run in physical units, depth downwards."""
    figure, axes = figures.new_figure()
    ax = axes[0, 0]
    figures.section(ax, wave(), kind="seismic", title="line 7", x_label="x (m)", z_label="depth (m)",
                    value_label="amplitude (-)", spacing=(5, 10), origin=(100, 0))  # fmt: skip
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title(loc="left")) == ("x (m)", "depth (m)", "line 7")
    assert ax.get_ylim() == (197.5, 97.5) and ax.get_xlim() == (-5, 295)
    assert [a.get_ylabel() for a in figure.axes[1:]] == ["amplitude (-)"]


def test_same_data_same_bytes(tmp_path):
    """Drawing twice gives the same file, whatever happened to Matplotlib's settings in between."""
    import matplotlib

    def draw(name):
        figure = figures.slices(np.stack([wave()] * 9), axis_labels=("time (ms)", "crossline", "inline"),
                                value_label="amplitude (-)", overlay=np.abs(np.stack([wave()] * 9)),
                                overlay_label="fault probability (-)")  # fmt: skip
        return figures.save(figure, tmp_path / name).read_bytes()

    first = draw("a.png")
    with matplotlib.rc_context({"font.size": 30, "image.cmap": "jet", "savefig.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        assert draw("b.png") == first
        assert dict(matplotlib.rcParams) == before


def test_nan_is_shown_as_missing(tmp_path):
    """NaN cells get no colour of the scale; all-NaN, constant and infinite arrays draw without a warning."""
    for i, values in enumerate(
        [np.full((5, 6), np.nan), np.ones((5, 6)), np.where(wave() > 0, np.inf, wave())]
    ):
        for kind in figures.KINDS:
            figure, axes = figures.new_figure()
            shown = np.where(np.isfinite(values), 0, values) if kind == "facies" else values
            figures.section(
                axes[0, 0], shown, kind=kind, x_label="x (m)", z_label="z (m)", value_label="v (-)"
            )
        figures.save(figure, tmp_path / f"{i}.png", dpi=50)
    half = wave()
    half[:, 15:] = np.nan
    figure, axes = figures.new_figure()
    image = figures.section(axes[0, 0], half, kind="heat", x_label="x (m)", z_label="z (m)")
    rgba = image.to_rgba(image.get_array())
    assert (rgba[:, 15:, 3] == 0).all() and (rgba[:, :15, 3] == 1).all()


def test_symmetric_kinds_put_zero_in_the_middle():
    """Seismic and differences share limits of equal size; a spike does not set the scale."""
    spiky = np.append(np.linspace(-1, 2, 1000), 1e6)
    for kind in ("seismic", "difference"):
        low, high = figures.colour_limits([spiky], kind)
        assert low == -high and 1.9 < high < 2.1
    assert figures.colour_limits([np.full(4, np.nan)], "property") == (0.0, 1.0)


def test_maps_share_one_scale(tmp_path):
    """All panels have the same limits; the difference has its own; the titles are the names."""
    panels = {"truth": wave() + 2, "ours": wave() + 2.1, "mean": np.full((20, 30), 2.0)}
    figure = figures.maps(panels, x_label="x (m)", z_label="depth (m)", value_label="velocity (km/s)",
                          difference=("ours", "truth"), columns=2)  # fmt: skip
    images = [ax.images[0] for ax in figure.axes if ax.images and ax.get_title(loc="left")]
    assert len({im.get_clim() for im in images[:3]}) == 1
    assert images[3].get_clim()[0] == -images[3].get_clim()[1]
    titles = [im.axes.get_title(loc="left") for im in images]
    assert titles == ["truth", "ours", "mean", "ours \N{MINUS SIGN} truth"]
    assert pixels(figures.save(figure, tmp_path / "maps.png")).std() > 10


def test_ours_and_truth_keep_their_colours():
    """Styles depend on the set of names alone; no two lines look alike; every baseline differs from ours."""
    a = figures.series_styles(["ours", "unet", "coherence", "truth"])
    b = figures.series_styles(["coherence", "truth", "ours", "unet"])
    assert a == b and a["ours"]["color"] == figures.OURS
    many = figures.series_styles(["ours", "truth", *(f"b{i}" for i in range(6))])
    assert len({s["color"] for s in many.values()}) == 8


def test_curves_histogram_and_precision_recall(tmp_path):
    """Curves with bands and NaN gaps, histograms with NaN, and PR curves have labels and legends."""
    figure, axes = figures.new_figure(1, 3)
    t = np.arange(30.0)
    y = np.where(t == 4, np.nan, 1 + t)
    figures.curves(axes[0, 0], {"ours": (t, y), "copy": (t, 2 * t + 1)}, bands={"ours": (0.5 * y, 2 * y)},
                   x_label="year", y_label="RMSE (bar)", log_y=True)  # fmt: skip
    figures.precision_recall(axes[0, 1], {"ours": (t / 29, 1 - t / 60)}, base_rate=0.1)
    figures.histogram(axes[0, 2], {"ours": y, "truth": t}, x_label="pressure (bar)")
    names = [text.get_text() for text in axes[0, 0].get_legend().get_texts()]
    assert names == ["ours", "copy"] and axes[0, 0].get_yscale() == "log"
    assert axes[0, 1].get_xlim() == (0, 1) and "recall" in axes[0, 1].get_xlabel()
    assert axes[0, 2].get_xlabel() == "pressure (bar)" and axes[0, 2].get_legend() is not None
    assert pixels(figures.save(figure, tmp_path / "c.png")).std() > 5


def test_wrong_arguments_are_refused(tmp_path):
    """A volume where a section belongs, an unknown kind, another file type."""
    figure, axes = figures.new_figure()
    with pytest.raises(ValueError, match="expected"):
        figures.section(axes[0, 0], np.zeros((2, 3, 4)), x_label="x", z_label="z")
    with pytest.raises(ValueError, match="kind"):
        figures.section(axes[0, 0], wave(), kind="jet", x_label="x", z_label="z")
    with pytest.raises(ValueError, match=r"\.png"):
        figures.save(figure, tmp_path / "a.tiff")


def test_importing_is_cheap_and_pyplot_stays_out():
    """Importing the module loads no Matplotlib; drawing never loads pyplot, which holds global state."""
    code = (
        "import sys; from common import figures; assert 'matplotlib' not in sys.modules; "
        "figures.new_figure(); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
