"""Values of flags and of config files that no program means: refused with one line, whatever the script."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cli import parse
from common.errors import DataError, UserError
from common.run import BasicOptions
from tests.reliability.fuzz import VALUES, WORDS, quietly

pytestmark = pytest.mark.promise("R23")
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("facies_gan", "velocity_inversion", "fault_seg", "simulgen_vae", "voxel_ode")
FEW, MANY = 8, 500


@dataclass(frozen=True)
class Script:
    """A configuration that a script parses."""

    package: str
    module: str
    name: str

    @property
    def kind(self) -> type[Any]:
        """The dataclass."""
        return getattr(importlib.import_module(self.module), self.name)


def configurations() -> Iterator[Script]:
    """Yield the configuration of every call of `parse` in scripts/, once each."""
    seen = set()
    for path in sorted((ROOT / "scripts").glob("*/*.py")):
        package, tree = path.parent.name, ast.parse(path.read_text(encoding="utf-8"))
        homes = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "parse" and len(node.args) > 1:
                home = homes.get(getattr(node.args[1], "id", ""))
                if home and home not in seen:
                    seen.add(home)
                    yield Script(package, *home)


SCRIPTS = tuple(configurations())


def fuzz(script: Script, folder: Path, num_examples: int) -> None:
    """Parse strange command lines and config files of one configuration."""
    kind = script.kind
    names = [f.name for f in dataclasses.fields(kind)]
    defaults = {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    plain = {
        k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items() if not isinstance(v, Path)
    }

    def arguments(rng: random.Random) -> list[str]:
        if rng.random() < 0.5:
            chosen = rng.sample(names, min(len(names), rng.randint(1, 3)))
            return [
                word for name in chosen for word in (f"--{name}", *rng.choices(WORDS, k=rng.randint(0, 3)))
            ]
        values = {**plain, **{name: rng.choice(VALUES) for name in rng.sample(names, min(len(names), 2))}}
        text = json.dumps(values)
        path = folder / "config.json"
        path.write_text(text[: rng.choice((len(text), len(text), len(text) // 2))])
        return ["--config", str(path)]

    @quietly(num_examples)
    @given(seed=st.integers(0, 2**64 - 1))
    def one(seed: int) -> None:
        words = arguments(random.Random(f"{script.module} {script.name} {seed}"))
        try:
            parse(words, kind, BasicOptions)
        except (UserError, DataError) as error:
            assert "\n" not in str(error)

    one()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: f"{s.package}-{s.name}")
def test_few(script: Script, tmp_path: Path):
    """A few strange values of every script's flags and of its config file."""
    fuzz(script, tmp_path, FEW)


@pytest.mark.reliability
@pytest.mark.timeout(600)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: f"{s.package}-{s.name}")
def test_many(script: Script, tmp_path: Path, record_property: Callable[[str, int], None]):
    """The same with 500."""
    fuzz(script, tmp_path, MANY)
    record_property("n", MANY)


def test_every_package_is_covered():
    """The list is read from the scripts themselves; each package has its own in it."""
    assert {script.package for script in SCRIPTS} == set(PACKAGES) and len(SCRIPTS) > 25
