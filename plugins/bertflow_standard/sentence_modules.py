"""What a sentence-transformers checkpoint says of turning token vectors into one vector a text, read without torch.

Its `modules.json` lists the stages after the transformer; `1_Pooling/config.json` names the pooling. Format:
https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertflow.errors import CheckpointError
from bertflow_standard.checkpoint import Checkpoint, read_json

POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
STAGES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class SentenceModules:
    """How a checkpoint pools, whether it normalises, and the longest row in tokens that it was made for, if it says."""

    pooling: str
    normalize: bool
    longest: int | None = None
    prompts: Mapping[str, str] | None = None


def sentence_modules(checkpoint: Checkpoint) -> SentenceModules | None:
    """Read them; None for a checkpoint that has none.

    Raises:
        CheckpointError: a file is damaged, leads outside the checkpoint, or asks for what bertflow does not do.
    """
    path = checkpoint.folder / "modules.json"
    if not path.is_file():
        return None
    stages = read_json(path)
    known = isinstance(stages, list) and all(isinstance(stage, dict) for stage in stages)
    kinds = [str(stage.get("type", "")).rpartition(".")[2] for stage in stages] if known else []
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        found = " -> ".join(kinds) or "no stages"
        fix = f"bertflow knows {' -> '.join(STAGES)}; choose task.pooling and task.normalize to leave the file out"
        raise CheckpointError("modules are not those of an embedder", f"{path}: {found}", fix)
    limits = _optional(checkpoint.folder / "sentence_bert_config.json")
    longest = limits.get("max_seq_length")
    prompts = _optional(checkpoint.folder / "config_sentence_transformers.json").get("prompts")
    return SentenceModules(
        _pooling(checkpoint.folder, stages[1]),
        "Normalize" in kinds,
        longest if type(longest) is int and longest > 0 else None,
        {str(name): str(text) for name, text in prompts.items()} if isinstance(prompts, dict) else None,
    )


def _pooling(folder: Path, stage: Mapping[str, Any]) -> str:
    name = str(stage.get("path", ""))
    if not name or Path(name).name != name:
        where = f"{folder / 'modules.json'}: {name or 'no path'}"
        raise CheckpointError("module leads outside the checkpoint", where, "its path must be a folder in it")
    path = folder / name / "config.json"
    if not path.is_file():
        raise CheckpointError("pooling has no config", str(path), "restore it, or download the checkpoint again")
    config = _optional(path)
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    mode = config.get("pooling_mode", POOLING.get(chosen[0], chosen[0]) if len(chosen) == 1 else " + ".join(chosen))
    if mode not in POOLING.values():
        fix = f"choose task.pooling yourself: {', '.join(POOLING.values())}"
        raise CheckpointError("pooling is not one that bertflow knows", f"{path}: {mode or 'none'}", fix)
    return str(mode)


def _optional(path: Path) -> Mapping[str, Any]:
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise CheckpointError("not a JSON object", str(path), "restore or download the file again")
    return content
