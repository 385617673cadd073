"""What users install: the wheel and the sdist, built in isolation and used far from the checkout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with wheel and sdist; the wheel is made from the sdist, in an environment of its own."""
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "-o", str(folder), str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_wheel_holds_the_whole_house(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"bertflow/conf/{path.relative_to(ROOT / 'conf').as_posix()}" in names
    for folder in ("src", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            assert path.relative_to(ROOT / folder).as_posix() in names
    assert {"bertflow/py.typed", "bertflow_standard/py.typed"} <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"bertflow", "bertflow_standard", next(top for top in tops if top.endswith(".dist-info"))}


def test_the_sdist_can_be_tested(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("Makefile", "README.md", "LICENSE", "constraints.txt", "tests/conftest.py", "conf/config.yaml"):
        assert name in names


def test_the_wheel_runs_in_an_environment_of_its_own(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")

    def run(name: str, *words: str) -> str:
        # Without the variables that lead Python elsewhere, and far from the checkout.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        command = [str(scripts / name), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel))
    assert "No broken requirements" in run("pip", "check")
    where = run("python", "-c", "import bertflow, bertflow_standard; print(bertflow.__file__)")
    assert Path(where.strip()).is_relative_to(tmp_path)
    for command in (["python", "-m", "bertflow"], ["bertflow"]):
        document = json.loads(run(*command, "model=tiny", "output.format=json"))
        assert document["outputs"]["last_hidden_state"]["shape"] == [3, 4, 32]
    rows = json.loads(run("bertflow", "task=plugins", "output.format=json"))["report"]
    assert {row["option"] for row in rows} == {
        f"{path.parent.name}={path.stem}" for path in (ROOT / "conf").glob("*/*.yaml")
    }
    assert not any(row["problem"] for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["venv"]


def test_the_extras_install_what_they_name() -> None:
    needs = [Requirement(text) for text in importlib.metadata.requires("bertflow") or ()]
    extras = importlib.metadata.metadata("bertflow").get_all("Provides-Extra") or []
    assert extras == ["bench", "dev"]
    for need in needs:
        if need.marker is None or need.marker.evaluate({"extra": "dev"}):
            assert need.specifier.contains(importlib.metadata.version(need.name), prereleases=True)
