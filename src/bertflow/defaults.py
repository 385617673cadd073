"""What an optional hook does when the plugin of its group leaves it out; also an example of a plugin module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bertflow import hookimpl
from bertflow.errors import ConfigError
from bertflow.hookspecs import ModelDescription, Part, Row, Sink

if TYPE_CHECKING:
    from bertflow.flow import Flow


@hookimpl(trylast=True)
def describe_model(model: Any) -> ModelDescription:
    """Describe a model by its type alone."""
    return ModelDescription(architecture=type(model).__name__)


@hookimpl(trylast=True)
def inspect_model() -> Mapping[str, Any]:
    """Know nothing of a model before it is built."""
    return {}


@hookimpl(trylast=True)
def verify_model(flow: Flow) -> Sequence[Mapping[str, Any]]:
    """Refuse: a model without a checkpoint has no files to compare."""
    fix = "use a model with a checkpoint, such as model=pretrained"
    raise ConfigError("there are no files to compare", f"model={flow.choices['model']}", fix)


@hookimpl(trylast=True)
def describe_input() -> Mapping[str, Any]:
    """Leave it to the rows."""
    return {}


@hookimpl(trylast=True)
def describe_runtime() -> Mapping[str, Any]:
    """Leave it to the config."""
    return {}


@hookimpl(trylast=True)
def run_rows(flow: Flow, model: Any, rows: Sequence[Row], output: str, reduce: Callable[[Any], Any]) -> Sequence[Any]:
    """Run the rows in padded batches, sorted by length so that there is little padding."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))
    results: list[Any] = [None] * len(rows)
    places = iter(order)
    pad_token_id = flow.description().pad_token_id
    for batch in flow.call("make_batches", rows=[rows[row] for row in order], pad_token_id=pad_token_id):
        states = flow.call("run_batch", model=model, batch=batch)[output]
        for state, mask in zip(states, batch["attention_mask"], strict=True):
            results[next(places)] = reduce(state[mask != 0][None])[0]
    return results


class Collected:
    """The parts of a stream in memory."""

    def __init__(self) -> None:
        self.done: Sequence[Part] = ()
        self.parts: list[Part] = []

    def add(self, part: Part) -> None:
        """Keep the part."""
        self.parts.append(part)

    def finish(self, receipt: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write nothing."""
        return {}

    def close(self) -> None:
        """Hold nothing that needs closing."""


@hookimpl(trylast=True)
def open_output() -> Sink:
    """Keep the parts in memory; the task joins them into its result."""
    return Collected()
