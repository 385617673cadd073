"""A checkpoint whose files hold anything at all is loaded or refused: no traceback, no hang, no flood, nothing touched.

The same cases run every time; `BERTFLOW_FUZZ=5000 pytest tests/test_fuzz.py` draws that many new ones a file.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bertflow
from conftest import Fork, snapshot
from warm import MEMORY, Watch

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
BIAS = "encoder.layer.1.output.dense.bias"
PLACE = "{outside}"
"""In a drawn text: the path of the folder that must not be opened."""

FIELDS = {
    "config.json": (
        *("_attn_implementation", "_commit_hash", "_name_or_path", "add_cross_attention", "architectures", "auto_map"),
        *(
            "attn_implementation",
            "attribute_map",
            "base_model_tp_plan",
            "chunk_size_feed_forward",
            "dtype",
            "gguf_file",
        ),
        *("id2label", "is_decoder", "is_encoder_decoder", "label2id", "model_type", "name_or_path", "num_labels"),
        *("output_attentions", "output_hidden_states", "problem_type", "pruned_heads", "quantization_config"),
        *("return_dict", "rope_parameters", "sub_configs", "tie_word_embeddings", "to_dict", "torch_dtype"),
        *("transformers_version", "transformers_weights", "trust_remote_code", "use_cache", "__class__"),
    ),
    "tokenizer_config.json": (
        *("_commit_hash", "add_bos_token", "add_prefix_space", "added_tokens_decoder", "additional_special_tokens"),
        *(
            "auto_map",
            "backend",
            "chat_template",
            "extra_special_tokens",
            "fix_mistral_regex",
            "from_slow",
            "gguf_file",
        ),
        *("is_local", "model_input_names", "model_max_length", "name_or_path", "padding_side", "processor_class"),
        *("special_tokens_map_file", "tokenizer_class", "tokenizer_file", "tokenizer_object", "transformers_version"),
        *("truncation_side", "trust_remote_code", "use_fast", "vocab_file", "__class__"),
    ),
    "tokenizer.json": ("added_tokens", "decoder", "model", "padding", "truncation", "vocab"),
    "header": ("__metadata__", "data_offsets", "dtype", "shape"),
    INDEX: ("metadata", "weight_map", "../x.safetensors", PLACE),
    "bertflow.json": ("bertflow", "files", "sha256", "bytes", "../config.json", PLACE),
}
"""File -> keys that mean something to whoever reads it, and are put in anywhere."""

NUMBERS = {"dtype", "hidden_act", "layer_norm_eps", "num_attention_heads", "torch_dtype"}
"""Fields of the config that say how to compute, where another right value gives other numbers."""


class Pairs(list[tuple[str, Any]]):
    """A JSON object that may hold a key twice."""


@dataclass(frozen=True)
class Raw:
    """JSON text as it stands, valid or not."""

    text: str

    def __repr__(self) -> str:
        return f"Raw({self.text[:20]!r}, {len(self.text)} characters)"


def parsed(text: str | bytes) -> Any:
    return json.loads(text, object_pairs_hook=Pairs)


def dumped(value: Any) -> str:
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {dumped(inner)}" for key, inner in value) + "}"
    if isinstance(value, dict):
        return dumped(Pairs(value.items()))
    if isinstance(value, list):
        return "[" + ", ".join(map(dumped, value)) + "]"
    return json.dumps(value)


def places(value: Any) -> Iterator[tuple[list[Any], int]]:
    """Give every container of a document with each of its indices."""
    for index, inner in enumerate(value if isinstance(value, list) else ()):
        yield value, index
        yield from places(inner[1] if isinstance(value, Pairs) else inner)


TEXTS = st.one_of(
    st.sampled_from(
        [
            *(
                "",
                "\0",
                "\ud800",
                "é" * 5000,
                "..",
                "/",
                "../x",
                "~",
                "a/b",
                "a\nb",
                "model.safetensors",
                "config.json",
            ),
            *("F16", "I32", "BOOL", "F8_E4M3", "float16", "bert", "roberta", "gpt2", "t5", "relu", "os.system"),
            *(PLACE, f"{PLACE}/config.json", f"{PLACE}/{WEIGHTS}", "owner/repo--evil.Evil", "http://127.0.0.1:9/x"),
        ]
    ),
    st.text(max_size=20),
)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([0, 1, -1, 2, 3, 64, 2**31, 2**53, 2**63, 2**64, 10**30, -(2**63), 0.5, 1e308, 1e-320]),
        st.integers(),
        st.floats(),
        TEXTS,
        st.sampled_from(
            [
                *(
                    Raw("NaN"),
                    Raw("-Infinity"),
                    Raw("1e999"),
                    Raw("9" * 5000),
                    Raw("-0"),
                    Raw("01"),
                    Raw(""),
                    Raw("'a'"),
                ),
                *(Raw("[" * n + "]" * n) for n in (100, 900, 100_000)),
                *(Raw('{"a":' * n + "1" + "}" * n) for n in (100, 900, 100_000)),
                *(Raw("[" + "0," * 100_000 + "0]"), Raw('"' + "x" * 1_000_000 + '"')),
            ]
        ),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(TEXTS, inner), max_size=3).map(Pairs),
    max_leaves=4,
)


@st.composite
def documents(draw: st.DrawFn, content: bytes, names: tuple[str, ...]) -> bytes:
    """Draw a JSON text that differs from the given one in a few places, and sometimes in a few bytes."""
    root = [parsed(content)]
    for _ in range(draw(st.integers(1, 3))):
        container, index = draw(st.sampled_from(list(places(root))))
        key = draw(st.sampled_from(names) | TEXTS)
        value = draw(VALUES | st.sampled_from(list(places(root))).map(_get))
        what = draw(st.sampled_from(["set", "set", "set", "drop", "insert", "rename"]))
        if what == "drop":
            del container[index]
            root = root or [Raw("")]
        elif not isinstance(container, Pairs):
            container[index] = value
        elif what == "set":
            container[index] = (container[index][0], value)
        elif what == "rename":
            container[index] = (key, container[index][1])
        else:
            container.insert(index, (key, value))
    text = dumped(root[0]).encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16"])))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        start = draw(st.integers(0, len(text)))
        stop = draw(st.sampled_from([start, start + 1, len(text)]))
        text = text[:start] + draw(st.binary(max_size=4)) + text[stop:]
    return text


def _get(place: tuple[list[Any], int]) -> Any:
    container, index = place
    return copy.deepcopy(container[index][1] if isinstance(container, Pairs) else container[index])


@st.composite
def headers(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw another header for a weights file, its length included.

    The numbers behind it stay aligned as they were: to the last bit, sums depend on that.
    """
    header = draw(documents(content[8:], FIELDS["header"]) | st.just(content[8:]))
    header += b" " * ((len(content[8:]) - len(header)) % 64)
    right, wrong = len(header), [0, 1, max(len(header) - 1, 0), len(header) + 1, 2**31, 2**63, 2**64 - 1]
    return draw(st.sampled_from([*[right] * 6, *wrong])).to_bytes(8, "little") + header


