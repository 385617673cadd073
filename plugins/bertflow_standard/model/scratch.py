"""`model=scratch`: `BertModel(BertConfig(...))`, weights drawn at random."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from bertflow import hookimpl
from bertflow.errors import ConfigError, did_you_mean
from bertflow.flow import Flow
from bertflow.hookspecs import WeightsReport
from bertflow_standard.activations import ACTIVATIONS
from bertflow_standard.saving import save_model
from bertflow_standard.transformers_model import (
    Dtype,
    Head,
    TransformersModel,
    describe_model,
    forward,
    no_tokenizer,
    quiet,
    tokenize,
)

__all__ = ["Config", "build_model", "describe_model", "forward", "load_weights", "save_model", "tokenize"]

MOST_PARAMETERS = 10**11
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


@dataclass
class BertFields:
    """The fields of transformers' `BertConfig`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    max_position_embeddings: int
    type_vocab_size: int
    initializer_range: float
    layer_norm_eps: float
    pad_token_id: int | None
    use_cache: bool
    classifier_dropout: float | None
    is_decoder: bool
    add_cross_attention: bool
    bos_token_id: int | None
    eos_token_id: int | None
    tie_word_embeddings: bool
    output_hidden_states: bool
    chunk_size_feed_forward: int
    id2label: dict[int, str] | None
    label2id: dict[str, int] | None
    problem_type: str | None

    def __post_init__(self) -> None:
        """Refuse what BERT cannot be built from, while nothing heavy is imported yet."""
        sizes = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings")
        for name in (*sizes, "num_hidden_layers", "type_vocab_size"):
            self._require(getattr(self, name) > 0, name, "it must be at least 1")
        for name in ("initializer_range", "layer_norm_eps", "chunk_size_feed_forward"):
            self._require(0 <= getattr(self, name) < math.inf, name, "it must be finite and not negative")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            self._require(0 <= (getattr(self, name) or 0) < 1, name, "it must be from 0 to below 1")
        heads = self.num_attention_heads
        fix = f"it must be a multiple of num_attention_heads={heads}"
        self._require(self.hidden_size % heads == 0, "hidden_size", fix)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            inside = 0 <= (getattr(self, name) or 0) < self.vocab_size
            self._require(inside, name, f"it must lie in the vocabulary of {self.vocab_size}")
        cross = not self.add_cross_attention or self.is_decoder
        self._require(cross, "add_cross_attention", "only a decoder has it: add model.config.is_decoder=true")
        self._require(self.id2label != {}, "id2label", "name at least one label, or null")
        self._require(self._size() < MOST_PARAMETERS, "vocab_size", f"{self._size():.0e} parameters are too many")
        self._require(self.hidden_act in ACTIVATIONS, "hidden_act", did_you_mean(self.hidden_act, ACTIVATIONS))
        problem = self.problem_type
        self._require(problem in (None, *PROBLEMS), "problem_type", did_you_mean(problem or "", PROBLEMS))

    def _size(self) -> int:
        """Return about how many parameters the model has."""
        layer = 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size
        return (self.vocab_size + self.max_position_embeddings) * self.hidden_size + self.num_hidden_layers * layer

    def _require(self, holds: bool, name: str, fix: str) -> None:
        if not holds:
            raise ConfigError("wrong value", f"model.config.{name}={getattr(self, name)}", fix)


@dataclass
class Config:
    """A BERT to build: its head, its dtype and its `BertConfig`."""

    head: Head | None
    dtype: Dtype
    config: BertFields


@hookimpl
def check_run(flow: Flow) -> None:
    """Refuse texts at once: a model from its config alone has no tokenizer."""
    if flow.source == "input=texts":
        raise no_tokenizer()


@hookimpl
def build_model(config: Config) -> TransformersModel:
    """Build BERT on the CPU in evaluation mode, as `BertModel(BertConfig(...)).eval()` does."""
    import transformers

    fields = {key: value for key, value in asdict(config.config).items() if value is not None or key == "pad_token_id"}
    bert_config = transformers.BertConfig(**fields)
    module: Any
    with quiet():
        if config.head is None:
            module = transformers.BertModel(bert_config)
        else:
            module = getattr(transformers, config.head.value).from_config(bert_config)
    return TransformersModel(module.eval())


@hookimpl
def load_weights(config: Config, model: TransformersModel) -> tuple[TransformersModel, WeightsReport]:
    """Leave the weights as they were drawn, in the dtype asked for."""
    import torch

    dtype = torch.float32 if config.dtype is Dtype.auto else getattr(torch, config.dtype.value)
    model.module.to(dtype)
    names = [name for name, _ in model.module.named_parameters()]
    note = "nothing was learned: the numbers of this model are noise"
    return model, WeightsReport("random", random=names, note=note)
