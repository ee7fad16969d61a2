"""Promises of the report: the rows survive, the better value is marked, the page is safe and whole."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from common import report
from common.errors import DataError
from common.report import Picture, Row, Section

LOWER = Row(
    "fault_seg", "rgt MAE", "-", "lower", 0.04, {"flat": 0.0514, "slow": None}, 12.5, 1_554_337, "python a.py"
)
HIGHER = Row("fault_seg", "AP", "-", "higher", 0.2, {"coherence": 0.25}, 60.0, 1_554_337)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Outline(HTMLParser):
    """Checks that tags are balanced and keeps what the page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.links, self.tags, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        """Remember an opened tag."""
        self.tags.append((tag, dict(attrs)))
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        """Every end tag closes the tag opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Keep the text."""
        self.words.append(data)


@pytest.fixture
def picture(tmp_path) -> Picture:
    """Return a picture below the page's folder, with a name that needs quoting."""
    (tmp_path / "fault seg").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "fault seg" / "a#1.png")
    return Picture("fault seg/a#1.png", "Held-out cube", "time slice with faults")


def page(tmp_path, *sections, title="Strata", intro="One.\n\nTwo.") -> tuple[str, Outline]:
    """Write a page and return its text and outline."""
    text = report.html_page(tmp_path / "index.html", title, intro, sections).read_text(encoding="utf-8")
    return text, Outline(text)


def test_rows_survive_json(tmp_path):
    """What is saved is what is loaded, failed values included; NumPy numbers are taken."""
    rows = [LOWER, HIGHER, Row("voxel_ode", "RMSE T", "°C", "lower", None),
            Row("voxel_ode", "RMSE", "bar", "lower", float(np.float32(1.5)))]  # fmt: skip
    report.save_rows(tmp_path / "results.json", rows)
    assert report.load_rows(tmp_path / "results.json") == rows
    assert list(json.loads((tmp_path / "results.json").read_text())[0]) == [
        "package", "measure", "unit", "better", "ours", "baselines", "seconds", "parameters", "command"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"better": "more"}, {"ours": float("nan")}, {"ours": "3"}, {"package": ""}, {"baselines": [1]},
     {"baselines": {"a": "x"}}, {"seconds": True}, {"unit": None}, {"unknown": 1}],
)  # fmt: skip
def test_bad_rows_are_refused(tmp_path, change):
    """A wrong field is an error that names file, row and field."""
    row = {"package": "p", "measure": "m", "unit": "-", "better": "lower", "ours": 1.0, **change}
    with pytest.raises((ValueError, TypeError)):
        Row(**row)
    (tmp_path / "r.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=r"r\.json: row 0"):
        report.load_rows(tmp_path / "r.json")


@pytest.mark.parametrize("text", ["", "{", "{}", "3", '["a"]', "[[]]", "[" * 100_000])
def test_bad_results_files_are_refused(tmp_path, text):
    """No JSON, no list, no row: one line each. A missing file too."""
    (tmp_path / "r.json").write_text(text)
    for name in ("r.json", "missing.json"):
        with pytest.raises(DataError, match=name):
            report.load_rows(tmp_path / name)


def test_the_better_value_is_marked_both_ways():
    """Lower wins where lower is better, higher where higher is; ties mark both, a lone value none."""
    table = report.markdown_table([LOWER, HIGHER])
    lower, higher = table.splitlines()[2:]
    assert "**0.04**" in lower and "flat 0.0514" in lower and "slow failed" in lower and "0.78" in lower
    assert "| 0.2 |" in higher and "coherence **0.25**" in higher
    assert (LOWER.won, HIGHER.won) == (True, False)
    alone = report.markdown_table([Row("p", "m", "s", "lower", 3.0)])
    assert "**" not in alone and "m (s)" in alone
    tie = Row("p", "m", "s", "lower", 3.0, {"b": 3.0})
    assert report.markdown_table([tie]).count("**3**") == 2 and tie.won is False


def test_ratio_only_where_it_means_something():
    """Negative or zero values have no ratio; failed runs neither, and nobody won."""
    assert Row("p", "gain", "dB", "higher", 3.0, {"b": -1.0}).ratio is None
    assert Row("p", "error", "-", "lower", 0.0, {"b": 1.0}).ratio is None
    failed = Row("p", "m", "-", "lower", None, {"b": 1.0})
    assert failed.ratio is None and failed.won is None and "failed" in report.markdown_table([failed])


def test_markdown_cells_keep_hostile_names():
    """Pipes, newlines, tags and backticks cannot leave their cell."""
    rows = [Row("a`b", "x | y\nz", "<b>", "lower", 1.0, {"c|d": 2.0})]
    lines = report.markdown_table(rows).splitlines()
    assert len(lines) == 3 and lines[2].replace("\\|", "").count("|") == 8 and "<b>" not in lines[2]


@pytest.mark.parametrize(
    "value, text",
    [(None, "failed"), (0, "0"), (0.01234, "0.0123"), (1234.5, "1,234"), (123456.0, "123,456"),
     (1e-5, "1.00e-05"), (999.7, "1,000"), (-2.5, "-2.5"), (12.0, "12")],
)  # fmt: skip
def test_numbers_read_well(value, text):
    """Three significant digits, grouped thousands, powers only for the very small and the very large."""
    assert report.format_number(value) == text


def test_page_is_balanced_and_complete(tmp_path, picture):
    """Question, picture with alt text, table, facts, failure and commands are on a page that parses."""
    commands = ["python scripts/fault_seg/infer.py --input 'a b.sgy'", "python x.py"]
    section = Section(
        package="fault_seg",
        title="Faults",
        question="Where are the faults?",
        figures=[picture],
        rows=[LOWER, HIGHER],
        seconds=75.2,
        parameters=1_554_337,
        commands=commands,
        failures=["unet diverged"],
        notes=["A note."],
    )
    text, outline = page(tmp_path, section, Section("voxel_ode", "Heat", "How will it evolve?"))
    words = " ".join(outline.words)
    said = [
        "Where are the faults?",
        "1,554,337 parameters",
        "75.2 s",
        "unet diverged",
        "A note.",
        "Held-out cube",
    ]
    for part in [*said, "\n".join(commands)]:
        assert part in words
    images = [a for tag, a in outline.tags if tag == "img"]
    assert images == [{"src": "fault%20seg/a%231.png", "alt": "time slice with faults", "loading": "lazy"}]
    classes = [a.get("class", "") for tag, a in outline.tags if tag == "td"]
    assert [c for c in classes if "won" in c or "lost" in c] == ["number won", "number lost"]
    best = [i for i, (tag, a) in enumerate(outline.tags) if a.get("class") == "best"]
    assert len(best) == 2
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_page_loads_nothing_from_elsewhere(tmp_path, picture):
    """No link, style or script leads to another host."""
    text, outline = page(tmp_path, Section("p", "T", "Q?", [picture], [LOWER]))
    assert all("//" not in link for link in outline.links)
    assert "http" not in text and "@import" not in text and "url(" not in text
    assert not [tag for tag, _ in outline.tags if tag in ("script", "link", "iframe")]


def test_everything_is_escaped(tmp_path):
    """Hostile text in every field stays text."""
    bad = "<script>alert('1')</script>\"&"
    image = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(image)
    row = Row(bad, bad, bad, "lower", 1.0, {bad: 2.0}, command=bad)
    section = Section(bad, bad, bad, [Picture("a.png", bad, bad)], [row], 1.0, 2, [bad], [bad], [bad])
    text, outline = page(tmp_path, section, section, title=bad, intro=bad)
    assert "<script" not in text
    assert not [a for _, a in outline.tags for key in a if key.startswith("on")]
    assert "".join(outline.words).count(bad) >= 10


def test_missing_figures_are_named(tmp_path):
    """A figure that is not there, or not below the page, is an error before anything is written."""
    (tmp_path / "pages").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "out.png")
    for name, message in (("none.png", "does not exist"), ("../out.png", "outside")):
        with pytest.raises(DataError, match=message):
            report.html_page(
                tmp_path / "pages" / "i.html", "T", "", [Section("p", "T", "Q", [Picture(name, "", "")])]
            )
    assert list((tmp_path / "pages").iterdir()) == []


