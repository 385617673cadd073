"""No code, URL or path that a checkpoint names is executed, fetched, or opened outside its folder."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Command
from hub_server import Hub

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="inotify is Linux's; it sees what native code opens too"
)

IN_OPEN = 0x20
CODE = "raise SystemExit('code of a checkpoint was run')\n"


class Outside:
    """A folder that nothing may open a file of."""

    def __init__(self, folder: Path, files: dict[str, str]) -> None:
        self.folder = folder
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        libc = ctypes.CDLL(None, use_errno=True)
        self._events = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._events, os.fsencode(folder), IN_OPEN) > 0

    def opened(self) -> set[str]:
        """Return the names of the files that were opened since the last call."""
        names, head = set(), struct.Struct("iIII")
        try:
            events = os.read(self._events, 1 << 16)
        except BlockingIOError:
            return set()
        while events:
            length = head.unpack_from(events)[3]
            names.add(os.fsdecode(events[head.size : head.size + length].rstrip(b"\0")))
            events = events[head.size + length :]
        return names - {""}

    def close(self) -> None:
        os.close(self._events)


@pytest.fixture
def outside(tmp_path: Path, with_tokenizer: Path) -> Iterator[Outside]:
    files = {
        path.name: path.read_text("utf-8") for path in with_tokenizer.iterdir() if path.suffix in (".json", ".txt")
    }
    canaries = {
        **files,
        "module.py": CODE,
        "tokenizer.4.0.0.json": files["tokenizer.json"],
        "special_tokens_map.json": "{}",
        "added_tokens.json": "{}",
    }
    watched = Outside(tmp_path / "outside", canaries)
    yield watched
    watched.close()


OUT = "../outside"
CLASSES = ("AutoConfig", "AutoModel", "AutoTokenizer")
REMOTE = dict.fromkeys(CLASSES, "evil/repo--module.Class")
LOCAL = dict.fromkeys(CLASSES, "module.Class")

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "a kernel": ("config.json", {"attn_implementation": "evil/kernel"}),
    "a kernel under its private name": ("config.json", {"_attn_implementation": "evil/kernel"}),
    "a kernel of a part": ("config.json", {"text_config": {"attn_implementation": "evil/kernel"}}),
    "a quantizer": ("config.json", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}),
    "other weights": ("config.json", {"transformers_weights": f"{OUT}/model.safetensors"}),
    "another config": ("config.json", {"configuration_files": ["config.4.0.0.json"]}),
    "a tokenizer by the config": ("config.json", {"tokenizer_class": "os.system"}),
    "a function as tokenizer": ("tokenizer_config.json", {"tokenizer_class": "os.system"}),
    "a model as tokenizer": ("tokenizer_config.json", {"tokenizer_class": "AutoModel"}),
    "no class as tokenizer": ("tokenizer_config.json", {"tokenizer_class": ["os.system"]}),
    "an unknown tokenizer": ("tokenizer_config.json", {"tokenizer_class": "NopeTokenizer"}),
    "a tokenizer in a repository": ("tokenizer_config.json", {"auto_map": REMOTE}),
    "a tokenizer of its own": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["module.C", None]}}),
    "arguments": ("tokenizer_config.json", {"init_inputs": [f"{OUT}/vocab.txt"]}),
    "a vocabulary": ("tokenizer_config.json", {"vocab": f"{OUT}/vocab.txt"}),
    "an object": ("tokenizer_config.json", {"tokenizer_object": f"{OUT}/tokenizer.json"}),
    "a newer tokenizer": ("tokenizer_config.json", {"fast_tokenizer_files": [f"{OUT}/tokenizer.4.0.0.json"]}),
    "a file as special token": ("special_tokens_map.json", {"tokenizer_file": f"{OUT}/tokenizer.json"}),
    "a vocabulary as special token": ("special_tokens_map.json", {"vocab_file": f"{OUT}/vocab.txt"}),
}

IGNORED: dict[str, tuple[str, dict[str, Any]]] = {
    "code in a repository": ("config.json", {"auto_map": REMOTE}),
    "code of its own, trusted by itself": ("config.json", {"auto_map": LOCAL, "trust_remote_code": True}),
    "another name": ("config.json", {"_name_or_path": OUT}),
    "an architecture": ("config.json", {"architectures": ["os.system"]}),
    "an adapter": ("adapter_config.json", {"base_model_name_or_path": OUT, "peft_type": "LORA"}),
    "a generator": ("generation_config.json", {"custom_generate": "evil/repo"}),
    "a processor": ("processor_config.json", {"auto_map": {"AutoProcessor": "evil/repo--module.Class"}}),
    "a vocabulary file": ("tokenizer_config.json", {"vocab_file": f"{OUT}/vocab.txt"}),
    "a tokenizer file": ("tokenizer_config.json", {"tokenizer_file": f"{OUT}/tokenizer.json"}),
    "a map": ("tokenizer_config.json", {"special_tokens_map_file": f"{OUT}/special_tokens_map.json"}),
    "added tokens": ("tokenizer_config.json", {"added_tokens_file": f"{OUT}/added_tokens.json"}),
    "the name of its source": ("tokenizer_config.json", {"name_or_path": "mistralai/evil", "is_local": False}),
}


@pytest.fixture
def folder(tmp_path: Path, with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint with pickles and code in it; the working folder is beside it, so that `../outside` is outside."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(with_tokenizer, folder)
    (folder / "module.py").write_text(CODE)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    monkeypatch.chdir(folder)
    return folder


def write(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps((json.loads(path.read_bytes()) if path.is_file() else {}) | fields))


WORDS = ("model=auto", "input=texts", "output.format=json", "output.values=true")


@pytest.mark.parametrize("what", REFUSED)
def test_a_checkpoint_that_names_code_or_files_is_refused(
    what: str, folder: Path, outside: Outside, bertflow: Command, at_hub: Hub
) -> None:
    words = (*WORDS, f"model.checkpoint={folder}")
    assert bertflow(*words).code == 0
    file, fields = REFUSED[what]
    write(folder / file, fields)
    refused = bertflow(*words)
    assert refused.code == 3
    for part in (str(folder), next(iter(fields.get("text_config", fields)))):
        assert part in refused.error
    assert outside.opened() == set()
    assert at_hub.requests == []


@pytest.mark.parametrize("what", IGNORED)
def test_a_name_that_leads_elsewhere_is_ignored(
    what: str, folder: Path, outside: Outside, bertflow: Command, at_hub: Hub
) -> None:
    words = (*WORDS, f"model.checkpoint={folder}")
    expected = bertflow(*words).json["outputs"]
    file, fields = IGNORED[what]
    write(folder / file, fields)
    assert bertflow(*words).json["outputs"] == expected
    assert outside.opened() == set()
    assert at_hub.requests == []


@pytest.mark.parametrize(
    "fields", [{"vocab_file": f"{OUT}/vocab.txt"}, {"tokenizer_file": f"{OUT}/tokenizer.json"}], ids=json.dumps
)
def test_a_tokenizer_without_its_files_is_not_looked_for_elsewhere(
    fields: dict[str, Any], folder: Path, outside: Outside, bertflow: Command
) -> None:
    write(folder / "tokenizer_config.json", fields)
    words = (*WORDS, f"model.checkpoint={folder}")
    assert bertflow(*words).code == 0
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()
    refused = bertflow(*words)
    assert refused.code == 3
    assert "no vocabulary" in refused.error
    assert outside.opened() == set()
    assert bertflow(*words, "input=ids").code == 0


def test_an_index_that_leads_outside_is_refused(folder: Path, outside: Outside, bertflow: Command) -> None:
    words = ("model=auto", f"model.checkpoint={folder}")
    shard = folder / "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(shard)
    shutil.copy(shard, outside.folder)
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": shard.name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    outside.opened()
    assert bertflow(*words).code == 0
    index["weight_map"]["pooler.dense.bias"] = f"{OUT}/{shard.name}"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused = bertflow(*words)
    assert refused.code == 3
    assert f"{OUT}/{shard.name}" in refused.error
    assert outside.opened() == set()


def test_the_watch_sees_what_is_opened(outside: Outside) -> None:
    import tokenizers

    tokenizers.Tokenizer.from_file(str(outside.folder / "tokenizer.json"))
    assert outside.opened() == {"tokenizer.json"}
