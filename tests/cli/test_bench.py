"""`make bench` runs every benchmark, goes on after a failure, and its table tells baselines and ratios."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _table, quality
from common.demo import Step
from common.errors import EXIT_LEFT_OUT, DataError
from common.files import write_json
from common.report import Row, save_rows
from scripts import bench
from tests.cli.test_printed_commands import arguments_of, ending_after_parse
from tests.cli.test_scripts import ROOT, call
from tests.toy_runs import fork, wait

BENCH = ROOT / "scripts/bench.py"


def test_every_benchmark_is_run():
    """Each file of benchmarks/ with a command, each quality case, and no name twice."""
    run = {shlex.split(job.command)[0] for job in bench.JOBS}
    parts = {"facies_gan_peer.py", "simulgen_vae_full.py"}  # of facies_gan.py and simulgen_vae.py
    files = {file.name for file in (ROOT / "benchmarks").glob("[a-z]*.py")}
    assert {f"benchmarks/{name}" for name in files - parts} == run
    cases = {shlex.split(job.command)[-1] for job in bench.JOBS if "quality.py" in job.command}
    assert cases == set(quality.CASES)
    assert len({job.name for job in bench.JOBS}) == len(bench.JOBS)


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put three small programs in the place of the benchmarks; return the folder of their logs."""
    for name, text in {"a": "print('fine')", "b": "raise SystemExit(7)", "c": "print('last')"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    jobs = tuple(bench.Job(f"x, {name}", str(tmp_path / f"{name}.py"), 0.1) for name in "abc")
    monkeypatch.setattr(bench, "JOBS", jobs)
    monkeypatch.setattr(bench, "write_table", lambda: 0)
    return tmp_path / "logs"


def test_a_failure_does_not_stop_the_others(three: Path, capsys: pytest.CaptureFixture):
    """The failed one is named, logs hold what was printed, --resume repeats only that one."""
    assert bench.run(["--out", str(three)]) == 1
    said = capsys.readouterr()
    assert "x, b, " in said.out and "FAILED with exit code 7" in said.out and "failed: x, b" in said.err
    assert (three / "x_a.log").read_text() == "fine\n" and (three / "x_c.log").read_text() == "last\n"
    (three.parent / "b.py").write_text("print('mended')")
    assert bench.run(["--out", str(three), "--resume"]) == 0
    assert "1 of 1: x, b" in capsys.readouterr().out
    assert set(json.loads((three / "done.json").read_text())) == {"x, a", "x, b", "x, c"}


def test_an_interrupt_begins_no_more(three: Path, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C while the first runs: the second and third never begin."""
    begun = []

    def interrupted(job: bench.Job, out: Path) -> tuple[int, float]:
        begun.append(job.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run_job", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.run(["--out", str(three)])
    assert len(begun) < 3 and not (three / "done.json").exists()


def test_what_is_left_out_is_no_failure(three: Path, capsys: pytest.CaptureFixture):
    """A benchmark without its files is told and tried again by --resume; other calls' notes stay."""
    (three.parent / "b.py").write_text(f"raise SystemExit({EXIT_LEFT_OUT})")
    assert bench.run(["--out", str(three), "--only", "x, a", "x, b"]) == 0
    assert "x, b, 0 s, left out" in capsys.readouterr().out
    assert bench.run(["--out", str(three), "--only", "x, c"]) == 0
    assert set(json.loads((three / "done.json").read_text())) == {"x, a", "x, c"}


def test_names_and_bad_flags(three: Path, capsys: pytest.CaptureFixture):
    """--only takes beginnings of names; what fits none is an error of one line."""
    assert bench.run(["--out", str(three), "--only", "x, a", "x, c", "--dry_run"]) == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["x, a", "x, c"]
    for flags, message in ((["--only", "y"], "--only y"), (["--jobs", "0"], "--jobs 0")):
        code, said = call(BENCH, flags, three.parent)
        assert code == 2 and message in said


def test_rows_of_an_evaluation():
    """A row keeps its best baseline and its ratio; limits are of the value or of the best baseline."""
    found = Row("p", "m", "bar", "lower", 1.0, {"copy": 4.0, "ridge1": 2.0})
    line = quality.line_of(found, quality.Case((), ratios={"m": (0.65, None)}))
    assert line["baseline"] == "ridge1" and line["ratio"] == 0.5 and line["at_most"] == pytest.approx(1.3)
    assert _table.wanted(line) == ("at most 1.3", "met")
    table = _table.table("t", "c", {"rows": [line, _table.row("bare", float("nan"), "s")]})
    assert "| m | 1 | bar | ridge1 | 0.5 | at most 1.3 | met |" in table
    assert "| bare | - | s |  |  |  |  |" in table


def test_lines_of_their_own_beside_named_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What has to beat named baselines has a line for each that was measured; higher may be better."""
    monkeypatch.setattr(quality, "run_step", lambda _: 0.0)
    rivals = quality.Rival("m", "net", 0.75), quality.Rival("m", "flat"), quality.Rival("m", "absent")
    case = quality.Case((), ratios={"m": (1.0, None)}, rivals=rivals, results="r.json")
    save_rows(tmp_path / "r.json", [Row("p", "m", "s", "lower", 3.2, {"net": 4.0, "flat": 3.5})])
    lines, _ = quality.measure(case, tmp_path, tmp_path)
    assert _table.wanted(lines[0]) == ("at most 3.5", "met") and lines[0]["baseline"] == "flat"
    assert [line["what"] for line in lines[1:]] == ["m, beside net", "m, beside flat"]
    assert lines[1]["ratio"] == 0.8 and _table.wanted(lines[1]) == ("at most 3", "missed")
    better = quality.line_beside(Row("p", "m", "-", "higher", 3.2, {"net": 4.0}), rivals[0])
    assert better and _table.wanted(better) == ("at least 3", "met")


def test_figures_of_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A number is found by its place, in lists and in other files; its limit may be another number's."""
    wells = [{"wells": "1 well", "seam": 0.5}, {"wells": "8 wells", "seam": 0.9}]
    write_json(tmp_path / "d.json", {"ours": {"a": 2.0}, "other": {"a": 4.0}, "blending": wells, "t": "x"})
    write_json(tmp_path / "more.json", {"gain": 0.03})

    def line(place: str, **more: Any) -> dict[str, Any]:
        return quality.line_of_figure(quality.Figure("w", place, **more), "d.json", tmp_path)

    other = (("absent", "absent/a"), ("other", "other/a"))
    assert line("more.json:gain", least=0.0)["value"] == 0.03
    assert line("blending/wells=8 wells/seam")["value"] == 0.9
    for place in ("blending/wells=9 wells/seam", "ours/b", "ours/a/b"):
        assert _table.wanted(line(place, most=1.0))[1] == "not measured"
    with pytest.raises(DataError, match="expected a number"):
        line("t")
    compared = line("ours/a", rivals=other, times=0.4)
    assert (compared["baseline"], compared["ratio"], compared["at_most"]) == ("other", 0.5, 1.6)
    assert _table.wanted(compared)[1] == "missed"
    assert _table.wanted(line("other/a", rivals=(("ours", "ours/a"),), over=1.5))[1] == "met"
    apart = line("ours/a", most=2.5, rivals=other, distance=True)
    assert apart["value"] == 2.0 and apart["baseline"] == "other, 4" and _table.wanted(apart)[1] == "met"


def test_seconds_of_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each command has a line of its wall seconds, with its limit."""
    monkeypatch.setattr(quality, "run_step", lambda _: 950.0)
    save_rows(tmp_path / "r.json", [Row("p", "m", "s", "lower", 3.2)])
    case = quality.Case(("p/train.py", "p/b.py"), seconds={"p/train.py": 900}, results="r.json")
    lines, _ = quality.measure(case, tmp_path, tmp_path)
    assert [line["what"] for line in lines] == ["m", "p/train.py, wall", "p/b.py, wall"]
    assert _table.wanted(lines[1]) == ("at most 900", "missed") and _table.wanted(lines[2]) == ("", "")


def test_limits_on_both_sides():
    """A share has to lie between two limits; a value equal to a rounded limit meets it."""
    for value, verdict in ((0.85, "missed"), (0.9, "met"), (0.97, "missed")):
        line = _table.row("inside", value, "share", 0.96, least=0.86)
        assert _table.wanted(line) == ("at least 0.86, at most 0.96", verdict)
    assert _table.wanted(_table.row("same", 0.14704887, "-", 0.14704887))[1] == "met"


COMMANDS = [(name, line) for name, case in quality.CASES.items() for line in case.commands]


@pytest.mark.parametrize(("name", "line"), COMMANDS, ids=[f"{n}-{c.split()[0]}" for n, c in COMMANDS])
def test_commands_parse(name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each command of a quality case names a script, flags and values that exist."""
    ending_after_parse(monkeypatch)
    script, arguments = arguments_of("scripts/" + line.format(work=tmp_path, data=tmp_path))
    code, said = call(script, arguments, tmp_path)
    assert code == 2 and "it parses" in said, f"{name}: {said}"


def test_a_case_is_run_and_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Its rows are stored with its commands; a case whose files are absent is left out."""

    def run_step(step: Step) -> float:
        save_rows(step.flags[-1], [Row("p", "m", "s", "lower", 1.0, {"b": 2.0})])
        return 0.0

    monkeypatch.setattr(quality, "run_step", run_step)
    cases = {"one": quality.Case(("p/a.py --out {work}/r.json",), results="r.json")}
    cases["two"] = quality.Case((), needs=("absent",))
    monkeypatch.setattr(quality, "CASES", cases)
    assert quality.run(["--result", str(tmp_path / "q.json"), "--real_data", str(tmp_path)]) == 0
    stored = json.loads((tmp_path / "q.json").read_text())
    assert set(stored) == {"one"} and stored["one"]["rows"][0]["ratio"] == 0.5
    assert stored["one"]["rows"][1]["what"] == "p/a.py, wall"
    assert stored["one"]["command"] == "python scripts/p/a.py --out out/r.json"
    assert "two: left out" in capsys.readouterr().out
    monkeypatch.setattr(quality, "CASES", {"two": cases["two"]})
    assert quality.run(["--real_data", str(tmp_path)]) == EXIT_LEFT_OUT


def test_limits_without_a_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A limit of what no evaluation measures any more is an error, not a line less."""
    monkeypatch.setattr(quality, "run_step", lambda _: 0.0)
    save_rows(tmp_path / "r.json", [Row("p", "m", "s", "lower", 1.0)])
    for case, message in (
        (quality.Case((), {"n": (1.0, None)}, results="r.json"), "no n, which"),
        (quality.Case((), ratios={"m": (1.0, None)}, results="r.json"), "no baseline"),
    ):
        with pytest.raises(DataError, match=message):
            quality.measure(case, tmp_path, tmp_path)


def test_results_of_earlier_commands_are_named():
    """A case whose commands changed since, and one without a result, stand at the top of the page."""
    results = [("quality: a", "python a.py", {}), ("quality: b", "python b.py", {}), ("loop", "c", {})]
    told = {"a": "python a.py", "b": "python b.py --new", "c, d": "python c.py"}
    assert _table.outdated(results, told) == ["Measured by earlier commands: b.", "Not measured yet: c, d."]
    assert not _table.outdated(results, {"a": "python a.py"})


def test_what_was_not_measured_is_told():
    """A limit without a value, out of memory say, is no success; without misses there is no table."""
    lost, good = _table.row("a", float("nan"), "s", 1.0), _table.row("b", 0.5, "s", 1.0)
    text = "\n".join(_table.overview([("t", "c", {"rows": [lost, good]})]))
    assert "1 of 2 figures" in text and "| t | a | - s | at most 1 |" in text
    assert _table.overview([("t", "c", {"rows": [good]})]) == [
        "All 1 figures that have a limit reach it.",
        "",
    ]


def test_cases_of_one_file_at_once(tmp_path: Path):
    """Eight processes store a case each in one file: none is lost."""
    path = tmp_path / "r.json"
    jobs = [fork(lambda i=i: store(path, f"case {i}")) for i in range(8)]
    assert [wait(pid) for pid in jobs] == [0] * 8
    assert set(json.loads(path.read_text())) == {f"case {i}" for i in range(8)}


def store(path: Path, case: str) -> int:
    """Store a case; return 0."""
    _table.store_case(path, case, {"rows": []})
    return 0
