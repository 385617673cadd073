"""What must happen when something is wrong with a checkpoint: each fault by its number, beside a control without it.

Every command runs in a child of one warmed parent, limited and watched. A refusal is one line and an exit code, names
what is wrong, and leaves every file as it was. The faults of inputs (E) stand in `test_input.py`, those of saving (F)
in `test_save.py`, of the network (G) in `test_hub.py`, of the command line and of plugins (H) in `test_cli.py` and
`test_plugins.py`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import bertflow
from conftest import Fork, Forked, MakeCheckpoint, snapshot
from warm import Watch

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
BIAS = "encoder.layer.1.output.dense.bias"
WORDS_TABLE = "embeddings.word_embeddings.weight"
SHARDS = ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors")

Damage = Callable[[Path], object]


@dataclass(frozen=True)
class Fault:
    """What is done to the checkpoint, and what the answer must name.

    In `said`, `{folder}` is the checkpoint, `{old}` and `{new}` are the sizes of its weights before and after.
    """

    do: Damage
    said: tuple[str, ...]
    base: str = "bert"
    words: tuple[str, ...] = ("model=auto",)


@pytest.fixture(scope="session")
def bases(checkpoint: MakeCheckpoint, readable: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The whole checkpoints that the faults are done to."""
    sharded, saved = tmp_path_factory.mktemp("sharded"), tmp_path_factory.mktemp("saved") / "checkpoint"
    transformers.AutoModel.from_pretrained(checkpoint("bert")).save_pretrained(sharded, max_shard_size="50KB")
    assert {INDEX, *SHARDS} <= set(os.listdir(sharded))
    bertflow.run("model=auto", f"model.checkpoint={readable}", "save=checkpoint", f"save.path={saved}")
    return {"bert": checkpoint("bert"), "readable": readable, "sharded": sharded, "saved": saved}


Copy = Callable[[str], Path]


@pytest.fixture
def copy(bases: Mapping[str, Path], tmp_path: Path) -> Copy:
    """Copy one of the whole checkpoints, to be damaged."""
    return lambda base: Path(shutil.copytree(bases[base], tmp_path / "checkpoint"))


Refuse = Callable[[Fault], tuple[Forked, Forked]]


@pytest.fixture
def refuse(forked: Fork, copy: Copy, tmp_path: Path) -> Refuse:
    """Run the control, do the fault, and hold the refusal to what all refusals have in common; return both runs."""

    def check(fault: Fault) -> tuple[Forked, Forked]:
        folder = copy(fault.base)
        words = (*fault.words, f"model.checkpoint={folder}")
        old = _size(folder)
        control = forked(*words)
        assert control.code == 0, control.err
        fault.do(folder)
        before = snapshot(tmp_path)
        refused = forked(*words)
        assert refused.code == 3, refused.err
        for part in fault.said:
            assert part.format(folder=folder, old=old, new=_size(folder)) in refused.error
        assert snapshot(tmp_path) == before
        assert refused.touched == []
        return control, refused

    return check


def _size(folder: Path) -> int:
    return (folder / WEIGHTS).stat().st_size if (folder / WEIGHTS).is_file() else 0


# What is done to files.


def cut(name: str, place: float) -> Damage:
    """Keep the first part of a file: a share of it, or that many bytes."""

    def do(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(place * len(content) if 0 < place < 1 else place)])

    return do


