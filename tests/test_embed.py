"""`task=embed` and `task=similarity`: the vectors of sentence-transformers and of plain transformers, in any batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import bertflow
import bertflow as package
from conftest import TINY, Command, MakeCheckpoint

EMBED = ("model=pretrained", "task=embed")
TEXTS = [
    "Hello!",
    "The quick brown fox jumps over the lazy dog.",
    "",
    "Ein Satz auf Deutsch, mit Umlauten: äöü.",
    "word " * 100,
    "日本語のテキスト",
    "a longer text about vectors, checkpoints and the people who train them " * 12,
]


@pytest.fixture(scope="session")
def reference(minilm: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(minilm), device="cpu")


def plain(folder: Path, row: list[int]) -> Any:
    """The last hidden states of one row of ids, from plain transformers: [tokens, width]."""
    model = transformers.AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        return model(torch.tensor([row])).last_hidden_state[0].numpy()


def test_the_vectors_are_those_of_sentence_transformers(reference: Any) -> None:
    result = bertflow.run(*EMBED, "task.overflow=truncate", rows=TEXTS)
    np.testing.assert_allclose(result.outputs["embedding"], reference.encode(TEXTS), atol=1e-5)
    assert result.outputs["embedding"].dtype == np.float32
    lengths = [len(reference.tokenizer(text, truncation=True, max_length=256)["input_ids"]) for text in TEXTS]
    assert result.outputs["n_tokens"].tolist() == lengths
    assert result.outputs["id"].tolist() == list(range(len(TEXTS)))


def test_truncation_is_that_of_sentence_transformers_and_is_marked(reference: Any) -> None:
    texts = ["short", "long " * 700]
    result = bertflow.run(*EMBED, "task.overflow=truncate", rows=texts)
    np.testing.assert_allclose(result.outputs["embedding"], reference.encode(texts), atol=1e-5)
    assert result.outputs["truncated"].tolist() == [False, True]
    assert result.outputs["n_tokens"].tolist() == [3, reference.max_seq_length]
    assert result.report["truncated"] == 1


def test_too_long_is_an_error_by_default() -> None:
    assert bertflow.run(*EMBED, rows=["word " * 254]).outputs["n_tokens"].tolist() == [256]
    with pytest.raises(bertflow.InputError, match="row 1: 257 tokens, limit 256"):
        bertflow.run(*EMBED, rows=["fine", "word " * 255])
    assert bertflow.run(*EMBED, "task.max_tokens=512", rows=["word " * 510]).outputs["n_tokens"].tolist() == [512]
    with pytest.raises(bertflow.InputError, match="limit 512"):
        bertflow.run(*EMBED, "task.max_tokens=4000", rows=["word " * 511])


def test_windows_overlap_and_are_averaged_by_length(minilm: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    text = "one two three four five six seven eight nine ten eleven twelve"
    body = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(body) == 12
    words = ("task.overflow=window", "task.max_tokens=7", "task.overlap=2", "task.normalize=false")
    result = bertflow.run(*EMBED, *words, rows=["short", text])
    windows = [[101, *body[start : start + 5], 102] for start in (0, 3, 6, 7)]
    vectors = [plain(minilm, window).mean(0) for window in windows]
    expected = np.average(vectors, axis=0, weights=[len(window) for window in windows])
    np.testing.assert_allclose(result.outputs["embedding"][1], expected, atol=1e-5)
    assert result.outputs["n_tokens"].tolist() == [3, 28]
    assert result.outputs["truncated"].tolist() == [False, False]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.overlap=5"], "no room"),
        (["task.max_tokens=2"], "no room"),
        (["task.overlap=-1"], "task.overlap=-1"),
        (["task.truncate_dim=0"], "task.truncate_dim=0"),
        (["task.pooling=median"], "did you mean mean"),
        (["task.overflow=split"], "truncate"),
        (["task.pooling_mode=mean"], "pooling"),
    ],
)
def test_settings_that_make_no_sense(words: list[str], said: str, bertflow: Command) -> None:
    control = ("model=pretrained", "task=embed", "input=texts", "task.overflow=window", "task.max_tokens=7")
    assert bertflow(*control, "task.overlap=4").code == 0
    refused = bertflow(*control, "input.texts=some text that is too long", *words)
    assert refused.code == 2
    assert said in refused.error


def test_pooling_is_never_guessed(bertflow: Command, checkpoint: MakeCheckpoint) -> None:
    words = ("model=auto", f"model.checkpoint={checkpoint('bert')}", "task=embed")
    refused = bertflow(*words)
    assert refused.code == 2
    assert "task.pooling=mean" in refused.error
    assert bertflow(*words, "task.pooling=mean").code == 0


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "last"])
@pytest.mark.parametrize("model_type", sorted(TINY))
def test_every_pooling_on_every_architecture(pooling: str, model_type: str, checkpoint: MakeCheckpoint) -> None:
    folder = checkpoint(model_type)
    rows = [[7, 8, 9], [5], [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [9, 8, 7]]
    result = bertflow.run(
        "model=auto", f"model.checkpoint={folder}", "task=embed", f"task.pooling={pooling}", rows=rows
    )
    pool = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "max": lambda x: x.max(0), "last": lambda x: x[-1]}
    expected = [pool[pooling](plain(folder, row)) for row in rows]
    np.testing.assert_allclose(result.outputs["embedding"], expected, atol=1e-5)


@pytest.mark.parametrize("model_type", sorted(TINY))
def test_which_architectures_need_no_padding(model_type: str, bertflow: Command, checkpoint: MakeCheckpoint) -> None:
    words = ("model=auto", f"model.checkpoint={checkpoint(model_type)}", "task=embed", "task.pooling=mean")
    run = bertflow(*words)
    assert run.code == 0
    said = "rows are sorted and padded, not packed" in run.err
    assert said == (model_type in ("deberta-v2", "mpnet"))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    budget=st.sampled_from([1, 7, 64, 4096]),
    part_rows=st.sampled_from([1, 3, 4096]),
    model_type=st.sampled_from(["bert", "modernbert", "roberta", "mpnet"]),
)
def test_packed_is_padded_is_one_by_one(
    lengths: list[int], budget: int, part_rows: int, model_type: str, checkpoint: MakeCheckpoint
) -> None:
    random = np.random.default_rng(sum(lengths))
    rows = [random.integers(5, 7999, length).tolist() for length in lengths]
    words = ("model=auto", f"model.checkpoint={checkpoint(model_type)}")
    embed = (*words, "task=embed", "task.pooling=mean", f"engine.part_rows={part_rows}")
    packed = bertflow.run(*embed, f"runtime.batch_tokens={budget}", rows=rows).outputs["embedding"]
    padded = bertflow.run(*words, rows=rows).outputs["last_hidden_state"]
    means = [states[: len(row)].mean(0) for states, row in zip(padded, rows, strict=True)]
    np.testing.assert_allclose(packed, means, atol=2e-6)
    alone = bertflow.run(*embed, rows=rows[:1]).outputs["embedding"]
    np.testing.assert_allclose(packed[0], alone[0], atol=1e-6)


def test_a_vector_does_not_depend_on_its_company() -> None:
    random = np.random.default_rng(0)
    text = "the text that is looked at"
    alone = bertflow.run(*EMBED, rows=[text]).outputs["embedding"][0]
    company = [" ".join(["word"] * int(length)) for length in random.integers(1, 200, 40)]
    for place in (0, 17, 40):
        rows = [*company[:place], text, *company[place:]]
        np.testing.assert_allclose(bertflow.run(*EMBED, rows=rows).outputs["embedding"][place], alone, atol=1e-6)


def test_a_mask_inside_a_row_is_honoured(minilm: Path) -> None:
    rows = [{"input_ids": [101, 7592, 999, 102], "attention_mask": [1, 0, 1, 1]}, {"input_ids": [101, 7592, 102]}]
    result = bertflow.run(*EMBED, "task.normalize=false", rows=rows).outputs["embedding"]
    model = transformers.AutoModel.from_pretrained(minilm)
    with torch.inference_mode():
        states = model(torch.tensor([rows[0]["input_ids"]]), torch.tensor([rows[0]["attention_mask"]]))
    np.testing.assert_allclose(result[0], states.last_hidden_state[0, [0, 2, 3]].mean(0), atol=1e-5)


def test_cut_vectors_are_normalised_after_the_cut(reference: Any) -> None:
    whole = reference.encode(TEXTS)
    result = bertflow.run(*EMBED, "task.truncate_dim=64", "task.overflow=truncate", rows=TEXTS).outputs["embedding"]
    expected = whole[:, :64] / np.linalg.norm(whole[:, :64], axis=1, keepdims=True)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_prompt_stands_before_each_text(reference: Any) -> None:
    prompted = bertflow.run(*EMBED, "task.prompt='query: '", rows=["what is this", "and that"]).outputs["embedding"]
    expected = reference.encode(["what is this", "and that"], prompt="query: ")
    np.testing.assert_allclose(prompted, expected, atol=1e-5)


def test_the_loaded_model_is_saved_as_it_was(tmp_path: Path, minilm: Path) -> None:
    folder = tmp_path / "saved"
    bertflow.run(*EMBED, "save=checkpoint", f"save.path={folder}", rows=["Hello!"])
    ours, theirs = (transformers.AutoModel.from_pretrained(place).state_dict() for place in (folder, minilm))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _edit(folder: Path, name: str, change: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "modules.json",
            lambda stages: [*stages, {"type": "sentence_transformers.models.Dense", "path": "3"}],
            "Dense",
        ),
        ("modules.json", lambda stages: [stages[0], {**stages[1], "path": "../elsewhere"}], "leads outside"),
        ("modules.json", lambda stages: [stages[0], {**stages[1], "path": ".."}], "leads outside"),
        ("modules.json", lambda _: {}, "no stages"),
        ("1_Pooling/config.json", lambda config: {**config, "pooling_mode_mean_tokens": False}, "pooling"),
        ("1_Pooling/config.json", lambda _: [], "not a JSON object"),
    ],
)
def test_modules_that_are_no_embedders(
    name: str, change: Any, said: str, bertflow: Command, minilm: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(minilm, folder)
    words = ("model=pretrained", f"model.checkpoint={folder}", "task=embed")
    assert bertflow(*words).code == 0
    _edit(folder, name, change)
    refused = bertflow(*words)
    assert refused.code == 3
    assert said in refused.error


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("modules.json", lambda stages: [*stages, {"type": "sentence_transformers.models.Dense", "path": "3"}]),
        ("1_Pooling/config.json", lambda _: {"pooling_mode": "weightedmean"}),
    ],
)
def test_modules_are_left_out_on_request(name: str, change: Any, bertflow: Command, copied: Path, minilm: Path) -> None:
    _edit(copied, name, change)
    own = (f"model.checkpoint={copied}", "task.pooling=mean", "task.normalize=false")
    shown = ("output.format=json", "output.values=true")
    found = bertflow(*EMBED, *own, *shown, "input.ids=[[101,7592,102]]").json["outputs"]["embedding"]["values"]
    np.testing.assert_allclose(found, plain(minilm, [101, 7592, 102]).mean(0)[None], atol=1e-5)


@pytest.fixture
def copied(minilm: Path, tmp_path: Path) -> Path:
    """A copy of the MiniLM checkpoint that a test may edit."""
    folder = tmp_path / "copied"
    shutil.copytree(minilm, folder)
    return folder


SETTINGS: dict[str, dict[str, dict[str, Any] | None]] = {
    "a prompt": {
        "config_sentence_transformers.json": {"prompts": {"q": "Query: ", "d": "Text: "}, "default_prompt_name": "d"}
    },
    "prompts, none of them by default": {"config_sentence_transformers.json": {"prompts": {"q": "Query: "}}},
    "lower case": {
        "sentence_bert_config.json": {"do_lower_case": True},
        "tokenizer_config.json": {"do_lower_case": False},
    },
    "a limit": {"sentence_bert_config.json": {"max_seq_length": 9}},
    "the tokenizer's limit": {
        "sentence_bert_config.json": {"max_seq_length": None},
        "tokenizer_config.json": {"model_max_length": 7},
    },
    "an older name": {
        "sentence_bert_config.json": None,
        "sentence_roberta_config.json": {"max_seq_length": 9},
    },
    "pooling in the words of today": {
        "1_Pooling/config.json": {"pooling_mode": "lasttoken", "pooling_mode_mean_tokens": None}
    },
    "all of it": {
        "config_sentence_transformers.json": {"prompts": {"d": "Text: "}, "default_prompt_name": "d"},
        "sentence_bert_config.json": {"do_lower_case": True, "max_seq_length": 12},
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True},
    },
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_checkpoint_is_used_as_it_says(kind: str, copied: Path) -> None:
    from sentence_transformers import SentenceTransformer

    for name, values in SETTINGS[kind].items():
        if values is None:
            (copied / name).unlink()
        elif not (copied / name).exists():
            (copied / name).write_text(json.dumps(values))
        else:
            _edit(copied, name, lambda content, values=values: _merged(content, values))
    if "lower" in kind or "all" in kind:  # Else the vocabulary's own tokenizer lowercases anyway.
        _edit(copied, "tokenizer.json", lambda content: {**content, "normalizer": None})
    texts = [*TEXTS, "ΣΊΣΥΦΟΣ İstanbul ẞ", "UPPER case " * 20]
    reference = SentenceTransformer(str(copied), device="cpu")
    result = bertflow.run(*EMBED, f"model.checkpoint={copied}", "task.overflow=truncate", rows=texts)
    np.testing.assert_allclose(result.outputs["embedding"], reference.encode(texts), atol=1e-5)


def test_a_lone_surrogate_is_refused_by_its_row_in_lower_case_too(copied: Path) -> None:
    _edit(copied, "sentence_bert_config.json", lambda content: {**content, "do_lower_case": True})
    with pytest.raises(bertflow.InputError, match="row 1"):
        bertflow.run(*EMBED, f"model.checkpoint={copied}", rows=["fine", "\ud800"])


def _merged(content: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**content, **values}.items() if value is not None}


def test_a_prompt_that_the_pooling_leaves_out(bertflow: Command, copied: Path) -> None:
    _edit(copied, "1_Pooling/config.json", lambda config: {**config, "include_prompt": False})
    words = (*EMBED, f"model.checkpoint={copied}")
    assert bertflow(*words).code == 0
    refused = bertflow(*words, "task.prompt='query: '")
    assert refused.code == 2
    assert "task.prompt" in refused.error
    settings = {"prompts": {"d": "Text: "}, "default_prompt_name": "d"}
    _edit(copied, "config_sentence_transformers.json", lambda config: {**config, **settings})
    assert bertflow(*words).code == 2
    assert bertflow(*words, "task.prompt=''").code == 0
    _edit(copied, "config_sentence_transformers.json", lambda config: {**config, "default_prompt_name": "x"})
    assert bertflow(*words).code == 3


def test_a_row_without_token_types_shares_a_pass_with_one_that_has_them(minilm: Path) -> None:
    rows = [{"input_ids": [101, 7592, 102], "token_type_ids": [1, 1, 1]}, {"input_ids": [101, 4658, 1012, 102]}]
    found = bertflow.run(*EMBED, "task.normalize=false", rows=rows).outputs["embedding"]
    model = transformers.AutoModel.from_pretrained(minilm)
    with torch.inference_mode():
        for vector, row in zip(found, rows, strict=True):
            states = model(**{name: torch.tensor([values]) for name, values in row.items()}).last_hidden_state[0]
            np.testing.assert_allclose(vector, states.mean(0), atol=1e-5)


def test_a_pooling_that_is_named_keeps_the_checkpoint_s_norm() -> None:
    named = bertflow.run(*EMBED, "task.pooling=mean", rows=TEXTS[:2]).outputs["embedding"]
    np.testing.assert_array_equal(named, bertflow.run(*EMBED, rows=TEXTS[:2]).outputs["embedding"])


def test_rows_carry_what_they_like_but_all_the_same() -> None:
    rows = [{"text": "one", "id": "a", "keep": {"tags": [1]}}, {"text": "two", "id": "b", "keep": {"tags": [1, 2]}}]
    outputs = bertflow.run(*EMBED, "engine.part_rows=1", rows=rows).outputs
    assert outputs["tags"].tolist() == [[1], [1, 2]]
    assert outputs["id"].tolist() == ["a", "b"]
    for part_rows in (1, 2):
        with pytest.raises(bertflow.InputError, match="different columns"):
            bertflow.run(*EMBED, f"engine.part_rows={part_rows}", rows=[*rows[:1], {"text": "two"}])


def test_text_columns_as_json(bertflow: Command, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "one", "key": "a"}\n')
    words = (*EMBED, "input=file", f"input.path={tmp_path / 'rows.jsonl'}", "input.id_column=key")
    document = bertflow(*words, "output.format=json", "output.values=true").json
    assert document["outputs"]["id"]["values"] == ["a"]


def test_a_second_text_is_not_dropped(bertflow: Command) -> None:
    refused = bertflow(*EMBED, "input=texts", "input.texts=[one]", "input.pairs=[two]")
    assert refused.code == 2
    assert "task=similarity" in refused.error
    with pytest.raises(package.InputError, match="second text"):
        package.run(*EMBED, rows=[{"text": "one", "text_pair": "two"}])


def test_ids_are_cut_without_a_tokenizer(bertflow: Command, checkpoint: MakeCheckpoint) -> None:
    model = ("model=auto", f"model.checkpoint={checkpoint('bert')}")
    words = (*model, "task=embed", "task.pooling=last", "task.max_tokens=2", "output.format=json")
    run = bertflow(*words, "task.overflow=truncate", "input.ids=[[5,6,7]]", "output.values=true")
    assert run.json["report"]["truncated"] == 1
    assert "without regard" in run.err
    expected = plain(checkpoint("bert"), [5, 6])[-1]
    np.testing.assert_allclose(run.json["outputs"]["embedding"]["values"], expected[None], atol=1e-5)


def test_pairs_are_scored_by_their_cosine(reference: Any) -> None:
    ones, others = ["a cat sits on a mat", "tax law"], ["the cat is sitting", "a cat sits on a mat"]
    rows = [{"text": one, "text_pair": other} for one, other in zip(ones, others, strict=True)]
    result = bertflow.run("model=pretrained", "task=similarity", rows=rows)
    expected = (reference.encode(ones) * reference.encode(others)).sum(1)
    np.testing.assert_allclose(result.outputs["similarity"], expected, atol=1e-5)


def test_pairs_on_the_command_line(bertflow: Command) -> None:
    words = ("model=pretrained", "task=similarity", "input=texts", "output.format=json", "output.values=true")
    same = bertflow(*words, 'input.texts=["Hello!"]', 'input.pairs=["Hello!"]').json["outputs"]["similarity"]["values"]
    np.testing.assert_allclose(same, [1], atol=1e-5)
    assert bertflow(*words).code == 4
    refused = bertflow(*words, 'input.pairs=["one"]')
    assert refused.code == 4
    assert "1 texts" in refused.error


def test_nothing_is_embedded_of_nothing() -> None:
    with pytest.raises(bertflow.InputError, match="empty batch"):
        bertflow.run(*EMBED, rows=[])
