"""The rules of the house as functions: source in, findings out. `test_architecture.py` applies them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("facies_gan", "velocity_inversion", "fault_seg", "simulgen_vae", "voxel_ode")
OPTIONAL = {
    *("wandb", "modal", "onnx", "onnxscript", "onnxruntime", "pyvista", "meshio", "hdf5plugin"),
    *("neuralop", "neuraloperator", "monai"),
}
UNSAFE_CALLS = {
    *("eval", "exec", "os.system", "os.popen", "joblib.load", "joblib.Memory", "shelve.open", "yaml.load"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "marshal.loads"),
    *("torch.hub.load", "torch.jit.load", "shutil.unpack_archive"),
}
UNSAFE_ARGUMENTS = {("weights_only", False), ("allow_pickle", True), ("shell", True)}
# Unpicklers that admit NumPy arrays only, for formats that are pickles by tradition: (file, class).
RESTRICTED_UNPICKLERS = {("common/legacy_pickle.py", "_NumpyUnpickler")}
MAX_LINES = 400
Finding = tuple[int, str]


def sources(*folders: str) -> list[Path]:
    """Return the Python files of these folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def aliases(tree: ast.AST) -> dict[str, str]:
    """Return what each imported name of a module stands for: {"np": "numpy", "loads": "pickle.loads"}."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                name = item.name if item.asname else item.name.split(".")[0]
                names[item.asname or name] = name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update({item.asname or item.name: f"{node.module}.{item.name}" for item in node.names})
    return names


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """Return the full dotted name of an expression, "" when it is none."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, names)
        return f"{base}.{node.attr}" if base else ""
    return ""


def imports(tree: ast.AST) -> Iterator[Finding]:
    """Yield (line, module) of every import, wherever it stands; a relative one as "."."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, item.name) for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." if node.level else node.module or ""
            if not node.level:
                yield from ((node.lineno, f"{node.module}.{item.name}") for item in node.names)


def foreign_imports(tree: ast.AST, allowed: set[str]) -> list[Finding]:
    """Return imports of the project's packages outside `allowed`."""
    found = [(line, name.split(".")[0]) for line, name in imports(tree)]
    return sorted(
        {(line, f"imports {top}") for line, top in found if top in {*PACKAGES, "scripts"} - allowed}
    )


def early_optional_imports(tree: ast.Module) -> list[Finding]:
    """Return imports of optional libraries that run when the module is imported."""
    found: list[Finding] = []

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_type_checking(
                child
            ):
                continue
            if isinstance(child, ast.Import | ast.ImportFrom):
                tops = {name.split(".")[0] for _, name in imports(ast.Module([child], []))}
                found.extend((child.lineno, f"imports {top} at the top") for top in sorted(tops & OPTIONAL))
            visit(child)

    visit(tree)
    return found


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and dotted(node.test, {}).split(".")[-1] == "TYPE_CHECKING"


def backend_names(tree: ast.AST) -> list[Finding]:
    """Return string constants that name a GPU backend."""
    pattern = re.compile(r"(cuda|mps)(:\d+)?")
    constants = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [(n.lineno, f"names {n.value!r}") for n in constants if pattern.fullmatch(n.value)]


def uses_of(tree: ast.AST, prefix: str) -> list[Finding]:
    """Return the lines that import or name `prefix` or anything below it."""
    names = aliases(tree)
    found = {(line, name) for line, name in imports(tree) if f"{name}.".startswith(f"{prefix}.")}
    for node in ast.walk(tree):
        name = dotted(node, names) if isinstance(node, ast.Attribute | ast.Name) else ""
        if f"{name}.".startswith(f"{prefix}."):
            found.add((node.lineno, name))
    return sorted({(line, f"uses {prefix}") for line, _ in found})


def unsafe_calls(tree: ast.AST, file: str = "") -> list[Finding]:
    """Return calls that can execute what a file says, and classes that unpickle without restriction."""
    names, found = aliases(tree), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = dotted(node.func, names)
            if name in UNSAFE_CALLS:
                found.append((node.lineno, f"calls {name}"))
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if isinstance(value, bool) and (keyword.arg, value) in UNSAFE_ARGUMENTS:
                    found.append((node.lineno, f"passes {keyword.arg}={value}"))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            bad = [f"{node.module}.{item.name}" for item in node.names]
            found += [(node.lineno, f"imports {name}") for name in bad if name in UNSAFE_CALLS]
        elif isinstance(node, ast.ClassDef) and (file, node.name) not in RESTRICTED_UNPICKLERS:
            bases = [dotted(base, names) for base in node.bases]
            found += [
                (node.lineno, "derives from pickle.Unpickler") for b in bases if b == "pickle.Unpickler"
            ]
    return found


def without_annotations(tree: ast.Module) -> list[Finding]:
    """Return the public functions and methods that leave an argument or the result without a type."""
    found = []
    for scope in [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_")]:
        for node in scope.body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            static = any(dotted(d, {}) == "staticmethod" for d in node.decorator_list)
            arguments = [*node.args.posonlyargs, *node.args.args]
            arguments = arguments[1:] if isinstance(scope, ast.ClassDef) and not static else arguments
            extra = [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
            bare = [a.arg for a in [*arguments, *node.args.kwonlyargs, *extra] if a.annotation is None]
            bare += ["its result"] if node.returns is None else []
            if bare:
                found.append((node.lineno, f"{node.name}: no type for {', '.join(bare)}"))
    return found


def without_docstring(tree: ast.Module) -> list[Finding]:
    """Return a finding when the module does not say what it is for."""
    return [] if ast.get_docstring(tree) else [(1, "no module docstring")]


def too_long(text: str) -> list[Finding]:
    """Return a finding when a file has more than 400 lines."""
    lines = text.count("\n")
    return [(lines, f"{lines} lines, at most {MAX_LINES}")] if lines > MAX_LINES else []


def machine_paths(text: str) -> list[Finding]:
    """Return the lines that name a folder of somebody's machine, or where this checkout lies."""
    homes = [f"/{top}/" for top in ("home", "Users", "root")] + [f"{ROOT}/"]
    homes += [f"{ROOT.parent}/"] if len(ROOT.parent.parts) > 1 else []
    pattern = re.compile(r"(?<![\w.~$}*-])(" + "|".join(map(re.escape, homes)) + r")\w")
    found = enumerate(text.splitlines(), 1)
    return [(number, f"path {m[1]}") for number, line in found for m in pattern.finditer(line)]
