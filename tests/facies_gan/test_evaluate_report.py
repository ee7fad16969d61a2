"""The report of an evaluation and its page; the flags that ask for it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from common.cli import parse
from common.run import MachineOptions
from facies_gan.config_evaluate import EvaluateConfig
from facies_gan.evaluate_page import body
from facies_gan.evaluate_report import score_table


def test_absent_baseline_and_page():
    """A method that could not run has a column with its reason; the page shows what the report says."""
    reason = "not run: not installed; run: pip install <it>"
    scores = {"ours": {"gamma": 0.5, "bodies": 9.0}, "tgs": {"gamma": 0.1, "bodies": 4.0}}
    table = score_table(scores, {}, "ours", {"gamma": 0.25}, {"snesim": reason})
    head, _, first, second = table.strip().splitlines()
    assert head == "| measure | ours | tgs | snesim | reference | half vs half | ours / half |"
    assert first == f"| Gamma connectivity | 0.5 | 0.1 | {reason} | 0.25 | - | - |"
    assert second == "| bodies (count) | 9 | 4 | - | - | - | - |"
    page = body(f"## Facies\n\n{table}\nSome **bold** text.\n\n```\na < b\n```\n")
    assert page.startswith("<h3>Facies</h3>") and page.count("<tr>") == 3 and page.count("<th>") == 7
    assert "<td>not run: not installed; run: pip install &lt;it&gt;</td>" in page
    assert "<p>Some <strong>bold</strong> text.</p>" in page and "<pre><code>a &lt; b</code></pre>" in page


WORDS: dict[str, tuple[str, Any]] = {
    "model_path": ("a", Path("a")),
    "realisations": ("r --reference x", Path("r")),
    "reference": ("x", Path("x")),
    "hard_data": ("w.dat", Path("w.dat")),
    "how_many": ("3", 3),
    "baselines": ("tgs", ("tgs",)),
    "max_lag": ("9", 9),
    "holdout_wells": ("2", 2),
    "blending_count": ("0", 0),
    "first_section": ("4", 4),
    "num_sections": ("5", 5),
    "batch_size": ("2", 2),
    "tile": ("64", 64),
    "figures": ("false", False),
    "slice_axis": ("z", "z"),
    "origin": ("0 5 7", (0.0, 5.0, 7.0)),
    "cell_size": ("2 3 4", (2.0, 3.0, 4.0)),
    "z_down": ("", True),
    "grid_dims": ("3 1 5", (3, 1, 5)),
    "variable": ("facies", "facies"),
}


@pytest.mark.parametrize("name", [field.name for field in fields(EvaluateConfig)])
def test_spellings_of_flags(name: str):
    """Every flag in both spellings sets the option that it names; the defaults are those of the docs."""
    words, value = WORDS[name]
    rest = [] if name == "model_path" else ["--model_path", "m"]
    flag = [f"--no_{name}"] if value is False else [f"--{name}", *words.split()]
    for first in (flag[0], "--" + flag[0][2:].replace("_", "-")):
        found = parse([*rest, first, *flag[1:]], EvaluateConfig, MachineOptions).config
        assert getattr(found, name) == value
    plain = parse(["--model_path", "m"], EvaluateConfig, MachineOptions).config
    assert (plain.how_many, plain.max_lag, plain.holdout_wells, plain.reference) == (20, 60, 0, None)
    assert name == "model_path" or getattr(plain, name) != value
