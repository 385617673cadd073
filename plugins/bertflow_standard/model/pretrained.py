"""`model=pretrained`: `BertModel.from_pretrained(checkpoint)`."""

from __future__ import annotations

from bertflow import hookimpl
from bertflow.flow import Flow
from bertflow.hookspecs import WeightsReport
from bertflow_standard.examination import inspect_model, verify_model
from bertflow_standard.loading import Config, build, load, preflight
from bertflow_standard.saving import save_model
from bertflow_standard.transformers_model import TransformersModel, describe_model, forward, tokenize

__all__ = [
    "Config",
    "build_model",
    "check_run",
    "describe_model",
    "forward",
    "inspect_model",
    "load_weights",
    "save_model",
    "tokenize",
    "verify_model",
]


@hookimpl
def check_run(flow: Flow) -> None:
    """Refuse a checkpoint that cannot be loaded, before torch is imported."""
    preflight(flow.settings["model"], "bert")


@hookimpl
def build_model(config: Config) -> TransformersModel:
    """Build BERT as the checkpoint's config says."""
    return build(config)


@hookimpl
def load_weights(config: Config, model: TransformersModel) -> tuple[TransformersModel, WeightsReport]:
    """Fill it from the checkpoint, under the rule of `model.weights`."""
    return load(config, model)
