"""The size of weights files, as transformers reads it."""

from __future__ import annotations

import re

from bertflow.errors import ConfigError


def check_shard_size(size: str) -> None:
    """Refuse a size that the writer could not read, before anything is computed. Raises ConfigError."""
    if not re.search("[1-9]", size) or not re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]B", size, flags=re.IGNORECASE):
        fix = "write a number and a unit, such as 500MB or 5GB"
        raise ConfigError("not a size", f"save.max_shard_size={size}", fix)
