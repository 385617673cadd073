"""What an optional hook does when the plugin of its group leaves it out; also an example of a plugin module."""

from __future__ import annotations

from typing import Any

from bertflow import hookimpl
from bertflow.hookspecs import ModelDescription


@hookimpl(trylast=True)
def describe_model(model: Any) -> ModelDescription:
    """Describe a model by its type alone."""
    return ModelDescription(architecture=type(model).__name__)
