"""`save=none`: nothing is saved."""

from __future__ import annotations

from typing import Any

from bertflow import hookimpl


@hookimpl
def save_checkpoint() -> dict[str, Any]:
    """Save nothing."""
    return {}
