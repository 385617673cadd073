"""The third-party example, installed by pip into a place of its own and used as its tutorial says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from conftest import examples, shows

ROOT = Path(__file__).parents[1]
ACME = ROOT / "examples/bertflow-acme"
TUTORIAL = (ACME / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that sees what this one has, and into which the tests install more."""
    folder = tmp_path_factory.mktemp("place")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    libraries = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.strip()
    seen = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    Path(libraries, "parent.pth").write_text(seen)
    return python


def pip(python: Path, *words: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def run(python: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, *words], check=False, capture_output=True, text=True, cwd=folder)


def test_the_tutorial_works_as_written(place: Path, tmp_path: Path) -> None:
    install, *commands = examples(TUTORIAL)
    words = shlex.split(install[0])
    assert words[:2] == ["pip", "install"]
    pip(place, "install", "--no-deps", *words[2:])
    for line, shown in commands:
        python, *words = shlex.split(line)
        assert python == "python"
        done = run(place, tmp_path, *words)
        assert shows(shown, done.stdout or done.stderr), done.stdout + done.stderr
    listed = run(place, tmp_path, "-m", "bertflow", "--help").stdout
    for option in ("acme", "acme-bert", "rounding"):
        assert re.search(rf"^ +{option} .* bertflow_acme$", listed, flags=re.MULTILINE)
    pip(place, "uninstall", "-y", "bertflow-acme")


def test_the_wheel_gives_the_same_numbers(place: Path, tmp_path: Path) -> None:
    pip(place, "wheel", "--no-deps", "-w", str(tmp_path), str(ACME))
    (wheel,) = tmp_path.glob("*.whl")
    pip(place, "install", "--no-deps", str(wheel))
    words = ["-m", "bertflow", "model=acme", "output=file", "input=texts", "input.texts=[the king, the queen, a dog]"]
    first = run(place, tmp_path, *words, "output.path=a.npz", "save=checkpoint", "save.path=bag")
    assert first.returncode == 0, first.stderr
    again = run(place, tmp_path, *words, "output.path=b.npz", "model.checkpoint=bag")
    assert again.returncode == 0, again.stderr
    learned, loaded = (np.load(tmp_path / name)["embedding"] for name in ("a.npz", "b.npz"))
    np.testing.assert_array_equal(learned, loaded)
    half = run(place, tmp_path, *words, "output.path=c.npz", "save=checkpoint", "save.path=half", "save.dtype=float16")
    assert half.returncode == 0, half.stderr
    assert np.load(tmp_path / "half/vectors.npy").dtype == np.float16
    refused = run(place, tmp_path, *words, "output.path=d.npz", "save=checkpoint", "save.path=b", "save.dtype=bfloat16")
    assert refused.returncode == 2
    assert "save.dtype=bfloat16" in refused.stderr
    words = ["-m", "bertflow", "model=acme", "model.checkpoint=nowhere"]
    refused = run(place, tmp_path, *words)
    assert refused.returncode == 3
    assert "no bag of embeddings: nowhere" in refused.stderr
    vectors = np.load(tmp_path / "bag/vectors.npy")
    names = (tmp_path / "bag/config.json").read_text()
    numbers = {word: number for number, word in enumerate(json.loads(names)["words"])}
    np.testing.assert_allclose(loaded[0], vectors[[numbers["the"], numbers["king"]]].mean(axis=0), rtol=1e-6)
    pip(place, "uninstall", "-y", "bertflow-acme")


def test_the_code_that_the_tutorial_shows_is_the_code() -> None:
    files = [path.read_text(encoding="utf-8") for path in ACME.rglob("*") if path.suffix in (".py", ".yaml", ".toml")]
    shown = re.findall(r"```(?:python|yaml|toml)\n(.*?)```", TUTORIAL, flags=re.DOTALL)
    assert len(shown) >= 5
    for block in shown:
        assert any(block in text for text in files), block


def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "examples/quickstart.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert any("[3, 4, 384]" in str(output) for output in outputs)
