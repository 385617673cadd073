"""A checkpoint looked at and not loaded: the hooks of `task=inspect` and `task=verify` for `pretrained` and `auto`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bertflow import hookimpl
from bertflow.errors import ConfigError
from bertflow.flow import Flow
from bertflow_standard.checkpoint import WEIGHTS, resolve
from bertflow_standard.inspection import inspect
from bertflow_standard.loading import Config
from bertflow_standard.manifest import MANIFEST, digest, manifest_names, verify
from bertflow_standard.preflight import check_finite


@hookimpl
def inspect_model(flow: Flow, config: Config) -> Mapping[str, Any]:
    """Tell what config, headers and tokenizer say."""
    checkpoint = resolve(config.checkpoint, config.revision, timeout=config.hub_timeout)
    batch_tokens = getattr(flow.settings["runtime"], "batch_tokens", None)
    return inspect(checkpoint, config.head.name if config.head else None, config.dtype.value, batch_tokens or 2048)


@hookimpl
def verify_model(config: Config) -> Sequence[Mapping[str, Any]]:
    """Compare the files with the manifest and the digests, and look for numbers that are not finite."""
    checkpoint = resolve(config.checkpoint, config.revision, timeout=config.hub_timeout)
    saved = manifest_names(checkpoint.folder) or ()
    if not saved and not config.sha256:
        found = {path.name: digest(path) for path in checkpoint.weights}
        shown = found.get(WEIGHTS) or "{" + ", ".join(f"{name}: {value}" for name, value in found.items()) + "}"
        fix = f"compare with the published digest: model.sha256=<digest>; these files have {shown}"
        raise ConfigError("there is nothing to compare with: no manifest", str(checkpoint.folder), fix)
    found = verify(checkpoint.folder, config.sha256)
    check_finite(checkpoint)
    beside = {path.name for path in checkpoint.folder.iterdir() if path.is_file()} - {MANIFEST}
    sizes = {name: (checkpoint.folder / name).stat().st_size for name in sorted(found.keys() | beside)}
    rows = [{"file": name, "bytes": size, "sha256": found.get(name)} for name, size in sizes.items()]
    return [{**row, "verdict": "verified" if row["sha256"] else "not compared"} for row in rows]
