"""The rules of the house: who may import whom, names that shadow nothing, and what the project never does."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "data": {"data"},
    "models": {"models"},
    "shard_tools": {"shard_tools", "data"},
    "train": {"train", "data", "models"},
}
ROOMS = {*MAY_IMPORT, "benchmarks", "tests"}
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_rooms_import_only_what_they_may(room):
    for path in (ROOT / room).rglob("*.py"):
        ours = {name.partition(".")[0] for name in imports(path)} & ROOMS
        assert ours <= MAY_IMPORT[room], f"{path} imports {ours - MAY_IMPORT[room]}"


def test_only_the_engine_imports_deepspeed():
    users = {path.relative_to(ROOT).as_posix() for path in FILES if "deepspeed" in {n[:9] for n in imports(path)}}
    assert users == {"train/engine.py"}


def test_no_script_shadows_a_module():
    """A script's own folder comes first on sys.path."""
    installed = set(importlib.metadata.packages_distributions())
    for room in ("train", "shard_tools"):
        for path in (ROOT / room).iterdir():
            name = path.stem
            assert name in ("__init__", "__pycache__") or name not in sys.stdlib_module_names | installed, path


def test_every_package_is_installed_by_name():
    packages = re.search(r"packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert packages is not None
    listed = set(re.findall(r'"([\w.]+)"', packages[1]))
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for room in MAY_IMPORT
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert listed == there


def test_every_file_says_what_it_is_for():
    for path in FILES:
        text = path.read_text()
        assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def test_no_unsafe_loading():
    for path in FILES:
        if path.is_relative_to(ROOT / "tests"):
            continue
        text = path.read_text()
        for pattern in (
            r"pickle\.loads?\(",
            r"weights_only=False",
            r"shell=True",
            r"sys\.path\.",
            r"allow_pickle=True",
        ):
            assert not re.search(pattern, text), f"{path}: {pattern}"


@pytest.mark.parametrize(
    "script",
    sorted(
        path.relative_to(ROOT).as_posix()
        for room in ("train", "shard_tools")
        for path in (ROOT / room).glob("*.py")
        if "__main__" in path.read_text()
    ),
)
def test_help_works_from_any_folder(script, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / script, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