def test_absolute_figure_paths_become_relative(tmp_path, picture):
    """A figure given by its full path is linked relative to the page, so the folder can be moved."""
    _, outline = page(tmp_path, Section("p", "T", "Q", [Picture(tmp_path / picture.path, "c", "a")]))
    assert outline.links == ["fault%20seg/a%231.png"] * 2


def test_readme_table_is_replaced_between_its_markers(tmp_path):
    """Only the text between the markers changes, twice gives the same; missing markers are an error."""
    readme = tmp_path / "README.md"
    readme.write_text(f"# Strata\n\n{report.BEGIN}\nold\n{report.END}\n\nEnd.\n", encoding="utf-8")
    report.update_readme_table(readme, [LOWER])
    first = readme.read_text(encoding="utf-8")
    report.update_readme_table(readme, [LOWER])
    assert readme.read_text(encoding="utf-8") == first
    assert first.startswith("# Strata\n\n") and first.endswith("\n\nEnd.\n") and "old" not in first
    assert report.markdown_table([LOWER]) in first
    for text in ("no markers", report.END + report.BEGIN, report.BEGIN * 2 + report.END):
        readme.write_text(text)
        with pytest.raises(DataError, match="expected the lines"):
            report.update_readme_table(readme, [LOWER])
        assert readme.read_text() == text


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="needs a Chromium browser")
@pytest.mark.parametrize("width", [500, 1280])
def test_a_browser_shows_the_figures_from_the_file_system(tmp_path, width):
    """On a narrow and on a wide window the page is drawn, and its figure is found and has its colours."""
    Image.new("RGB", (400, 300), (255, 0, 255)).save(tmp_path / "a.png")
    section = Section("fault_seg", "T", "Q", [Picture("a.png", "", "magenta")], rows=[LOWER])
    report.html_page(tmp_path / "index.html", "Strata", "One.", [section])
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'shot.png'}"]
    command += [f"--window-size={width},2000", (tmp_path / "index.html").as_uri()]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    shot = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB"))
    assert shot.shape[1] == width
    assert (shot == (255, 0, 255)).all(-1).sum() > 10_000


def test_table():
    """A table has a line for its heads, one that aligns numbers to the right, and one a row."""
    found = report.table(["method", "P", "T"], (cells for cells in (["ours", "1", "2"], ["none", "3", ""])))
    assert found == "| method | P | T |\n|---|---:|---:|\n| ours | 1 | 2 |\n| none | 3 |  |\n"
    assert report.table(["alone"], []) == "| alone |\n|---|\n"
