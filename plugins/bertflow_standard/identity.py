"""What a stream is known by, so that an interrupted one is gone on with only by a run that ends in the same bytes."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from bertflow.flow import Flow

PACKAGES = ("bertflow", "transformers", "torch", "tokenizers", "numpy")

# What the config says beyond what decides the numbers: how a result is shown, and where it goes.
APART = {"output", "save", "extension", "debug"}


def facts(flow: Flow, settled: Mapping[str, Any]) -> dict[str, Any]:
    """Return config, checkpoint, input, versions and what they run on, as JSON has it: what the receipt says.

    Args:
        flow: the run.
        settled: what the settings that were left open came to.
    """
    config: Any = OmegaConf.to_container(flow.config, resolve=True)
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    weights = flow.weights()
    return {
        "config": {group: part for group, part in config.items() if group not in APART},
        "checkpoint": {"source": weights.source, "digests": dict(weights.digests)},
        "input": dict(flow.call("describe_input")) if flow.source != "rows" else {},
        "versions": versions,
        "runtime": dict(flow.call("describe_runtime")),
        "settled": settled,
    }


def identity(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return those facts without `input.on_error`, which decides nothing of a part that has no bad row."""
    source = {name: value for name, value in known["config"]["input"].items() if name != "on_error"}
    return {**known, "config": {**known["config"], "input": source}}
