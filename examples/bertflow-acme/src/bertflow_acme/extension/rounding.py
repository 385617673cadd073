"""`extension=[rounding]`: an example of a wrapper, which changes what another plugin's hook returns."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import bertflow
from bertflow.errors import ConfigError
from bertflow.flow import Flow


@dataclass
class Config:
    """`digits` behind the decimal point."""

    digits: int

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.digits < 0:
            raise ConfigError("wrong value", f"extension.rounding.digits={self.digits}", "give 0 or more")


@bertflow.hookimpl(wrapper=True)
def run_batch(flow: Flow) -> Generator[None, Mapping[str, Any], Mapping[str, Any]]:
    """Let the model run, then round its outputs."""
    config: Config = flow.settings_of(__name__)
    outputs = yield
    return {name: array.round(config.digits) for name, array in outputs.items()}
