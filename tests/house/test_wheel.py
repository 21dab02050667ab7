"""The package as it is given away: a wheel that works where there is nothing else."""

from __future__ import annotations

import sys
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from tests.helpers import ROOT, run

USE = """
import sys
import kvstore

with kvstore.open(sys.argv[1]) as db:
    db[b"ada"] = b"1815"
with kvstore.open(sys.argv[1], "r") as db:
    assert dict(db) == {b"ada": b"1815"}
print(kvstore.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    run(*build, "--outdir", folder, ROOT, folder=ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    source = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "kvstore").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert "kvstore/py.typed" in source
    assert held == source


def test_the_wheel_needs_nothing_but_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    assert metadata["Name"] == "kvstore"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_all("Requires-Dist") is None


def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    venv.create(empty, with_pip=False)
    python = empty / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index"]
    run(*pip, "--no-deps", wheel, folder=tmp_path)
    printed = run(python, "-I", "-c", USE, tmp_path / "people", folder=tmp_path)
    assert Path(printed.strip()).is_relative_to(empty)
