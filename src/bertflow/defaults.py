"""What an optional hook does when the plugin of its group leaves it out; also an example of a plugin module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bertflow import hookimpl
from bertflow.errors import ConfigError
from bertflow.hookspecs import ModelDescription

if TYPE_CHECKING:
    from bertflow.flow import Flow


@hookimpl(trylast=True)
def describe_model(model: Any) -> ModelDescription:
    """Describe a model by its type alone."""
    return ModelDescription(architecture=type(model).__name__)


@hookimpl(trylast=True)
def inspect_model(flow: Flow) -> Mapping[str, Any]:
    """Refuse: without a word from its plugin nothing is known of a model before it is built."""
    raise ConfigError(
        "nothing is known of the model before a run", f"model={flow.choices['model']}", "use task=forward"
    )


@hookimpl(trylast=True)
def verify_model(flow: Flow) -> Sequence[Mapping[str, Any]]:
    """Refuse: a model without a checkpoint has no files to compare."""
    fix = "use a model with a checkpoint, such as model=pretrained"
    raise ConfigError("there are no files to compare", f"model={flow.choices['model']}", fix)