def write(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def delete(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def edit(name: str = "config.json", drop: str = "", **changes: object) -> Damage:
    """Set and drop keys of a JSON file."""

    def do(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | changes
        content.pop(drop, None)
        (folder / name).write_text(json.dumps(content))

    return do


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Change the tensors of the weights file."""

    def do(folder: Path) -> None:
        content = load_file(folder / WEIGHTS)
        change(content)
        save_file(content, folder / WEIGHTS, {"format": "pt"})

    return do


def header_length(length: int, size: int | None = None) -> Damage:
    """Let the weights file claim a header of that length, and have that size; what is added takes no space."""

    def do(folder: Path) -> None:
        with (folder / WEIGHTS).open("r+b") as file:
            file.write(length.to_bytes(8, "little"))
            if size:
                file.truncate(size)

    return do


def poison(value: float, dtype: torch.dtype = torch.float32) -> Damage:
    """Set one number, in a row of the embedding that no input of these tests touches."""

    def change(content: dict[str, torch.Tensor]) -> None:
        content |= {name: tensor.to(dtype) for name, tensor in content.items()}
        content[WORDS_TABLE][7999, 31] = value

    return tensors(change)


def flip(name: str, bit: int) -> Damage:
    """Flip a bit of the file's last number; counted from its lowest."""

    def do(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-4 + bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(content)

    return do


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def redirect(tensor: str, target: str) -> Damage:
    """Let the index say that the tensor is in another file."""

    def do(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"][tensor] = target
        (folder / INDEX).write_text(json.dumps(index))

    return do


FILE = "{folder}/" + WEIGHTS
AGAIN = "download or save the checkpoint again"

WEIGHTS_FAULTS = {
    "A01 cut in the header": Fault(cut(WEIGHTS, 100), (FILE, "{new}", AGAIN)),
    "A01 cut in the middle": Fault(cut(WEIGHTS, 0.5), (FILE, "{old}", "{new}", AGAIN)),
    "A01 without the last byte": Fault(cut(WEIGHTS, -1), (FILE, "{old}", "{new}", AGAIN)),
    "A02 empty": Fault(cut(WEIGHTS, 0), (FILE, AGAIN)),
    "A02 4 bytes": Fault(cut(WEIGHTS, 4), (FILE, AGAIN)),
    "A02 8 bytes": Fault(cut(WEIGHTS, 8), (FILE, AGAIN)),
    "A02 8 bytes for an empty header": Fault(write(WEIGHTS, bytes(8)), (FILE, AGAIN)),
    "A03 a tail of 100 bytes": Fault(
        lambda folder: write(WEIGHTS, (folder / WEIGHTS).read_bytes() + bytes(100))(folder),
        (FILE, "{old}", "{new}", AGAIN),
    ),
    "A07 bit 0 flipped": Fault(flip(WEIGHTS, 0), (FILE, "sha256 mismatch"), "saved"),
    "A07 bit 22 flipped": Fault(flip(WEIGHTS, 22), (FILE, "sha256 mismatch"), "saved"),
    "A07 bit 30 flipped": Fault(flip(WEIGHTS, 30), (FILE, "sha256 mismatch"), "saved"),
    "A07 a digit changed in the config": Fault(
        edit(layer_norm_eps=1e-11), ("{folder}/config.json", "sha256 mismatch"), "saved"
    ),
    "A07 a word changed in the tokenizer": Fault(
        lambda folder: write("tokenizer.json", (folder / "tokenizer.json").read_text().replace("cool", "cold"))(folder),
        ("{folder}/tokenizer.json", "sha256 mismatch"),
        "saved",
    ),
    "A07 a file is gone": Fault(delete("tokenizer_config.json"), ("{folder}/tokenizer_config.json",), "saved"),
    "A10 a tensor is missing": Fault(tensors(lambda content: content.pop(BIAS)), ("{folder}", BIAS)),
    "A11 a tensor too many in the body": Fault(
        tensors(lambda content: content.update({"encoder.layer.1.extra.weight": torch.zeros(3)})),
        ("{folder}", "encoder.layer.1.extra.weight"),
    ),
    "A11 a tensor too many of no module": Fault(
        tensors(lambda content: content.update({"stray": torch.zeros(3)})), ("{folder}", "stray")
    ),
    "A14 a NaN": Fault(poison(float("nan")), (FILE, WORDS_TABLE)),
    "A14 an infinity": Fault(poison(float("inf")), (FILE, WORDS_TABLE)),
    "A14 a NaN in half precision": Fault(poison(float("nan"), torch.float16), (FILE, WORDS_TABLE)),
    "A14 an infinity in bfloat16": Fault(poison(float("-inf"), torch.bfloat16), (FILE, WORDS_TABLE)),
    "A14 a NaN in double precision": Fault(poison(float("nan"), torch.float64), (FILE, WORDS_TABLE)),
    "A18 no weights": Fault(delete(WEIGHTS), ("{folder}", WEIGHTS, INDEX)),
    "A19 a link to nothing": Fault(
        both(delete(WEIGHTS), lambda folder: (folder / WEIGHTS).symlink_to("../gone.safetensors")),
        (FILE, "../gone.safetensors"),
    ),
}


@pytest.mark.parametrize("fault", WEIGHTS_FAULTS)
def test_damaged_weights_are_refused(fault: str, refuse: Refuse) -> None:
    refuse(WEIGHTS_FAULTS[fault])


@pytest.mark.parametrize(
    ("length", "size"),
    [(2**63, None), (100_000_001, None), (100_000_001, 100_000_200), (100_000_000, 100_000_200)],
    ids=["A04 2**63", "A04 beyond the file", "A04 beyond the format", "A04 all zeros"],
)
def test_a_header_that_is_too_long_costs_nothing(length: int, size: int | None, refuse: Refuse) -> None:
    control, refused = refuse(Fault(header_length(length, size), (FILE,)))
    assert refused.cpu < control.cpu + 1
    assert refused.memory < control.memory + 200e6


def test_a_tensor_that_is_missing_is_drawn_only_on_request(  # A10
    forked: Fork, copy: Copy
) -> None:
    folder = copy("bert")
    tensors(lambda content: content.pop(BIAS))(folder)
    words = ("model=auto", f"model.checkpoint={folder}", "output.format=json")
    assert forked(*words).code == 3
    assert forked(*words, "model.weights=new_head").code == 3
    assert forked(*words, "model.weights=any").json["weights"]["random"] == [BIAS]


def test_a_task_head_without_a_place_is_dropped_and_said(forked: Fork, checkpoint: MakeCheckpoint) -> None:  # A11
    words = ("model=pretrained", f"model.checkpoint={checkpoint('bert', 'AutoModelForMaskedLM')}")
    report = forked(*words, "output.format=json").json["weights"]
    assert report["random"] == []
    assert report["unused"]
    assert all(name.startswith("cls.") for name in report["unused"])
    assert "cls" in forked(*words).out


def test_buffers_that_transformers_ignores_are_dropped_and_counted(  # A11
    forked: Fork, copy: Copy
) -> None:
    folder = copy("bert")
    words = ("model=auto", f"model.checkpoint={folder}", "output.format=json", "output.values=true")
    control = forked(*words).json
    tensors(lambda content: content.update({"embeddings.position_ids": torch.arange(64)[None]}))(folder)
    run = forked(*words).json
    assert run["outputs"] == control["outputs"]
    assert run["weights"]["loaded"] == control["weights"]["loaded"]
    assert run["weights"]["unused"] == ["embeddings.position_ids"]


def test_a_cast_is_said_once(forked: Fork, copy: Copy) -> None:  # A16
    folder = copy("bert")
    words = ("model=auto", f"model.checkpoint={folder}")
    assert "->F32" not in forked(*words).out
    tensors(lambda content: content.update({name: tensor.half() for name, tensor in content.items()}))(folder)
    run = forked(*words)
    assert (run.code, run.err) == (0, "")
    assert run.out.count("cast F16->F32") == 1
    assert re.search(r"last_hidden_state +\[3, 4, 32\] float32", run.out)


@pytest.mark.parametrize("model", ["auto", "pretrained"])
def test_weights_of_another_architecture(model: str, refuse: Refuse, checkpoint: MakeCheckpoint) -> None:  # A17
    weights = (checkpoint("distilbert") / WEIGHTS).read_bytes()
    refuse(Fault(write(WEIGHTS, weights), ("{folder}",), words=(f"model={model}",)))


def test_weights_that_belong_to_somebody_else(forked: Fork, bases: Mapping[str, Path]) -> None:  # A20
    # Root reads everything; and nobody but its owner may enter pytest's folders.
    user = 65534 if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(shutil.copytree(bases["bert"], Path(place, "checkpoint")))
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.chmod(0o644)
        words = ("model=auto", f"model.checkpoint={folder}")
        assert forked(*words, user=user, cwd=place).code == 0
        (folder / WEIGHTS).chmod(0o600 if user else 0)
        before = {file: file.stat().st_mode for file in folder.iterdir()}
        refused = forked(*words, user=user, cwd=place)
        assert refused.code == 5
        assert "permission denied" in refused.error
        assert str(folder / WEIGHTS) in refused.error
        assert {file: file.stat().st_mode for file in folder.iterdir()} == before


def test_a_head_that_the_checkpoint_lacks(forked: Fork, checkpoint: MakeCheckpoint) -> None:  # A21
    words = ("model=auto", f"model.checkpoint={checkpoint('bert')}", "output.format=json")
    assert forked(*words).code == 0
    refused = forked(*words, "model.head=sequence_classification")
    assert refused.code == 3
    for part in (str(checkpoint("bert")), "classifier.", "model.weights=new_head"):
        assert part in refused.error
    report = forked(*words, "model.head=sequence_classification", "model.weights=new_head").json["weights"]
    assert report["random"] == ["classifier.bias", "classifier.weight"]


LIST = "{folder}/" + INDEX

INDEX_FAULTS = {
    "B01 a shard is missing": Fault(delete(SHARDS[1]), ("{folder}/" + SHARDS[1], INDEX)),
    "B05 without metadata": Fault(edit(INDEX, drop="metadata"), (LIST, "metadata")),
    "B05 without weight_map": Fault(edit(INDEX, drop="weight_map"), (LIST, "weight_map")),
    "B05 with a list for a weight_map": Fault(edit(INDEX, weight_map=[SHARDS[0]]), (LIST, "weight_map")),
    "B06 cut": Fault(cut(INDEX, 0.5), (LIST,)),
    "B06 empty": Fault(cut(INDEX, 0), (LIST,)),
    "B09 a shard is a copy of another": Fault(
        lambda folder: shutil.copyfile(folder / SHARDS[0], folder / SHARDS[1]), ("{folder}",)
    ),
}


@pytest.mark.parametrize("fault", INDEX_FAULTS)
def test_a_damaged_index_is_refused(fault: str, refuse: Refuse) -> None:
    found = INDEX_FAULTS[fault]
    refuse(Fault(found.do, found.said, "sharded"))


@pytest.fixture
def outside(bases: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """A folder of valid files outside of the checkpoint, and a watch on whether anything opens them."""
    folder = tmp_path_factory.mktemp("outside")
    shutil.copytree(bases["readable"], folder, dirs_exist_ok=True)
    shutil.copyfile(bases["sharded"] / SHARDS[1], folder / "x.safetensors")
    watch = Watch(folder)
    yield watch
    watch.close()


@pytest.mark.parametrize("target", ["../../{name}/x.safetensors", "{outside}/x.safetensors", "..", ""])
def test_an_index_never_leads_outside(target: str, refuse: Refuse, outside: Watch) -> None:  # B02
    name = target.format(outside=outside.folder, name=outside.folder.name)
    refuse(Fault(redirect(BIAS, name), (LIST, name), "sharded"))
    assert outside.seen() == set()


def test_the_watch_sees_what_is_opened(forked: Fork, outside: Watch) -> None:
    assert outside.seen() == set()
    assert forked("model=auto", f"model.checkpoint={outside.folder}").touched == []
    assert {"config.json", WEIGHTS} <= outside.seen()
    assert any("mkdir" in line for line in forked("model=tiny", "save=checkpoint", "save.path=saved").touched)


CONFIG = "{folder}/config.json"


def field(*said: str, words: tuple[str, ...] = ("model=auto",), **changes: object) -> Fault:
    """A fault of fields of the config; without further words the answer must say each as `name=value`."""
    names = said or tuple(f"{name}={json.dumps(value)}" for name, value in changes.items())
    return Fault(edit(**changes), said or (CONFIG, *names), words=words)  # type: ignore[arg-type]


CONFIG_FAULTS = {
    "C01 empty": Fault(write("config.json", ""), (CONFIG,)),
    "C01 cut": Fault(cut("config.json", 0.5), (CONFIG,)),
    "C01 binary": Fault(write("config.json", b"\x80\x02}q\0\xff\xfe"), (CONFIG,)),
    "C01 a list": Fault(write("config.json", "[]"), (CONFIG,)),
    "C03 null": Fault(write("config.json", "null"), (CONFIG,)),
    "C04 hidden_size": field("embeddings.", "32", "64", hidden_size=64),
    "C04 intermediate_size": field("layer.0.intermediate.dense.", "[64", "[128", intermediate_size=128),
    "C04 vocab_size": field(WORDS_TABLE, "[8000, 32]", "[9000, 32]", vocab_size=9000),
    "C04 max_position_embeddings": field(
        "embeddings.position_embeddings.weight", "[64, 32]", "[128, 32]", max_position_embeddings=128
    ),
    "C04 type_vocab_size": field("embeddings.token_type_embeddings.weight", "[2, 32]", "[3, 32]", type_vocab_size=3),
    "C05 a layer less": field(num_hidden_layers=1),
    "C05 a layer more": field(num_hidden_layers=3),
    "C10 no heads": field(num_attention_heads=0),
    "C10 no width": field(hidden_size=0),
    "C10 a negative width": field(hidden_size=-32),
    "C10 heads that do not divide the width": field(CONFIG, "32", "5", num_attention_heads=5),
    "C10 a billion words": field("vocab_size", "1000000000", vocab_size=10**9),
    "C12 a text for a width": field(hidden_size="32"),
    "C12 a fraction for a width": field(hidden_size=32.5),
    "C12 null for a width": field(hidden_size=None),
    "C12 true for a number of heads": field(num_attention_heads=True),
    "C12 a text for a number of layers": field(num_hidden_layers="2"),
    "C12 null for a vocabulary": field(vocab_size=None),
    "C12 a text for a type vocabulary": field("type_vocab_size", type_vocab_size="2"),
    "C12 null for a type vocabulary": field("type_vocab_size", type_vocab_size=None),
    "C12 a text for a rate": field("hidden_dropout_prob", hidden_dropout_prob="much"),
    "C12 a list for a rate": field("attention_probs_dropout_prob", attention_probs_dropout_prob=[0.1]),
    "C12 a text for an epsilon": field("layer_norm_eps", layer_norm_eps="small"),
    "C12 null for an epsilon": field("layer_norm_eps", layer_norm_eps=None),
    "C12 a text for the padding": field("pad_token_id", pad_token_id="none"),
    "C12 a number for an activation": field("hidden_act", hidden_act=3),
    "C12 null for an activation": field("hidden_act", hidden_act=None),
    "C12 a list for an architecture": field("model_type", model_type=["bert"]),
    "C12 null for an architecture": field("model_type", model_type=None),
    "C15 an unknown architecture": field("{folder}", "nope", model_type="nope"),
    "C15 an unknown architecture for BertModel": field(
        "{folder}", "nope", model_type="nope", words=("model=pretrained",)
    ),
    "C16 an unknown activation": field("hidden_act=nope", "gelu", "relu", hidden_act="nope"),
    "C18 an unknown dtype": field("dtype=nonsense", "float32", dtype="nonsense"),
    "C18 an attribute of torch that is no dtype": field("dtype=load", "float32", dtype="load"),
    "C18 a number for a dtype": field("dtype=3", "float32", dtype=3),
    "C19 a decoder": field("is_decoder", is_decoder=True),
    "C20 nested lists": Fault(write("config.json", "[" * 100_000), (CONFIG,)),
    "C20 nested objects": Fault(write("config.json", '{"a":' * 100_000), (CONFIG,)),
    "C20 nested inside a field": Fault(
        write("config.json", '{"model_type": "bert", "id2label": ' + "[" * 900 + "]" * 900 + "}"), ("{folder}",)
    ),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_a_wrong_config_is_refused(fault: str, refuse: Refuse) -> None:
    refuse(CONFIG_FAULTS[fault])


STEERING = "\x1b[31m\x1b]0;title\x07\u202e\x9b"


@pytest.mark.parametrize(
    ("value", "said"), [(f"gelu{STEERING}", r"gelu\x1b[31m"), ("gelu" * 100_000, "gelugelu")], ids=["escapes", "long"]
)
def test_an_error_quotes_a_file_without_steering_the_terminal(value: str, said: str, refuse: Refuse) -> None:
    refused = refuse(Fault(edit(hidden_act=value), (CONFIG, f"hidden_act={said}")))[1]
    assert refused.error.isprintable()
    assert len(refused.error) < 3000


def test_a_config_is_shown_without_steering_the_terminal(forked: Fork, copy: Copy) -> None:
    folder = copy("bert")
    edit(**{STEERING: STEERING, "not_finite": float("nan")})(folder)  # type: ignore[arg-type]
    words = ("model=auto", f"model.checkpoint={folder}")
    assert all(line.isprintable() for line in forked(*words).out.splitlines())
    shown = forked(*words, "output.format=json").json["model"]["config"]
    assert shown[STEERING] == STEERING
    assert shown["not_finite"] is None


COSTLY = {
    "C02 config.json is missing": (Fault(delete("config.json"), ("{folder}", "config.json")), 1),
    "C02 config.json is missing for BertModel": (
        Fault(delete("config.json"), ("{folder}", "config.json"), words=("model=pretrained",)),
        1,
    ),
    "C08 a million layers": (field(num_hidden_layers=1_000_000), 5),
}


@pytest.mark.parametrize("fault", COSTLY)
def test_a_hopeless_config_costs_no_time(fault: str, refuse: Refuse) -> None:
    found, seconds = COSTLY[fault]
    control, refused = refuse(found)
    assert refused.cpu < control.cpu + seconds
    assert refused.memory < control.memory + 200e6


def test_a_tokenizer_with_more_words_than_the_embedding_has_rows(refuse: Refuse) -> None:  # E15
    def grow(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        content["model"]["vocab"]["zebra"] = 8999
        (folder / "tokenizer.json").write_text(json.dumps(content))

    refuse(Fault(grow, ("{folder}/tokenizer.json", "8999", "8000"), "readable"))


# Code and paths in a checkpoint. The canary is a file that appears where the payload runs.


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("canary") / "alive"
    yield path
    assert not path.exists()


@pytest.fixture
def pickled(canary: Path) -> bytes:
    """Weights as torch pickles them, with a payload that is shown to run."""
    file = canary.with_name("payload.bin")
    torch.save({WORDS_TABLE: torch.zeros(3), "payload": Payload(canary)}, file)
    torch.load(file, weights_only=False)
    canary.unlink()
    return file.read_bytes()


PICKLES: dict[str, Callable[[bytes], Damage]] = {
    "D01 in place of safetensors": lambda content: both(delete(WEIGHTS), write("pytorch_model.bin", content)),
    "D01 under the name of safetensors": lambda content: write(WEIGHTS, content),
    "D02 and the config lacks dtype": lambda content: both(
        delete(WEIGHTS), write("pytorch_model.bin", content), edit(drop="dtype")
    ),
}


@pytest.mark.parametrize("place", PICKLES)
@pytest.mark.parametrize("model", ["auto", "pretrained"])
def test_pickled_weights_are_never_opened(place: str, model: str, pickled: bytes, refuse: Refuse) -> None:
    said = ("{folder}", "safetensors only") if "in place" in place else ("{folder}",)
    refuse(Fault(PICKLES[place](pickled), said, words=(f"model={model}",)))


def test_pickled_weights_beside_safetensors_are_ignored(pickled: bytes, forked: Fork, copy: Copy) -> None:  # D01
    folder = copy("bert")
    write("pytorch_model.bin", pickled)(folder)
    watch = Watch(folder)
    assert forked("model=auto", f"model.checkpoint={folder}").code == 0
    assert "pytorch_model.bin" not in watch.seen()
    watch.close()


def test_no_setting_leads_to_a_pickle() -> None:  # D02
    root = Path(__file__).parents[1]
    sources = [path for folder in ("src", "plugins", "conf") for path in (root / folder).rglob("*") if path.is_file()]
    texts = {path: path.read_text(encoding="utf-8") for path in sources if path.suffix in (".py", ".yaml")}
    assert len(texts) > 30
    for path, text in texts.items():
        assert not re.search(r"weights_only|torch\.load|^import pickle|trust_remote_code(?!=False)", text), path


@pytest.mark.parametrize("tty", [False, True], ids=["D05 a silent pipe", "D05 a silent terminal"])
def test_nobody_is_asked(tty: bool, pickled: bytes, forked: Fork, copy: Copy) -> None:
    folder = copy("bert")
    words = ("model=auto", f"model.checkpoint={folder}")
    assert forked(*words, tty=tty).code == 0
    both(delete(WEIGHTS), write("pytorch_model.bin", pickled), edit(auto_map={"AutoModel": "evil.Evil"}))(folder)
    refused = forked(*words, tty=tty)
    assert refused.code == 3
    assert "safetensors only" in refused.error


def evil(canary: Path) -> Damage:
    """A module that creates the canary when it is imported."""
    return write("evil.py", f"import pathlib\npathlib.Path({str(canary)!r}).touch()\nclass Evil: pass\n")


REMOTE = {
    "D06 trust_remote_code": {"trust_remote_code": True},
    "D06 auto_map": {"trust_remote_code": True, "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}},
    "D06 auto_map of a repository": {
        "auto_map": {"AutoConfig": "owner/repo--evil.Evil", "AutoModel": "owner/repo--evil.Evil"}
    },
}


@pytest.mark.parametrize("fields", REMOTE)
def test_code_that_a_config_names_is_ignored(
    fields: str, canary: Path, forked: Fork, copy: Copy, outside: Watch
) -> None:
    folder = copy("bert")
    for model in ("auto", "pretrained"):
        words = (f"model={model}", f"model.checkpoint={folder}", "output.format=json", "output.values=true")
        edit(drop="auto_map", trust_remote_code=False)(folder)
        control = forked(*words).json
        both(evil(canary), edit(**REMOTE[fields], _name_or_path=str(outside.folder)))(folder)  # type: ignore[arg-type]
        run = forked(*words)
        assert run.json["outputs"] == control["outputs"]
        assert run.touched == []
        assert outside.seen() == set()


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_a_target_is_no_setting(sign: str, canary: Path, forked: Fork) -> None:  # D07
    for target in ("os.system", "builtins.open"):
        words = ("model=tiny", "input.ids=[[5]]")
        assert forked(*words).code == 0
        refused = forked(*words, f"{sign}model._target_={target}", f"{sign}model.file={canary}")
        assert refused.code == 2
        assert "model._target_" in refused.error
        assert refused.touched == []


TOKENIZERS = {
    "D10 tokenizer_class": ("tokenizer_class", {"tokenizer_class": "os.system"}),
    "D10 tokenizer_class of the checkpoint": ("tokenizer_class", {"tokenizer_class": "Evil"}),
    "D10 auto_map": ("auto_map", {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}),
    "D10 auto_map and no class": (
        "auto_map",
        {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "EvilTokenizer"},
    ),
    "D10 auto_map of a repository": ("auto_map", {"auto_map": {"AutoTokenizer": ["owner/repo--evil.Evil", None]}}),
}


@pytest.mark.parametrize("fields", TOKENIZERS)
@pytest.mark.parametrize("model", ["auto", "pretrained"])
def test_a_tokenizer_runs_no_code(fields: str, model: str, canary: Path, refuse: Refuse) -> None:
    name, changes = TOKENIZERS[fields]
    damage = both(evil(canary), edit("tokenizer_config.json", **changes))  # type: ignore[arg-type]
    words = (f"model={model}", "input=texts", "input.texts=cool")
    refuse(Fault(damage, ("{folder}/tokenizer_config.json", name), "readable", words))


@pytest.mark.parametrize("name", ["tokenizer_file", "vocab_file", "name_or_path", "chat_template"])
def test_a_path_that_a_tokenizer_names_is_not_opened(  # D10
    name: str, forked: Fork, copy: Copy, outside: Watch
) -> None:
    folder = copy("readable")
    words = ("model=auto", f"model.checkpoint={folder}", "input=texts", "input.texts=cool", "output.format=json")
    control = forked(*words, "output.values=true").json
    edit("tokenizer_config.json", **{name: str(outside.folder / "tokenizer.json")})(folder)
    run = forked(*words, "output.values=true")
    assert outside.seen() == set()
    if run.code == 0:
        assert run.json["outputs"] == control["outputs"]
    else:
        assert run.code == 3
        assert str(folder) in run.error


ROWS = {
    "A": (1, 2, 3, 4, 7, 10, 11, 14, 16, 17, 18, 19, 20, 21),
    "B": (1, 2, 5, 6, 9),
    "C": (1, 2, 3, 4, 5, 8, 10, 12, 15, 16, 18, 19, 20),
    "D": (1, 2, 5, 6, 7, 10),
    "E": (1, 2, 3, 5, 6, 7, 8, 12, 13, 15, 16, 17, 18),
    "F": (1, 2, 5, 7, 8, 9, 11, 12, 13),
    "G": (1, 2, 5, 8, 9),
    "H": (1, 2, 3, 4, 5, 6, 8, 11, 12, 13, 14),
}


def test_every_fault_has_its_test() -> None:
    numbers = {f"{letter}{number:02}" for letter, rows in ROWS.items() for number in rows}
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert numbers - set(re.findall(r"\b[A-H]\d\d\b", tests)) == set()
