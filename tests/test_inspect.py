"""`task=inspect` and `task=verify`: what a checkpoint's files say, against what a run finds."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from safetensors import safe_open

import bertflow
from bertflow_standard.inspection import HEADS
from conftest import SIZES, TINY, Command, MakeCheckpoint

PUBLISHED = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_minilm(bertflow: Command, minilm: Path) -> None:
    report = bertflow("model=pretrained", "task=inspect", "output.format=json").json["report"]
    with safe_open(minilm / "model.safetensors", "np") as file:
        tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        floats = [part.get_shape() for part in tensors.values() if part.get_dtype() == "F32"]
    assert report["parameters"] == sum(math.prod(shape) for shape in floats)
    assert report["weights_bytes"] == (minilm / "model.safetensors").stat().st_size
    assert report["dtypes"] == {"F32": len(floats), "I64": 1}
    assert report["longest_row"] == transformers.AutoConfig.from_pretrained(minilm).max_position_embeddings
    assert (report["pooling"], report["normalize"]) == ("mean", True)
    assert "BertTokenizer" in report["tokenizer"]
    assert report["network"].startswith("not needed")
    table = bertflow("model=pretrained", "task=inspect")
    assert "22,713,216" in table.out


@pytest.mark.parametrize("model_type", sorted(HEADS.keys() & TINY.keys()))
def test_what_would_be_random_is_what_a_run_draws(
    model_type: str, bertflow: Command, checkpoint: MakeCheckpoint
) -> None:
    words = ("model=auto", f"model.checkpoint={checkpoint(model_type)}", "output.format=json")
    heads = HEADS[model_type][1]
    counts = bertflow(*words, "task=inspect").json["report"]["random"]
    assert set(counts) == set(heads)
    for head in heads:
        wanted = (*words, f"model.head={head}", "model.weights=new_head")
        drawn = bertflow(*wanted).json["weights"]["random"]
        told = bertflow(*wanted, "task=inspect").json["report"]["random_tensors"]
        assert sorted(told) == drawn
        assert counts[head] == len(drawn) > 0


@pytest.mark.parametrize(
    ("model_type", "auto_class", "head"),
    [
        ("bert", "AutoModelForMaskedLM", "masked_lm"),
        ("bert", "AutoModelForTokenClassification", "token_classification"),
        ("distilbert", "AutoModelForSequenceClassification", "sequence_classification"),
        ("roberta", "AutoModelForMaskedLM", "masked_lm"),
        ("electra", "AutoModelForQuestionAnswering", "question_answering"),
    ],
)
def test_the_heads_in_a_checkpoint(
    model_type: str, auto_class: str, head: str, bertflow: Command, checkpoint: MakeCheckpoint
) -> None:
    words = ("model=auto", f"model.checkpoint={checkpoint(model_type, auto_class)}", "output.format=json")
    assert bertflow(*words, "task=inspect").json["report"]["heads"] == [head]
    assert bertflow(*words, f"model.head={head}").json["weights"]["random"] == []


@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet", "modernbert", "deberta-v2"])
def test_the_longest_row(model_type: str, checkpoint: MakeCheckpoint) -> None:
    words = ("model=auto", f"model.checkpoint={checkpoint(model_type)}")
    longest = bertflow.run(*words, "task=inspect").report["longest_row"]
    if longest is None:
        assert bertflow.run(*words, rows=[[5] * 2 * SIZES["max_position_embeddings"]]).outputs
        return
    assert bertflow.run(*words, rows=[[5] * longest]).outputs
    with pytest.raises(bertflow.InputError, match=f"limit {longest}"):
        bertflow.run(*words, rows=[[5] * (longest + 1)])


def test_torch_is_not_imported() -> None:
    script = "import sys; from bertflow.cli import main; code = main(['model=pretrained', 'task=inspect'])\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}sys.exit(code or 'torch' in sys.modules)"], capture_output=True, check=False
    )
    assert done.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the size of the libraries was measured on Linux")
@pytest.mark.parametrize("dtype", ["auto", "float64"])
def test_the_memory_that_a_run_takes(dtype: str) -> None:
    words = ("model=pretrained", f"model.dtype={dtype}", "runtime.batch_tokens=8192")
    told = bertflow.run(*words, "task=inspect").report["memory_bytes"]
    script = f"""
import bertflow, bertflow_standard.process
bertflow.run({", ".join(map(repr, words))}, rows=[[5] * 512] * 32)
print(bertflow_standard.process.peak_memory())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 0.6 < int(done.stdout) / told < 1.7


@pytest.mark.parametrize("task", ["inspect", "verify"])
def test_a_model_without_a_checkpoint(task: str, bertflow: Command) -> None:
    refused = bertflow(f"task={task}")
    assert refused.code == 2
    assert "model=scratch" in refused.error


def test_the_packaged_weights_are_the_published_ones(bertflow: Command, minilm: Path) -> None:
    rows = bertflow("model=pretrained", "task=verify", "output.format=json").json["report"]
    verdicts = {row["file"]: (row["verdict"], row["sha256"]) for row in rows}
    assert verdicts.pop("model.safetensors") == ("verified", PUBLISHED)
    assert hashlib.sha256((minilm / "model.safetensors").read_bytes()).hexdigest() == PUBLISHED
    assert set(verdicts.values()) == {("not compared", None)}
    assert set(verdicts) == {name for name in os.listdir(minilm) if "." in name} - {"model.safetensors"}


@pytest.mark.parametrize("task", ["verify", "forward"])
def test_a_digest_that_was_given(task: str, bertflow: Command, checkpoint: MakeCheckpoint) -> None:
    folder = checkpoint("bert")
    right = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    words = (f"task={task}", "model=auto", f"model.checkpoint={folder}")
    assert bertflow(*words, f"model.sha256={right.upper()}").code == 0
    assert bertflow(*words, f"model.sha256={{model.safetensors:{right}}}").code == 0
    refused = bertflow(*words, f"model.sha256={PUBLISHED}")
    assert refused.code == 3
    assert right in refused.error
    assert bertflow(*words, f"model.sha256={{missing.safetensors:{right}}}").code == 3
    for wrong in ("abc", "[1]", f"{{../model.safetensors:{right}}}", "{}x"):
        assert bertflow(*words, f"model.sha256={wrong}").code == 2


def test_nothing_to_compare_with(bertflow: Command, checkpoint: MakeCheckpoint) -> None:
    folder = checkpoint("bert")
    refused = bertflow("task=verify", "model=auto", f"model.checkpoint={folder}")
    assert refused.code == 2
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() in refused.error


def test_a_saved_checkpoint_is_verified_whole(bertflow: Command, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    assert bertflow("model=pretrained", "save=checkpoint", f"save.path={folder}").code == 0
    words = ("task=verify", "model=pretrained", f"model.checkpoint={folder}", "output.format=json")
    rows = bertflow(*words).json["report"]
    # The card is not in the manifest: people edit it.
    assert {row["file"]: row["verdict"] for row in rows if row["verdict"] != "verified"} == {
        "README.md": "not compared"
    }
    for row in rows:
        if row["verdict"] == "verified":
            assert row["sha256"] == hashlib.sha256((folder / row["file"]).read_bytes()).hexdigest()
    shutil.copy(folder / "vocab.txt", folder / "special_tokens_map.json")
    refused = bertflow(*words)
    assert refused.code == 3
    assert "special_tokens_map.json" in refused.error
