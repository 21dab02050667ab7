"""The order of the package: who may import whom, and what everybody can look up."""

from __future__ import annotations

import ast
import builtins
import pydoc
import re
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

import kvstore
from tests.helpers import PACKAGE

# From the bottom to the top. A module imports only from those before its own.
ORDER = (
    *("errors", "filesystem", "posix", "powercut", "simdisk", "record", "engine"),
    *("segment", "index", "watermark", "manifest", "health", "files", "log"),
    *("interval", "damage", "recovery", "reports", "compaction", "directory"),
    *("store", "opening", "salvaging", "__init__"),
)
MOST_LINES = 465
SOURCES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in SOURCES.items()}
every_module = pytest.mark.parametrize("module", TREES)

# What reaches the operating system around the `FileSystem`.
SYSTEM_MODULES = {
    *("os", "posix", "posixpath", "fcntl", "mmap", "io", "_io", "pathlib", "shutil"),
    *("tempfile", "glob", "fileinput", "socket", "subprocess", "signal", "select"),
    *("multiprocessing", "ctypes", "resource", "pwd", "platform", "dbm", "sqlite3"),
}
# What runs a stranger's code, is salted in every process, or is a clock (pitfalls 8, 9, 34).
STRANGE_MODULES = {"pickle", "marshal", "shelve", "copyreg", "code", "importlib"}
STRANGE_MODULES |= {"time", "datetime", "uuid", "secrets"}
STRANGE_NAMES = {"hash", "eval", "exec", "compile", "__import__"}
NAMES_OF_OS = {
    "opening": {"PathLike", "fsdecode"},
    "salvaging": {"fsdecode"},
    "simdisk": {"strerror"},
}


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what is in a tree, but for what only a checker of types looks at."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from statements(node)


def imports(module: str) -> Iterator[tuple[str, str]]:
    """Yield every module that a module imports from, and the name that it takes."""
    for node in statements(TREES[module]):
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
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    taken = [each for each in attributes if ast.unparse(each.value) == source]
    whole = [node for node in nodes if isinstance(node, ast.Name) and node.id == source]
    assert len(whole) == len(taken), (
        f"{module} does not say what it takes from {source}"
    )
    return {each.attr for each in taken}


def test_every_module_has_its_place() -> None:
    assert set(ORDER) == set(SOURCES), "ORDER is not the package's list"
    assert not [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE]


@every_module
def test_a_module_is_short_and_imports_run_downwards_only(module: str) -> None:
    lines = SOURCES[module].read_text("utf-8").count("\n")
    assert lines <= MOST_LINES, f"{module} has {lines} lines"
    for source, name in imports(module):
        package, _, below = source.partition(".")
        if package == "kvstore":
            assert below, f"{module} imports {name} from the package as a whole"
            known = ORDER[: ORDER.index(module)]
            assert below in known, f"{module} must not know {below}"


@every_module
def test_a_module_needs_the_standard_library_and_runs_no_strangers_code(
    module: str,
) -> None:
    sources = {source.split(".")[0] for source, _ in imports(module)}
    assert sources <= {"kvstore", *sys.stdlib_module_names}
    nodes = ast.walk(TREES[module])
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    assert not sources & STRANGE_MODULES, "what is stored must not depend on these"
    assert not used & STRANGE_NAMES, "nor on these"


@every_module
def test_only_one_module_knows_the_operating_system(module: str) -> None:
    if module == "posix":
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
    if module == "posix":
        assert bound & set(dir(builtins)) == set(), "a name of Python's own is hidden"


@every_module
def test_no_function_raises_what_it_holds(module: str) -> None:
    """A local that is raised is a circle of frame, error and traceback.

    It keeps all that the callers hold until the collector comes.
    """
    for function in ast.walk(TREES[module]):
        if isinstance(function, ast.FunctionDef):
            nodes = list(ast.walk(function))
            caught = {
                each.name for each in nodes if isinstance(each, ast.ExceptHandler)
            }
            for each in nodes:
                if isinstance(each, ast.Raise) and isinstance(each.exc, ast.Name):
                    name = each.exc.id
                    assert name in caught or name[0].isupper(), (
                        f"{module}.{function.name} raises its local {name}"
                    )


def public_things(
    owner: ast.Module | ast.ClassDef, name: str
) -> Iterator[tuple[str, str | None]]:
    """Yield the name and the docstring of a module or class, and of what is in it."""
    yield name, ast.get_docstring(owner)
    for node in owner.body:
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_":
            if any(ast.unparse(each) == "overload" for each in node.decorator_list):
                continue
            yield f"{name}.{node.name}", ast.get_docstring(node)
        if isinstance(node, ast.ClassDef) and node.name[0] != "_":
            yield from public_things(node, f"{name}.{node.name}")


@every_module
def test_everything_public_says_what_it_is(module: str) -> None:
    for name, text in public_things(TREES[module], module):
        assert text, f"{name} has no docstring"
        first = text.splitlines()[0]
        assert first.endswith((".", ":")), f"{name} begins with half a sentence"


def test_the_public_names_are_sorted_and_all_there_is() -> None:
    assert list(kvstore.__all__) == sorted({*kvstore.__all__})
    for name in set(kvstore.__all__) - {"Flag", "Sync"}:  # these are types, no more
        assert getattr(kvstore, name).__doc__, f"kvstore.{name} says nothing"
    there = {name for name in vars(kvstore) if name[0] != "_"}
    modules = {name for name in there if isinstance(vars(kvstore)[name], ModuleType)}
    assert there - modules == set(kvstore.__all__)


def test_the_documentation_shows_what_people_use_and_no_private_way_in() -> None:
    text = pydoc.plain(pydoc.render_doc(kvstore))
    for name in kvstore.__all__:
        assert re.search(rf"\b{name}\b", text), f"pydoc says nothing of {name}"
    for word in ("LogStore", "recovered", "SimulatedDisk"):
        assert not re.search(rf"\b{word}\b", text), f"pydoc shows {word}"
    with pytest.raises(TypeError, match="abstract"):
        kvstore.Store()  # type: ignore[abstract]


def test_every_error_is_public_and_of_one_family() -> None:
    errors = {
        name: value
        for name, value in vars(kvstore.errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert set(errors) <= set(kvstore.__all__)
    assert all(issubclass(error, kvstore.KVStoreError) for error in errors.values())
