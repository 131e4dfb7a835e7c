"""The house rules: who may import whom, one door per dependency, and how big a file may grow."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import get_args

import pytest

from workers.dispatch import ORDER_FUNCTIONS
from workers.types import AnyOrder

ROOT = Path(__file__).parent.parent
PACKAGES = ("orchestrator", "workers")
MAX_LINES = 450
"""A file that outgrows it is split by noun, never by size."""
MAX_FILES = 17
"""In a room, its `__init__` aside; one that outgrows it is divided by noun."""

FLOORS = {
    "workers": (
        *("text", "errors", "config", "types", "storage", "heartbeat", "data", "models", "context"),
        *("scoring", "recipes", "merging", "training", "analysis", "serving", "preflight"),
        *("dispatch", "ray_actor", "model"),
    ),
    "orchestrator": (
        *("config", "experiment", "state", "schedule", "fleet", "driver", "report", "commands"),
        *("cli", "__main__"),
    ),
}
"""The rooms of each package from the ground up; a room imports only rooms below it."""

DOORS = {
    "accelerate": {"workers/training/train.py"},
    "cmaes": {"workers/recipes"},
    "timm": {
        "workers/models",
        "workers/serving/served_model.py",
        "workers/training/optim.py",
        "workers/training/lr_schedule.py",
        "workers/data/augment.py",
    },
    "jinja2": {"orchestrator/report/html/page.py"},
    "pyarrow.fs": {
        "workers/storage/store.py",
        "workers/storage/filesystem.py",
        "workers/data/remote_files.py",
    },
    "ray": {"orchestrator/fleet", "orchestrator/commands/submit.py", "workers/ray_actor.py"},
    "webdataset": {"workers/data"},
}
"""Dependency -> the files, or folders of files, that may import it."""

TORCH_FREE = (
    "orchestrator",
    "workers/text.py",
    "workers/errors.py",
    "workers/config",
    "workers/types",
    "workers/storage/corrupt_file.py",
    "workers/storage/layout.py",
    "workers/storage/local_disk.py",
    "workers/storage/manifest.py",
    "workers/storage/node_cache.py",
    "workers/storage/store.py",
    "workers/recipes",
    "workers/heartbeat.py",
)
HEAVY = ("torch", "torchvision", "timm", "accelerate")
RIDDLES = {
    *("told", "past", "now", "beside", "counted", "remember", "manner", "afterwards", "starting"),
    *("making", "telling", "nouns", "words", "looks", "souping", "watching", "labelling", "scribe"),
    *("foreign", "rehearsal", "performing", "predicting", "answered", "found", "made", "kept"),
}
DEFINED_TWICE = {"CAPTION", "decisions", "logger", "main", "orders", "T"}
"""Names that mean the same wherever they are defined."""
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
    names = [name for name in _modules(TORCH_FREE) if not _is_in(name, "orchestrator.fleet")]
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


def _room(module: str) -> tuple[str, str]:
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_imports_only_rooms_below_it(package: str) -> None:
    floors, bad = FLOORS[package], []
    for path in _files(package):
        if path.parent == ROOT / package and path.name == "__init__.py":
            continue
        mine = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        for target in _imports(path):
            owner, room = _room(target)
            if owner == package and room and floors.index(room) > floors.index(mine):
                bad.append(f"{_relative(path)} imports {target}")
    assert not bad


def test_every_room_has_a_floor() -> None:
    for package, floors in FLOORS.items():
        entries = {path.name.removesuffix(".py") for path in (ROOT / package).iterdir()}
        assert entries - {"__init__", "__pycache__"} == set(floors)


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    """Imports at the top of files; one inside a function is late on purpose."""
    graph = {_module(path): _imported_on_top(path) for path in _files(*PACKAGES)}
    order = TopologicalSorter(graph)
    order.prepare()  # CycleError names the circle


def _module(path: Path) -> str:
    return _relative(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def _imported_on_top(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and _room(node.module or "")[0] in PACKAGES:
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if _exists(name) else node.module or "" for name in parts}
    return found - {_module(path)}


def _exists(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


def test_rooms_stay_small() -> None:
    rooms = {path.parent for path in _files(*PACKAGES)}
    counts = {
        _relative(room): len([p for p in room.glob("*.py") if p.name != "__init__.py"])
        for room in rooms
    }
    assert not {room: count for room, count in counts.items() if count > MAX_FILES}


def test_no_file_name_is_a_riddle() -> None:
    """Participles, adverbs and prepositions name no noun of the field."""
    files = _files(*PACKAGES)
    assert not [_relative(path) for path in files if path.stem in RIDDLES]


def test_a_public_name_is_defined_once() -> None:
    places: dict[str, list[str]] = {}
    for path in _files(*PACKAGES):
        for name in _defined_on_top(path):
            places.setdefault(name, []).append(_relative(path))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert not {name: found for name, found in twice.items() if name not in DEFINED_TWICE}


def _defined_on_top(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text()).body:
        names: list[str] = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        yield from (name for name in names if not name.startswith("_"))


def test_a_docstring_begins_with_a_noun_or_a_verb() -> None:
    bad = [
        f"{_relative(path)}:{line}: {text.splitlines()[0]}"
        for path in _files(*PACKAGES)
        for line, text in _docstrings(path)
        if re.match(r"(Of|Likewise|That|Who)\b", text)
    ]
    assert not bad


def _docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Strings that stand alone: of modules, classes and functions, and below their values."""
    for node in ast.walk(ast.parse(path.read_text())):
        is_alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_alone and isinstance(node.value.value, str):
            yield node.lineno, node.value.value.strip()


def test_every_kind_of_order_has_a_function_and_one_place_for_its_id() -> None:
    orders = {kind.model_fields["kind"].default: kind for kind in get_args(AnyOrder)}
    assert set(ORDER_FUNCTIONS) == set(orders)
    assert all("id_of" in vars(kind) for kind in orders.values())


def test_what_the_packages_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        re.split(r"[<>=\[ ]", entry)[0].lower().replace("-", "_")
        for entry in project["dependencies"]
    }
    known_as = {
        "PIL": "pillow",
        "sklearn": "scikit_learn",
        "yaml": "pyyaml",
        "pydantic_core": "pydantic",
    }
    used = {name.partition(".")[0] for path in _files(*PACKAGES) for name in _imports(path)}
    foreign = used - set(sys.stdlib_module_names) - set(PACKAGES)
    assert not {name for name in foreign if known_as.get(name, name) not in declared}


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
