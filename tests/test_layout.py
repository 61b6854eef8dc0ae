"""The house rules that can be checked by code: imports, file and function lengths, the README's commands."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("encoders", "indexer", "retrieval", "benchmarks", "training")
# Which other rooms (top-level packages) each room may import.
ALLOWED = {
    "encoders": set(),
    "indexer": {"encoders"},
    "retrieval": {"encoders", "indexer"},
    "benchmarks": {"encoders", "indexer", "retrieval"},
    "training": {"encoders", "benchmarks"},
}
BENCHMARKS_FOR_TRAINING = {
    f"benchmarks.{name}" for name in ("caption_metrics", "datasets", "embedding", "recall", "scenes")
}
HEAVY = {"torch", "transformers", "peft", "open_clip", "torchvision"}
LONGEST_FILE = 300
LONGEST_FUNCTION = 60

SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
ALL_FILES = [*SOURCES, *sorted((ROOT / "tests").glob("*.py"))]


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def find_imports(path: Path) -> Iterator[str]:
    """Full names of all modules a file imports, inside functions too."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            # "from benchmarks import scenes" imports benchmarks.scenes.
            yield from (f"{base}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for name in find_imports(path):
        other = name.split(".")[0]
        if other in ROOMS and other != room:
            assert other in ALLOWED[room], f"{label(path)} imports {name}"
        if room == "training" and other == "benchmarks":
            assert any(name.startswith(each) for each in BENCHMARKS_FOR_TRAINING), (
                f"{label(path)} imports {name}"
            )
        if other in ROOMS and label(path) != "retrieval/__main__.py":
            assert name.split(".")[1:2] != ["cli"], f"{label(path)} imports a command line"


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_torch_and_transformers_live_with_the_encoders_and_their_training(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] not in ("encoders", "training"):
        heavy = {name.split(".")[0] for name in find_imports(path)} & HEAVY
        assert not heavy, f"{label(path)} imports {heavy}"


@pytest.mark.parametrize("path", ALL_FILES, ids=label)
def test_no_file_and_no_function_is_too_long_to_be_read_in_one_go(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_the_one_of_this_checkout(room: str) -> None:
    # An installed package of the same name, such as another project's "training", would shadow ours.
    found = importlib.import_module(room).__file__
    assert found is not None
    assert Path(found).resolve() == ROOT / room / "__init__.py"


@pytest.mark.parametrize("room", ["encoders.base", "indexer.build", "retrieval.search", "benchmarks.recall"])
def test_importing_a_room_loads_no_model_library(room: str) -> None:
    # `--help` takes half a second, too little to load torch. A fresh process: this one may have loaded it.
    code = f"import sys, {room}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_module_says_what_it_is() -> None:
    silent = [
        label(path)
        for path in SOURCES
        if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent


def test_the_readme_names_every_command() -> None:
    from retrieval.cli import app

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert named
    assert not [name for name in named if f"fwd2bot {name}" not in readme]