TARGETS = {
    "config.json": "readable",
    "header": "readable",
    INDEX: "sharded",
    "tokenizer.json": "readable",
    "tokenizer_config.json": "readable",
    "bertflow.json": "saved",
}
"""What is changed -> the checkpoint that it belongs to."""

MAY_SPOIL = ("config.json", "tokenizer.json", "tokenizer_config.json")

PROFILE = settings(
    max_examples=int(os.environ.get("BERTFLOW_FUZZ", "40")),
    derandomize="BERTFLOW_FUZZ" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture
def folder(target: str, readable: Path, tmp_path: Path) -> Path:
    """A checkpoint that is whole, so far."""
    kind, folder = TARGETS[target], tmp_path / "checkpoint"
    if kind == "saved":
        bertflow.run("model=auto", f"model.checkpoint={readable}", "save=checkpoint", f"save.path={folder}")
        return folder
    shutil.copytree(readable, folder)
    if kind == "sharded":
        (folder / WEIGHTS).unlink()
        transformers.AutoModel.from_pretrained(readable).save_pretrained(folder, max_shard_size="50KB")
    return folder


@pytest.fixture
def outside(readable: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """Files that no checkpoint may lead to, and a watch on them."""
    watch = Watch(Path(shutil.copytree(readable, tmp_path_factory.mktemp("outside") / "it")))
    yield watch
    watch.close()


Hold = Callable[[bytes], None]


@pytest.fixture
def original(target: str, folder: Path) -> bytes:
    """What is changed: a file, or the header of one."""
    content = (folder / (WEIGHTS if target == "header" else target)).read_bytes()
    return content[: 8 + int.from_bytes(content[:8], "little")] if target == "header" else content


@pytest.fixture
def hold(target: str, original: bytes, folder: Path, outside: Watch, forked: Fork) -> Hold:
    """Write another content, run the checkpoint, and hold the run to what is promised of every checkpoint."""
    path = folder / (WEIGHTS if target == "header" else target)
    numbers = path.read_bytes()[len(original) :]
    rows = ("input=texts", "input.texts=hello cool!")
    words = ("model=auto", f"model.checkpoint={folder}", *rows, "output.format=json", "output.values=true")
    control = forked(*words)

    def check(changed: bytes) -> None:
        path.write_bytes(changed.replace(PLACE.encode(), str(outside.folder).encode()) + numbers)
        before = snapshot(folder.parent)
        run = forked(*words)
        assert snapshot(folder.parent) == before
        assert run.touched == []
        assert outside.seen() == set()
        assert run.memory < control.memory + MEMORY
        if run.code:
            # A config may spoil the numbers, a tokenizer make rows that the model cannot take.
            assert run.code == 3 or (run.code == 4 and target in MAY_SPOIL)
            assert str(folder) in run.error or run.code == 4
        else:
            assert run.err == ""
            assert run.json["weights"]["random"] == []
            if not may_differ(target, original, changed):
                assert run.json["outputs"].items() >= control.json["outputs"].items()

    return check


@pytest.mark.parametrize("target", TARGETS)
def test_any_content_is_loaded_or_refused(target: str, original: bytes, hold: Hold) -> None:
    contents = headers(original) if target == "header" else documents(original, FIELDS[target])
    PROFILE(given(contents)(hold))()


FOUND: list[tuple[str, dict[str, Any]]] = [
    ("config.json", {"chunk_size_feed_forward": 2}),
    ("config.json", {"layer_norm_eps": float("nan")}),
    ("config.json", {"model_type": "roberta"}),
    ("config.json", {"return_dict": False}),
    ("config.json", {"transformers_weights": "float32"}),
    ("config.json", {"transformers_weights": ["../x.safetensors"]}),
    ("config.json", {"\x1b[31m": "\x1b]0;title\x07"}),
    (INDEX, {"weight_map": {BIAS: {"a": "b" * 5000}}}),
    ("tokenizer.json", {"added_tokens": [{"id": 0, "content": "[PAD]", "special": True, "unknown": None}]}),
    ("tokenizer.json", {"model": None}),
    ("tokenizer.json", {"nested": Raw("[" * 100_000 + "]" * 100_000)}),
    ("tokenizer_config.json", {"added_tokens_decoder": {"0": {"content": "[PAD]", "unknown": None}}}),
    ("tokenizer_config.json", {"model_max_length": {}}),
    ("tokenizer_config.json", {"tokenizer_class": ["BertTokenizer"]}),
]
"""What ended in another way once."""


@pytest.mark.parametrize(("target", "changes"), FOUND, ids=lambda part: str(part)[:40])
def test_what_was_found_stays_mended(target: str, changes: dict[str, Any], original: bytes, hold: Hold) -> None:
    hold(dumped(Pairs((json.loads(original) | changes).items())).encode())


def may_differ(target: str, content: bytes, changed: bytes) -> bool:
    """Whether the file says how to compute or how to read a text, and may so give other numbers."""
    if target != "config.json":
        return target.startswith("tokenizer")
    before, after = json.loads(content), json.loads(changed)
    return any(before.get(name) != after.get(name) for name in NUMBERS)
