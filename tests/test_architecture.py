"""The rules of the house hold in every file, and each rule is able to fail."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests import house
from tests.house import PACKAGES, ROOT, Finding, sources

CODE = ("common", *PACKAGES, "scripts", "benchmarks")
MAX_IMPORT_SECONDS = 0.5  # CPU time beyond that of torch


def findings(paths: Iterable[Path], rule: Callable[[ast.Module], list[Finding]]) -> list[str]:
    """Return what a rule finds in these files, as "file:line: what"."""
    found = []
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(ROOT)}:{line}: {what}" for line, what in rule(tree)]
    return found


def text_findings(paths: Iterable[Path], rule: Callable[[str], list[Finding]]) -> list[str]:
    """Return what a rule on plain text finds in these files."""
    texts = ((path.relative_to(ROOT), path.read_text(encoding="utf-8")) for path in paths)
    return [f"{name}:{line}: {what}" for name, text in texts for line, what in rule(text)]


def but(folders: Iterable[str], *files: str) -> list[Path]:
    """Return the files of these folders without the named ones, which must exist."""
    left_out = [ROOT / name for name in files]
    assert all(path.exists() for path in left_out), left_out
    return [path for path in sources(*folders) if path not in left_out]


def test_packages_are_siblings():
    """A package imports common and itself, never another package; common imports no package."""
    assert len(sources("common")) > 10
    for package in PACKAGES:
        assert not findings(sources(package), lambda t, p=package: house.foreign_imports(t, {p}))
    assert not findings(sources("common"), lambda t: house.foreign_imports(t, set()))


def test_a_script_serves_one_package():
    """A script in scripts/<package>/ imports that package and common only."""
    for package in PACKAGES:
        files = sources(f"scripts/{package}")
        assert not findings(files, lambda t, p=package: house.foreign_imports(t, {p}))


def test_optional_libraries_are_imported_late():
    """Optional libraries are imported inside the function that needs them."""
    assert not findings(sources(*CODE), house.early_optional_imports)


def test_one_file_names_backends():
    """Only common/device.py names a GPU backend."""
    files = but(("common", *PACKAGES, "scripts"), "common/device.py")
    assert not findings(files, house.backend_names)


def test_one_file_talks_between_processes():
    """Only common/distributed.py uses torch.distributed."""
    files = but(("common", *PACKAGES, "scripts"), "common/distributed.py")
    assert not findings(files, lambda t: house.uses_of(t, "torch.distributed"))


@pytest.mark.parametrize("name", ["torch.save", "torch.load"])
def test_one_file_reads_and_writes_checkpoints(name: str):
    """Only common/checkpoint.py calls torch.save and torch.load."""
    files = but(("common", *PACKAGES, "scripts"), "common/checkpoint.py")
    assert not findings(files, lambda t: house.uses_of(t, name))


def test_nothing_unsafe_is_called():
    """No call in the tree can execute what a data file says."""
    found = []
    for path in sources(*CODE):
        name = str(path.relative_to(ROOT))
        found += findings([path], lambda t, n=name: house.unsafe_calls(t, n))
    assert not found


def test_files_are_of_readable_size():
    """No file has more than 400 lines."""
    assert not text_findings(sources(*CODE, "tests"), house.too_long)


def test_public_functions_are_annotated():
    """Every public function says the types it takes and returns."""
    assert not findings(sources(*CODE), house.without_annotations)


def test_modules_say_what_they_are_for():
    """Every module begins with a docstring."""
    assert not findings(sources(*CODE), house.without_docstring)


def test_no_machine_paths():
    """No file names a folder of somebody's machine."""
    kinds = ("*.py", "*.md", "*.toml", "*.txt", "*.json", "Makefile", "run")
    folders = [*CODE, "docs", "tests", "data", ".ci"]
    paths = [p for kind in kinds for folder in folders for p in (ROOT / folder).rglob(kind) if p.is_file()]
    paths += [p for kind in kinds for p in ROOT.glob(kind) if p.is_file()]
    assert len(paths) > 30
    assert not text_findings(sorted(paths), house.machine_paths)


