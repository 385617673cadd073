"""bertflow: from config to weights to saved checkpoint to results, every stage a plugin.

Importing this package imports neither Hydra nor torch; `run` and `compose` do so when called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pluggy import HookimplMarker

from bertflow.errors import (
    BertflowError,
    CheckpointError,
    ConfigError,
    InputError,
    NetworkError,
    PluginError,
    StorageError,
)

if TYPE_CHECKING:
    from bertflow.config import compose as compose
    from bertflow.flow import run as run

__all__ = [
    "BertflowError",
    "CheckpointError",
    "ConfigError",
    "InputError",
    "NetworkError",
    "PluginError",
    "StorageError",
    "compose",
    "hookimpl",
    "run",
]

hookimpl = HookimplMarker("bertflow")
"""Marks a function of a plugin module as the implementation of the hook of its name."""

_LAZY = {"compose": "bertflow.config", "run": "bertflow.flow"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
