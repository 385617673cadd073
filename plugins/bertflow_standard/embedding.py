"""One vector a text: what `task=embed`, `task=similarity` and `task=search` share.

The vectors are those of sentence-transformers: the last hidden states, pooled over a text's tokens, cut to
`truncate_dim`, and normalised. Where a checkpoint names its pooling that is used; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from bertflow.errors import CheckpointError, ConfigError, InputError
from bertflow.flow import Flow
from bertflow.hookspecs import Row
from bertflow_standard.overflow import Fitter, Overflow, fitter
from bertflow_standard.stream import Encoded

TEXTS = ("text", "text_pair")
STAGES = ("Transformer -> Pooling", "Transformer -> Pooling -> Normalize")


class Pooling(Enum):
    """How the vectors of a text's tokens become one."""

    mean = "mean"
    cls = "cls"
    max = "max"
    last = "last"


@dataclass
class Embedding:
    """How texts become vectors; null leaves it to the checkpoint."""

    pooling: Pooling | None
    normalize: bool | None
    truncate_dim: int | None
    prompt: str | None
    max_tokens: int | None
    overflow: Overflow
    overlap: int

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        for name, least in (("truncate_dim", 1), ("max_tokens", 1), ("overlap", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError("wrong value", f"task.{name}={value}", f"give at least {least}")


@dataclass(frozen=True)
class Embedder:
    """How the texts of one run become vectors, every question answered."""

    pooling: Pooling
    normalize: bool
    truncate_dim: int | None
    prompt: str
    lower_case: bool
    max_tokens: int | None
    overflow: Overflow
    overlap: int

    def settled(self) -> dict[str, Any]:
        """Return all of it, as JSON has it."""
        return {name: value.value if isinstance(value, Enum) else value for name, value in asdict(self).items()}

    def fitter(self, flow: Flow) -> Fitter:
        """Return what makes rows fit the model."""
        return fitter(flow, self.max_tokens, self.overflow, self.overlap)

    def vectors(self, flow: Flow, rows: Sequence[Encoded]) -> Any:
        """Return the vectors of rows of ids: float32 of shape [rows, width].

        The windows of a row are pooled each and averaged, weighted by their number of tokens.

        Raises:
            InputError: a vector is not finite.
        """
        import numpy as np

        windows = [window for row in rows for window in row.windows]
        pooled = np.stack(flow.run_rows(windows, "last_hidden_state", self._pool)).astype(np.float32, copy=False)
        counts = [len(row.windows) for row in rows]
        if len(windows) > len(rows):
            weights = np.array([len(window["input_ids"]) for window in windows], dtype=np.float32)
            starts = np.cumsum([0, *counts[:-1]])
            totals = np.add.reduceat(weights, starts)[:, None]
            averaged = np.add.reduceat(pooled * weights[:, None], starts) / totals
            several = np.array(counts) > 1
            pooled = np.where(several[:, None], averaged, pooled[starts])
        if not np.isfinite(pooled).all():
            fix = "numbers grew too large for the dtype: use model.dtype=float32, or look at the model"
            row = int(np.flatnonzero(~np.isfinite(pooled).all(1))[0])
            raise InputError("embedding is not finite (NaN or infinity)", f"row {rows[row].number}", fix)
        pooled = pooled[:, : self.truncate_dim]
        if not self.normalize:
            return pooled
        lengths = np.linalg.norm(pooled, axis=1, keepdims=True)
        return pooled / np.maximum(lengths, 1e-12)

    def _pool(self, states: Any) -> Any:
        """Pool states of shape [rows, tokens, width], torch's or numpy's; no token is padding."""
        if self.pooling is Pooling.mean:
            return states.mean(1)
        if self.pooling is Pooling.max:
            return states.amax(1) if hasattr(states, "amax") else states.max(1)
        return states[:, 0] if self.pooling is Pooling.cls else states[:, -1]

    def prompted(self, rows: Iterable[Row]) -> Iterable[Row]:
        """Put the prompt before each text, and lowercase it for a checkpoint that wants that."""
        if not self.prompt and not self.lower_case:
            return rows
        return ({**row, **{name: self._prompted(row[name]) for name in TEXTS if name in row}} for row in rows)

    def _prompted(self, text: Any) -> Any:
        if not isinstance(text, str):  # The tokenizer's business.
            return text
        text = self.prompt + text
        if not self.lower_case:
            return text
        from tokenizers.normalizers import Lowercase

        try:
            # What sentence-transformers takes; Python's own differs in some letters.
            return Lowercase().normalize_str(text)
        except UnicodeEncodeError:  # A lone surrogate, which the tokenizer refuses by its row.
            return text


def settle(flow: Flow, settings: Embedding, prompt_name: str | None = None) -> Embedder:
    """Answer what the settings leave open from the checkpoint's own files, before torch is imported.

    Args:
        flow: the run.
        settings: the task's.
        prompt_name: of the prompt to use if the checkpoint has it, and else none; null for its default one.

    Raises:
        ConfigError: neither they nor the checkpoint name a pooling; or its pooling leaves a prompt out.
        CheckpointError: the checkpoint's own way is one that bertflow does not know, and the settings name no other.
    """
    known: Mapping[str, Any] = flow.call("inspect_model")
    if settings.pooling is None:
        _refuse_unknown_modules(known)
    pooling = settings.pooling or known.get("pooling")
    if pooling is None:
        where = f"task.pooling, for {known.get('checkpoint', 'model=' + str(flow.choices['model']))}"
        fix = "add task.pooling=mean (usual for sentence embedders) or cls (usual for BGE and the like), max or last"
        raise ConfigError("the checkpoint names no pooling", where, fix)
    named: Mapping[str, str] = known.get("prompts") or {}
    own = known.get("prompt") if prompt_name is None else named.get(prompt_name)
    prompt = (own or "") if settings.prompt is None else settings.prompt
    if prompt and not known.get("pools_prompt", True):
        fix = "bertflow pools over all tokens: add task.prompt='' to embed the texts alone"
        raise ConfigError("the checkpoint's pooling leaves the prompt out", f"task.prompt={prompt}", fix)
    normalize = known.get("normalize") if known.get("modules") in STAGES else False
    return Embedder(
        Pooling(pooling),
        bool(normalize if settings.normalize is None else settings.normalize),
        settings.truncate_dim,
        prompt,
        bool(known.get("lower_case")),
        known.get("max_tokens") if settings.max_tokens is None else settings.max_tokens,
        settings.overflow,
        settings.overlap,
    )


def _refuse_unknown_modules(known: Mapping[str, Any]) -> None:
    stages, pooling = known.get("modules"), known.get("pooling")
    path = f"{known.get('folder')}/modules.json"
    if stages is not None and stages not in STAGES:
        fix = f"bertflow knows {STAGES[1]}; choose task.pooling and task.normalize to leave the others out"
        raise CheckpointError("modules are not those of an embedder", f"{path}: {stages}", fix)
    if stages is not None and pooling not in Pooling.__members__:
        fix = f"choose task.pooling yourself: {', '.join(Pooling.__members__)}"
        raise CheckpointError("pooling is not one that bertflow knows", f"{path}: {pooling}", fix)