BAD = [
    (lambda t: house.foreign_imports(t, {"fault_seg"}), "from voxel_ode.model import Net"),
    (lambda t: house.foreign_imports(t, set()), "def f():\n    import fault_seg.model as m"),
    (lambda t: house.foreign_imports(t, {"fault_seg"}), "from scripts.fault_seg import train"),
    (house.early_optional_imports, "import wandb"),
    (house.early_optional_imports, "from onnx import helper"),
    (house.early_optional_imports, "try:\n    import monai.nets as m\nexcept ImportError:\n    m = None"),
    (house.early_optional_imports, "class A:\n    import pyvista"),
    (house.backend_names, "x = y.to('cuda')"),
    (house.backend_names, "if d.type == 'mps':\n    pass"),
    (house.backend_names, "d = torch.device('cuda:0')"),
    (lambda t: house.uses_of(t, "torch.distributed"), "import torch.distributed as dist"),
    (lambda t: house.uses_of(t, "torch.distributed"), "from torch import distributed"),
    (lambda t: house.uses_of(t, "torch.distributed"), "import torch\ntorch.distributed.barrier()"),
    (lambda t: house.uses_of(t, "torch.save"), "import torch as t\nt.save({}, 'x')"),
    (lambda t: house.uses_of(t, "torch.load"), "from torch import load"),
    (house.unsafe_calls, "import torch\ntorch.load('x', weights_only=False)"),
    (house.unsafe_calls, "import numpy as np\nnp.load('x', allow_pickle=True)"),
    (house.unsafe_calls, "import pickle as p\np.loads(b'')"),
    (house.unsafe_calls, "from pickle import load as read"),
    (house.unsafe_calls, "import joblib\njoblib.load('x')"),
    (house.unsafe_calls, "import os\nos.system('ls')"),
    (house.unsafe_calls, "import subprocess\nsubprocess.run('ls', shell=True)"),
    (house.unsafe_calls, "eval('1')"),
    (house.unsafe_calls, "exec('x = 1')"),
    (house.unsafe_calls, "import pickle\nclass Reader(pickle.Unpickler):\n    pass"),
    (house.without_annotations, "def f(x) -> int:\n    return x"),
    (house.without_annotations, "def f(x: int):\n    return x"),
    (house.without_annotations, "class A:\n    def f(self, *, x) -> int:\n        return x"),
    (house.without_docstring, "x = 1"),
]
GOOD = """
import torch
from torch.nn.parallel import DistributedDataParallel
from common import distributed
def _f(x):
    import wandb
    model.eval()
    distributed.barrier()
    torch.load_something
    return "the cuda device", {"weights_only": False}
class A:
    @staticmethod
    def f(x: int) -> int:
        return x
"""


@pytest.mark.parametrize(("rule", "snippet"), BAD, ids=[snippet for _, snippet in BAD])
def test_rules_can_fail(rule: Callable[[ast.Module], list[Finding]], snippet: str):
    """Each rule flags code that breaks it, and passes code that does not."""
    assert rule(ast.parse(snippet))
    assert not rule(ast.parse(f'"""What it is for."""\n{GOOD}'))


def test_text_rules_can_fail():
    """The rules on plain text flag what breaks them and nothing else."""
    assert house.too_long("x\n" * 401) and not house.too_long("x\n" * 400)
    for top in ("home/ann", "Users/ann", "root/x"):
        assert house.machine_paths(f'path = "/{top}/data"')
    assert house.machine_paths(f"see {ROOT}/data")
    assert not house.machine_paths("https://example.org/home/x ~/home/x data/root/x $HOME/root/x")


PROBE = """
import json, os, sys, time
import torch
root, names = sys.argv[1], sys.argv[2:]
answers = {}
for name in names:
    best = None
    for attempt in range(3):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            opened = []
            def watch(event, arguments):
                if event == "open" and isinstance(arguments[0], str):
                    path = os.path.abspath(arguments[0])
                    inside = path.startswith(root + os.sep) and os.sep + "." not in path[len(root):]
                    if inside and not path.endswith((".py", ".pyc")) and "__pycache__" not in path:
                        opened.append(path)
            sys.addaudithook(watch)
            started = time.process_time()
            __import__(name)
            seconds = time.process_time() - started
            answer = {"seconds": seconds, "opened": opened, "gpu": torch.cuda.is_initialized()}
            os.write(writer, json.dumps(answer).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as file:
            answer = json.loads(file.read() or "null")
        os.waitpid(pid, 0)
        if answer is None:
            best = {"seconds": float("inf"), "opened": ["import failed"], "gpu": False}
            break
        if best is None or answer["seconds"] < best["seconds"]:
            best = answer
    answers[name] = best
print(json.dumps(answers))
"""


def probe(folder: Path, names: Iterable[str]) -> dict[str, dict]:
    """Import each name in its own child of a process that has torch; return what that cost and touched."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-c", PROBE, str(folder), *names]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def breaches(answers: dict[str, dict]) -> list[str]:
    """Return what an import did that it should not; a module may cost three times what a package may."""
    limits = {name: MAX_IMPORT_SECONDS * (3 if "." in name else 1) for name in answers}
    found = [f"{n}: {a['seconds']:.2f} s" for n, a in answers.items() if a["seconds"] > limits[n]]
    found += [f"{n}: opened {path}" for n, a in answers.items() for path in a["opened"]]
    return found + [f"{n}: started the GPU" for n, a in answers.items() if a["gpu"]]


def test_imports_are_cheap_and_quiet():
    """Importing a package costs little beyond torch, touches no GPU and opens no file of the project."""
    modules = [p.relative_to(ROOT).with_suffix("") for package in PACKAGES for p in sources(package)]
    names = {".".join(m.parts).removesuffix(".__init__") for m in modules if m.name in ("__init__", "train")}
    assert not breaches(probe(ROOT, sorted(names)))


def test_the_probe_can_fail(tmp_path: Path):
    """A module that computes for a second or opens a file is noticed, one that breaks too."""
    (tmp_path / "data.txt").write_text("x")
    (tmp_path / "slow_module.py").write_text("import time\nt = time.process_time()\n")
    with open(tmp_path / "slow_module.py", "a", encoding="utf-8") as file:
        file.write("while time.process_time() < t + 0.7:\n    pass\n")
    (tmp_path / "reading_module.py").write_text("x = open('data.txt').read()\n")
    (tmp_path / "broken_module.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "quiet_module.py").write_text("x = 1\n")
    names = ["slow_module", "reading_module", "broken_module", "quiet_module"]
    found = " ".join(breaches(probe(tmp_path, names)))
    assert all(name in found for name in names[:3]) and "quiet_module" not in found
