"""The order of the package: who may import whom, and what everybody can look up."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from samples import PACKAGE

import kvstore

# From the bottom to the top. A module imports only from the rows below its own.
ROWS = [
    {"errors"},
    {"filesystem"},
    {"simdisk"},
    {"record"},
    {"segment", "index"},
    {"mark"},
    {"manifest", "recovery", "compaction"},
    {"reports"},
    {"store"},
    {"salvage"},
]
LAYER = {module: layer for layer, row in enumerate(ROWS) for module in row}
SOURCES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in SOURCES.items()}
every_module = pytest.mark.parametrize("module", TREES)

# What reaches the operating system around the `FileSystem`.
SYSTEM_MODULES = {
    *("os", "posix", "posixpath", "fcntl", "mmap", "io", "_io", "pathlib", "shutil"),
    *("tempfile", "glob", "fileinput", "socket", "subprocess", "signal", "select"),
    *("multiprocessing", "ctypes", "resource", "pwd", "platform", "dbm", "sqlite3"),
}
NAMES_OF_OS = {
    "store": {"PathLike", "fspath"},
    "salvage": {"PathLike", "fspath"},
    "simdisk": {"strerror"},
}


def imports(module: str) -> Iterator[tuple[str, str]]:
    """Yield every module that a module imports from, and the name that it takes."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports by dots, which hides from whom"
            yield from ((node.module or "", alias.name) for alias in node.names)


def names_taken(module: str, source: str, name: str) -> set[str]:
    """Return what an import gives a module: one name, or all that it uses as ``os.name``."""
    if name:
        return {name}
    nodes = list(ast.walk(TREES[module]))
    behind_dots = [node for node in nodes if isinstance(node, ast.Attribute)]
    taken = [each for each in behind_dots if ast.unparse(each.value) == source]
    whole = [node for node in nodes if isinstance(node, ast.Name) and node.id == source]
    assert len(whole) == len(taken), (
        f"{module} does not say what it takes from {source}"
    )
    return {each.attr for each in taken}


def test_every_module_has_its_layer() -> None:
    assert set(LAYER) | {"__init__"} == set(SOURCES), "ROWS is not the package's list"
    assert not [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE]


@every_module
def test_imports_run_downwards_only(module: str) -> None:
    own = LAYER.get(module, len(ROWS))
    for source, name in imports(module):
        package, _, below = source.partition(".")
        if package == "kvstore":
            assert below, f"{module} imports {name} from the package as a whole"
            assert LAYER[below] < own, f"{module} must not know {below}"


@every_module
def test_the_package_needs_nothing_but_the_standard_library(module: str) -> None:
    sources = {source.split(".")[0] for source, _ in imports(module)}
    assert sources <= {"kvstore", *sys.stdlib_module_names}


@every_module
def test_only_the_file_system_knows_the_operating_system(module: str) -> None:
    if module == "filesystem":
        return
    for source, name in imports(module):
        if source.split(".")[0] in SYSTEM_MODULES:
            assert source == "os", f"{module} imports {source}"
            taken = names_taken(module, source, name)
            beyond = taken - NAMES_OF_OS.get(module, set())
            assert not beyond, f"{module} uses {beyond} of os"


@every_module
def test_no_module_opens_files_past_the_file_system(module: str) -> None:
    tree = TREES[module]
    bound = {name for _, name in imports(module)}
    bound |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not used & {"open", "print", "input", "__import__"} - bound, (
        f"{module} speaks to the system on its own"
    )
    if module == "filesystem":
        assert bound & set(dir(builtins)) == set(), "a name of Python's own is hidden"


def public_things(
    owner: ast.Module | ast.ClassDef, name: str
) -> Iterator[tuple[str, str | None]]:
    """Yield the name and the docstring of a module or class, and of what is in it."""
    yield name, ast.get_docstring(owner)
    for node in owner.body:
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_":
            yield f"{name}.{node.name}", ast.get_docstring(node)
        if isinstance(node, ast.ClassDef) and node.name[0] != "_":
            yield from public_things(node, f"{name}.{node.name}")


@every_module
def test_everything_public_says_what_it_is(module: str) -> None:
    for name, text in public_things(TREES[module], module):
        assert text, f"{name} has no docstring"
        first = text.splitlines()[0]
        assert first.endswith((".", ":")), f"{name} begins with half a sentence"


def test_the_public_names_are_sorted_and_there() -> None:
    assert list(kvstore.__all__) == sorted(kvstore.__all__)
    assert len(kvstore.__all__) == len(set(kvstore.__all__))
    for name in kvstore.__all__:
        assert getattr(kvstore, name).__doc__, f"kvstore.{name} says nothing"


def test_what_is_not_named_is_not_there() -> None:
    names = {
        name
        for name, value in vars(kvstore).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert names == set(kvstore.__all__), "the package names more or less than it has"


def test_every_error_is_public_and_of_one_family() -> None:
    errors = {
        name: value
        for name, value in vars(kvstore.errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert set(errors) <= set(kvstore.__all__)
    assert all(issubclass(error, kvstore.KVStoreError) for error in errors.values())
