"""The Hub's token appears in nothing that bertflow prints or writes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
import yaml

import bertflow as package
from bertflow.config import conf_dir
from conftest import Command, MakePlugin
from hub_server import TOKEN

IN_CONFIG = ("model=auto", "model.checkpoint=${oc.env:HF_TOKEN}")
OTHER = "hf_of_somebody_else"


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return TOKEN


# G05
@pytest.mark.parametrize(
    "words",
    [
        ["--cfg", "job", "--resolve", *IN_CONFIG],
        ["--cfg", "job", "--resolve", "-p", "model.checkpoint", *IN_CONFIG],
        ["--cfg", "all", "model=auto", f"model.checkpoint={TOKEN}"],
        ["--help", "model=auto", f"model.checkpoint={TOKEN}"],
        ["--info", "config", "model=auto", f"model.checkpoint={TOKEN}"],
        [*IN_CONFIG],
        [*IN_CONFIG, "debug=true"],
        [f"model={TOKEN}"],
        ["model=tiny", f"model.{TOKEN}=1"],
        ["-m", "model=tiny,scratch", f"runtime.device={TOKEN}"],
        ["-m", "output.format=json", "model=tiny", "input=texts", f"input.texts=[{TOKEN}]"],
        ["model=tiny", f"input.ids=[[{TOKEN}]]"],
    ],
    ids=" ".join,
)
def test_it_is_masked_in_what_is_printed(
    words: list[str], token: str, bertflow: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = bertflow(*words)
    assert token not in printed.out + printed.err
    assert "***" in printed.out + printed.err
    monkeypatch.setenv("HF_TOKEN", OTHER)
    shown = bertflow(*(word.replace("${oc.env:HF_TOKEN}", token) for word in words))
    assert token in shown.out + shown.err
    assert shown.code == printed.code


CHATTY = f"""
import logging, sys, warnings
import bertflow
print("import prints", "{TOKEN}")
@bertflow.hookimpl
def run_task():
    print("prints {TOKEN}")
    sys.stderr.writelines(["writes ", "{TOKEN}", chr(10)])
    warnings.warn("warns {TOKEN}")
    logging.getLogger("chatty").error("logs %s", "{TOKEN}")
    return bertflow.hookspecs.Result("chatty", report={{"reports": "{TOKEN}"}})
