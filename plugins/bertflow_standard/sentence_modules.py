"""What a sentence-transformers checkpoint says of turning token vectors into one vector a text, read without torch.

Its `modules.json` lists the stages after the transformer; `1_Pooling/config.json` names the pooling. Format:
https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertflow.errors import CheckpointError
from bertflow_standard.checkpoint import Checkpoint, read_json

MODULES = "modules.json"
POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
    "lasttoken": "last",
}
"""The names of today and of older checkpoints -> bertflow's."""
KINDS = {"Transformer", "Pooling", "Normalize"}
"""The stages that have no weights beside the transformer's."""
SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where the transformer's stage has its settings; all but the first only in checkpoints of old."""
PROMPTS = "config_sentence_transformers.json"
NO_LIMIT = 1 << 30
"""Tokenizers that know no limit give a far larger number."""


@dataclass(frozen=True)
class SentenceModules:
    """What a checkpoint says of its embeddings, in its own words; whether bertflow can do it is for the task to tell.

    `stages` are those of `modules.json`, such as `Transformer -> Pooling -> Normalize`; `longest` is the longest row in
    tokens that it was made for; `prompts` are texts to put before others, by name, and `prompt` is the default one;
    with `pools_prompt` false its tokens are left out of the pooling; with `lower_case` texts are lowercased first.
    """

    stages: str
    pooling: str | None
    longest: int | None
    prompts: Mapping[str, str]
    prompt: str
    pools_prompt: bool
    lower_case: bool

    @property
    def normalize(self) -> bool:
        """Whether vectors are made length 1."""
        return self.stages.endswith("Normalize")


def sentence_modules(checkpoint: Checkpoint) -> SentenceModules | None:
    """Read them; None for a checkpoint that has none.

    Raises:
        CheckpointError: a file is damaged, or leads outside the checkpoint.
    """
    folder = checkpoint.folder
    stages = _stages(folder)
    if not stages:
        return None
    pooling = next((_optional(_config(folder, stage)) for stage in stages if _kind(stage).endswith("Pooling")), {})
    settings = next((_optional(folder / name) for name in SETTINGS if (folder / name).is_file()), {})
    limits = settings.get("max_seq_length"), _optional(folder / "tokenizer_config.json").get("model_max_length")
    return SentenceModules(
        " -> ".join(map(_kind, stages)),
        _mode(pooling),
        next((limit for limit in limits if type(limit) is int and 0 < limit < NO_LIMIT), None),
        *_prompts(folder / PROMPTS),
        bool(pooling.get("include_prompt", True)),
        bool(settings.get("do_lower_case", False)),
    )


def module_files(folder: Path) -> list[str]:
    """Return the files that say this, as names in the folder; none where a stage has weights of its own.

    Raises:
        CheckpointError: a file is damaged or missing, or leads outside the checkpoint.
    """
    stages = _stages(folder)
    if not stages or not {_kind(stage) for stage in stages} <= KINDS:
        return []
    poolings = [_config(folder, stage).relative_to(folder).as_posix() for stage in stages if _kind(stage) == "Pooling"]
    return [name for name in (MODULES, PROMPTS, *SETTINGS, *poolings) if (folder / name).is_file()]


def _stages(folder: Path) -> Sequence[Mapping[str, Any]]:
    """Return the stages that `modules.json` lists; none without one."""
    path = folder / MODULES
    if not path.is_file():
        return ()
    stages = read_json(path)
    if not stages or not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise CheckpointError("no stages of an embedder", str(path), "restore or download the file again")
    return stages


def _kind(stage: Mapping[str, Any]) -> str:
    return str(stage.get("type", "")).rpartition(".")[2]


def _config(folder: Path, stage: Mapping[str, Any]) -> Path:
    """Return the file with the stage's config."""
    name = str(stage.get("path", ""))
    if name in ("", "..") or Path(name).name != name:
        where = f"{folder / MODULES}: {name or 'no path'}"
        raise CheckpointError("module leads outside the checkpoint", where, "its path must be a folder in it")
    path = folder / name / "config.json"
    if not path.is_file():
        raise CheckpointError("pooling has no config", str(path), "restore it, or download the checkpoint again")
    return path


def _mode(config: Mapping[str, Any]) -> str | None:
    """Return the pooling in bertflow's words, another one in the checkpoint's own, several with a plus."""
    mode = config.get("pooling_mode")
    named = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    modes = named if mode is None else mode if isinstance(mode, list) else [mode]
    return " + ".join(POOLING.get(str(name), str(name)) for name in modes) or None


def _prompts(path: Path) -> tuple[Mapping[str, str], str]:
    """Return the prompts by their names, and the one that the checkpoint uses by default."""
    config = _optional(path)
    name, content = config.get("default_prompt_name"), config.get("prompts")
    known = content.items() if isinstance(content, dict) else ()
    prompts = {key: prompt for key, prompt in known if isinstance(prompt, str)}
    if name is not None and not (isinstance(name, str) and name in prompts):
        raise CheckpointError("default prompt is not among the prompts", f"{path}: {name}", "mend or remove its name")
    return prompts, prompts[name] if name is not None else ""


def _optional(path: Path) -> Mapping[str, Any]:
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise CheckpointError("not a JSON object", str(path), "restore or download the file again")
    return content
