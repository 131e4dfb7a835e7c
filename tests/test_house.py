"""The house rules: who may import whom, one door per dependency, and how big a file may grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("orchestrator", "workers")
MAX_LINES = 400

DOORS = {
    "accelerate": {"workers/train.py"},
    "cmaes": {"workers/recipes"},
    "timm": {
        "workers/model.py",
        "workers/weights.py",
        "workers/heads.py",
        "workers/hybrids.py",
        "workers/optim.py",
        "workers/schedule.py",
        "workers/data/augment.py",
    },
    "pyarrow.fs": {"workers/storage.py", "workers/data/files.py"},
    "ray": {"orchestrator/ray_fleet", "orchestrator/submit.py", "workers/actors.py"},
    "webdataset": {"workers/data"},
}
"""Dependency -> the files, or folders of files, that may import it."""

TORCH_FREE = (
    "orchestrator",
    "workers/types",
    "workers/spec",
    "workers/storage.py",
    "workers/manifest.py",
    "workers/recipes",
    "workers/progress.py",
)
HEAVY = ("torch", "torchvision", "timm", "accelerate")
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "util.py", "helper.py", "common.py", "misc.py"}


def _files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(path: Path) -> Iterator[str]:
    """Dotted names of everything the file imports, inside functions too, but not for types only."""
    todo: list[ast.AST] = [ast.parse(path.read_text(), str(path))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # The packages import absolutely; a relative import would hide its target from here.
            assert node.level == 0, f"{_relative(path)}:{node.lineno}: import absolutely"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        todo.extend(ast.iter_child_nodes(node))


def _is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _lies_in(path: str, places: set[str] | tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(place + "/") for place in places)


def _modules(places: tuple[str, ...]) -> list[str]:
    """Importable names of the existing files in these places."""
    paths = [path for path in _files(*PACKAGES) if _lies_in(_relative(path), places)]
    names = (_relative(path).removesuffix(".py").replace("/", ".") for path in paths)
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def test_workers_never_import_the_orchestrator() -> None:
    bad = [
        f"{_relative(path)} imports {name}"
        for path in _files("workers")
        for name in _imports(path)
        if _is_in(name, "orchestrator")
    ]
    assert not bad


@pytest.mark.parametrize("dependency", DOORS)
def test_a_dependency_has_one_door(dependency: str) -> None:
    bad = [
        f"{_relative(path)} imports {name}"
        for path in _files(*PACKAGES)
        if not _lies_in(_relative(path), DOORS[dependency])
        for name in _imports(path)
        if _is_in(name, dependency)
    ]
    assert not bad


def test_torch_free_modules_name_no_torch() -> None:
    bad = [
        f"{_relative(path)} imports {name}"
        for path in _files(*PACKAGES)
        if _lies_in(_relative(path), TORCH_FREE)
        for name in _imports(path)
        if any(_is_in(name, heavy) for heavy in HEAVY)
    ]
    assert not bad


def test_importing_torch_free_modules_loads_no_torch() -> None:
    # ray itself is light of torch, but slow to import: only its own fleet may bring it in.
    names = [name for name in _modules(TORCH_FREE) if not _is_in(name, "orchestrator.ray_fleet")]
    assert "orchestrator.config" in names
    code = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
    loaded = sorted({{"ray", *{HEAVY!r}}} & set(sys.modules))
    assert not loaded, f"importing {{name}} loads {{loaded}}"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_files_stay_small() -> None:
    lengths = {
        _relative(path): len(path.read_text().splitlines()) for path in _files(*PACKAGES, "tests")
    }
    assert not {path: length for path, length in lengths.items() if length > MAX_LINES}


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    files = _files(*PACKAGES, "tests")
    assert not [_relative(path) for path in files if path.name in FORBIDDEN_NAMES]


def test_every_module_says_what_it_is() -> None:
    files = _files(*PACKAGES)
    assert not [
        _relative(path) for path in files if not ast.get_docstring(ast.parse(path.read_text()))
    ]


def test_nothing_is_unpickled() -> None:
    """Of all that could: neither pickle itself, nor what is pickle inside."""
    unsafe = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve")
    bad = [
        f"{_relative(path)} imports {name}"
        for path in _files(*PACKAGES)
        for name in _imports(path)
        if any(_is_in(name, one) for one in unsafe)
    ]
    assert not bad
