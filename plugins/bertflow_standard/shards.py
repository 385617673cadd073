"""What the save plugins take for the size and the dtype of weights files."""

from __future__ import annotations

import re
from enum import Enum

from bertflow.errors import ConfigError


class SavedDtype(Enum):
    """What the weights are saved in."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"
    float64 = "float64"


def check_shard_size(size: str) -> None:
    """Refuse a size that the writer could not read, before anything is computed. Raises ConfigError."""
    if not re.search("[1-9]", size) or not re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]B", size, flags=re.IGNORECASE):
        fix = "write a number and a unit, such as 500MB or 5GB"
        raise ConfigError("not a size", f"save.max_shard_size={size}", fix)