"""


@pytest.mark.parametrize("launcher", [[], ["-m"]])
def test_it_is_masked_in_what_plugins_and_libraries_print(
    launcher: list[str], plugin: MakePlugin, shell: Command, tmp_path: Path
) -> None:
    env = plugin({"conf/task/chatty.yaml": "plugin: chatty\n", "task/chatty.py": CHATTY})
    shown = shell("task=chatty", *launcher, env={**env, "HF_TOKEN": OTHER})
    assert shown.code == 0
    masked = shell("task=chatty", *launcher, env={**env, "HF_TOKEN": TOKEN})
    assert masked.out == shown.out.replace(TOKEN, "***")
    assert masked.err == shown.err.replace(TOKEN, "***")
    for line in ("import prints ***", "prints ***", "writes ***", "warns ***", "logs ***"):
        assert line in masked.err
    assert "***" in masked.out


def test_every_place_of_a_token_counts(bertflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ("--cfg", "job", "-p", "model.checkpoint", "model=auto", f"model.checkpoint={TOKEN}")
    assert bertflow(*words).out == f"{TOKEN}\n"
    with monkeypatch.context() as patch:
        patch.setenv("HUGGING_FACE_HUB_TOKEN", TOKEN)
        assert bertflow(*words).out == "***\n"
    for variable, place in {
        "HF_TOKEN_PATH": tmp_path / "mine/secret",
        "HF_HOME": tmp_path / "home/token",
        "XDG_CACHE_HOME": tmp_path / "xdg/huggingface/token",
    }.items():
        place.parent.mkdir(parents=True)
        place.write_text(f" {TOKEN}\n")
        with monkeypatch.context() as patch:
            depth = {"HF_TOKEN_PATH": place, "HF_HOME": place.parent, "XDG_CACHE_HOME": place.parents[1]}
            patch.setenv(variable, str(depth[variable]))
            assert bertflow(*words).out == "***\n"


def test_a_word_too_short_for_a_token_masks_nothing(bertflow: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = bertflow("--cfg", "job").out
    monkeypatch.setenv("HF_TOKEN", "null")
    assert "null" in expected
    assert bertflow("--cfg", "job").out == expected


def test_a_sweep_whose_folder_would_hold_it_is_refused(
    token: str, bertflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["-m", "task=plugins", f"hydra.job.name={token}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    refused = bertflow(*words)
    assert refused.code == 2
    assert "HF_TOKEN" in refused.error
    assert list(tmp_path.iterdir()) == []
    assert bertflow(*words[:2]).code == 0
    monkeypatch.setenv("HF_TOKEN", OTHER)
    assert bertflow(*words).code == 0
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and token in path.read_text()] == [
        "multirun.yaml"
    ]


def keys(content: object) -> list[str]:
    if not isinstance(content, dict):
        return []
    return [str(key) for key in content] + [name for value in content.values() for name in keys(value)]


def test_no_key_takes_a_token() -> None:
    found = [key for path in conf_dir().rglob("*.yaml") for key in keys(yaml.safe_load(path.read_text("utf-8")))]
    assert "pad_token_id" in found
    assert [key for key in found if re.search(r"(^|_)(token|auth|password|secret|credentials?|api_key)$", key)] == []


# G08
@pytest.mark.parametrize("value", [TOKEN, "hf_of_somebody_else", True], ids=str)
@pytest.mark.parametrize("field", ["token", "use_auth_token", "hf_token"])
def test_a_token_in_a_checkpoint_is_neither_shown_nor_saved(
    field: str, value: object, with_tokenizer: Path, bertflow: Command, tmp_path: Path
) -> None:
    source, saved = tmp_path / "source", tmp_path / "saved"
    shutil.copytree(with_tokenizer, source)
    for name in ("config.json", "tokenizer_config.json"):
        path = source / name
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {field: value}))
    words = ("model=auto", f"model.checkpoint={source}", "save=checkpoint", f"save.path={saved}")
    assert field not in bertflow(*words, "output.format=json").json["model"]["config"]
    for path in saved.glob("*config.json"):
        assert field not in json.loads(path.read_bytes())
    texts = ["Hello token!", "Nice!"]
    encoded = [transformers.AutoTokenizer.from_pretrained(place)(texts).input_ids for place in (with_tokenizer, saved)]
    assert encoded[0] == encoded[1]


def test_a_token_that_became_a_word_of_the_tokenizer_is_not_saved(
    with_tokenizer: Path, bertflow: Command, tmp_path: Path
) -> None:
    source, saved = tmp_path / "source", tmp_path / "saved"
    tokenizer = transformers.AutoTokenizer.from_pretrained(with_tokenizer, hf_token=OTHER, use_auth_token=OTHER)
    model = transformers.AutoModel.from_pretrained(with_tokenizer)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    holders = {path.name for path in source.iterdir() if OTHER.encode() in path.read_bytes()}
    assert {"tokenizer.json", "tokenizer_config.json"} <= holders
    words = ("model=auto", f"model.checkpoint={source}", "input=texts", "save=checkpoint", f"save.path={saved}")
    assert bertflow(*words).code == 0
    assert not [path for path in saved.iterdir() if OTHER.encode() in path.read_bytes()]
    again = package.run("model=auto", f"model.checkpoint={saved}", rows=["Hello!"]).outputs["last_hidden_state"]
    with torch.inference_mode():
        expected = model(**tokenizer("Hello!", return_tensors="pt")).last_hidden_state.numpy()
    assert abs(again - expected).max() < 1e-5
