"""Every hook: its signature, its meaning, who calls it and what it may return.

A plugin implements a hook by defining a function of the same name, marked with `@bertflow.hookimpl`, that takes those
of the arguments it needs. `flow` is the run (`bertflow.flow.Flow`); `config` is the plugin's own part of the config,
as the plugin's typed `Config`. In a wrapper, `config` is that of the plugin which is wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pluggy import HookspecMarker

if TYPE_CHECKING:
    from bertflow.flow import Flow

hookspec = HookspecMarker("bertflow")

Row = Mapping[str, Any]
"""One input: `{"text": str}`, or `{"input_ids": list[int]}` with optional `attention_mask` and `token_type_ids`.

It may carry an `id`, columns to `keep` (name -> value), its `place`, (file, line), and `read`: the share of the input
that has been read with it, from 0 to 1, from which progress tells the time that is left. A row that cannot be read is
`{"error": reason}`: it stops the run, or is left out and reported where `input.on_error=skip`.
"""

CARRIED = ("id", "keep", "place", "read")
"""What a row may carry along besides the model's inputs."""

Batch = Mapping[str, Any]
"""Rows of one forward pass: input name -> int64 array of shape [rows, tokens]; numpy until the runtime moves it."""

Outputs = Mapping[str, Any]
"""Output name -> numpy array whose first axis is the rows."""


@dataclass(frozen=True)
class ModelDescription:
    """What a report says of a model, and what forming a batch needs to know of it."""

    architecture: str
    parameters: int | None = None
    dtype: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    pad_token_id: int = 0
    longest: int | None = None
    """The longest row in tokens; None for no limit."""


@dataclass(frozen=True)
class WeightsReport:
    """Where a model's tensors came from.

    `loaded` counts the tensors read from the `files` of `source`; `random` names those drawn at random, `unused` those
    that the checkpoint holds and the model has no place for; `cast` counts the changes of dtype, such as
    `{"F16->F32": 12}`; `digests` gives the SHA-256 of each file that decides what the model computes.
    """

    source: str
    files: Sequence[str] = ()
    loaded: int = 0
    random: Sequence[str] = ()
    unused: Sequence[str] = ()
    cast: Mapping[str, int] = field(default_factory=dict)
    note: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Result:
    """What one run gives: the task's outputs (numpy arrays by name) and the story of the model behind them.

    `report` is what a task has to say in words: mappings, lists, text and numbers, as JSON has them.
    """

    task: str
    model: dict[str, Any] | None = None
    weights: WeightsReport | None = None
    outputs: dict[str, Any] = field(default_factory=dict)
    report: Any = None
    saved: dict[str, Any] | None = None
    written: dict[str, Any] | None = None


@dataclass(frozen=True)
class Part:
    """The results of one part of a stream: of `rows` consecutive input rows, whose content has the `digest`.

    `columns` has one value for each row that was not rejected, in their order; `rejects` has a mapping for each of the
    others; `counts` adds up over the parts, such as `{"tokens": 4711}`.
    """

    number: int
    rows: int
    digest: str
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    rejects: Sequence[Mapping[str, Any]] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


class Sink(Protocol):
    """Where the parts of a stream go."""

    done: Sequence[Part]
    """The parts that an interrupted run has written already, without their columns."""

    def add(self, part: Part) -> None:
        """Keep a part, whole or not at all. Parts come in order, from one thread."""

    def finish(self, receipt: Mapping[str, Any]) -> Mapping[str, Any]:
        """Deliver the parts. `receipt` is what decided them; returns what was written, for `Result.written`."""

    def close(self) -> None:
        """Let go of what is held, also after a failure; the parts stay for the next run."""


@hookspec
def check_run(flow: Flow) -> None:
    """Refuse what cannot work, before anything heavy is imported or built. Optional.

    Called on every plugin of the run, first of all hooks. Raise one of bertflow's errors; return nothing.
    """


@hookspec(firstresult=True)
def build_model(flow: Flow, config: Any) -> Any:
    """Construct the model from its config. Owed by `model`; called by `Flow.model`.

    Returns the model in whatever type the plugin works with. What `load_weights` fills may still be empty.
    """


@hookspec(firstresult=True)
def load_weights(flow: Flow, config: Any, model: Any) -> tuple[Any, WeightsReport]:
    """Give the model its weights. Owed by `model`; called by `Flow.model` after `build_model`.

    Returns the model (the same object or another) and the report of where each tensor came from.
    """


@hookspec(firstresult=True)
def describe_model(flow: Flow, config: Any, model: Any) -> ModelDescription:
    """Say what the model is. Optional, implemented by `model`; called by `Flow.description`, on the loaded model."""


@hookspec(firstresult=True)
def inspect_model(flow: Flow, config: Any) -> Mapping[str, Any]:
    """Say what is known of the model before it is built. Optional, implemented by `model`; called by `task=inspect`.

    Returns names and values as JSON has them; sizes in bytes have names that end in `_bytes`.
    """


@hookspec(firstresult=True)
def verify_model(flow: Flow, config: Any) -> Sequence[Mapping[str, Any]]:
    """Compare the model's files with what they should be. Optional, implemented by `model`; called by `task=verify`.

    Returns a mapping for each file; raises CheckpointError for one that is not the right one.
    """


@hookspec(firstresult=True)
def tokenize(flow: Flow, config: Any, model: Any, rows: Sequence[Row], start: int) -> Sequence[Row]:
    """Turn rows into rows of ids that the model can take. Owed by `model`; called by `Flow.tokenize`.

    Rows of text are tokenized, whole; rows of ids are checked against the vocabulary. `start` is the number of the
    first row, for error messages. Returns one row with `input_ids` and `attention_mask` per row given.
    """


@hookspec(firstresult=True)
def forward(flow: Flow, config: Any, model: Any, batch: Batch) -> Outputs:
    """Run the placed model on one batch. Owed by `model`; called by the `runtime` plugin's `run_batch`.

    `batch` and the outputs are arrays of the runtime: tensors on its device, for a model of torch's; numpy otherwise.
    """


@hookspec(firstresult=True)
def save_model(  # pluggy passes arguments by name
    flow: Flow, config: Any, model: Any, folder: Path, max_shard_size: str, dtype: str | None
) -> Sequence[Path]:
    """Write everything that loading the model again needs into `folder`. Owed by `model`; called by `save` plugins.

    `folder` exists, is empty and is not yet the final place; `max_shard_size` is the largest weights file, such as
    `5GB`; `dtype` is what the weights are written in, such as `float16`, None for the model's own. The model in memory
    stays as it is. Returns the files written; raises ConfigError for a dtype that it cannot write or that a value of
    the model does not fit.
    """


@hookspec(firstresult=True)
def run_task(flow: Flow, config: Any) -> Result:
    """Do the task with the steps of `flow` that it needs. Owed by `task`; called by `Flow.run`."""


@hookspec(firstresult=True)
def read_rows(flow: Flow, config: Any) -> Iterable[Row]:
    """Give the rows, in order. Owed by `input`; called by `Flow.rows`."""


@hookspec(firstresult=True)
def describe_input(flow: Flow, config: Any) -> Mapping[str, Any]:
    """Say what the input is besides its rows, such as its files and their sizes. Optional, implemented by `input`.

    Called by streams: an interrupted run goes on only where this has not changed. Returns what JSON can have.
    """


@hookspec(firstresult=True)
def write_result(flow: Flow, config: Any, result: Result) -> Result:
    """Deliver the result to where the config says. Owed by `output`; called by `Flow.run` after the task.

    Returns the result, with `written` telling of the files, if any.
    """


@hookspec(firstresult=True)
def render_result(flow: Flow, config: Any, result: Result) -> str:
    """Give the text for stdout. Owed by `output`; called by the command line, never by `bertflow.run`."""


@hookspec(firstresult=True)
def place_model(flow: Flow, config: Any, model: Any) -> Any:
    """Put the loaded model where it will run. Owed by `runtime`; called by `Flow.forward`, once.

    Returns what `run_batch` runs: the model itself, moved, or another form of it. Saving uses the loaded model.
    """


@hookspec(firstresult=True)
def make_batches(flow: Flow, config: Any, rows: Iterable[Row], pad_token_id: int) -> Iterator[Batch]:
    """Group rows of ids into padded batches of numpy arrays, in order. Owed by `runtime`; called by `Flow.batches`."""


@hookspec(firstresult=True)
def run_batch(flow: Flow, config: Any, model: Any, batch: Batch) -> Outputs:
    """Run the placed model on one batch. Owed by `runtime`; called by `Flow.forward`, mostly through the engine.

    Calls `forward` with arrays of its own type, or runs the model by itself. Returns numpy arrays, a row for each row.
    """


@hookspec(firstresult=True)
def describe_runtime(flow: Flow, config: Any) -> Mapping[str, Any]:
    """Say what, besides config and weights, decides the numbers: device, threads, batches. Optional, of `runtime`.

    Called by streams, after the model was loaded: an interrupted run goes on only where this has not changed. Returns
    what JSON can have.
    """


@hookspec(firstresult=True)
def run_rows(
    flow: Flow, config: Any, model: Any, rows: Sequence[Row], output: str, reduce: Callable[[Any], Any]
) -> Sequence[Any]:
    """Run the placed model on rows of ids in any grouping. Optional, of `runtime`; called by `Flow.run_rows`.

    `reduce` takes that output of equally long rows, without padding, as an array of shape [rows, tokens, width], and
    gives an array of shape [rows, ...]. Returns what it gives for each row, as numpy arrays in the order of the rows.
    Progress is told whenever `reduce` is called.
    """


@hookspec(firstresult=True)
def open_output(flow: Flow, config: Any, identity: Mapping[str, Any]) -> Sink:
    """Open the place for a stream's parts. Optional, of `output`; by default they are kept in memory.

    `identity` is all that decides the numbers, as JSON has it: parts of another identity must not be mixed.
    """


@hookspec(firstresult=True)
def save_checkpoint(flow: Flow, config: Any, model: Any) -> dict[str, Any]:
    """Save the model so that no failure costs a checkpoint. Owed by `save`; called by `Flow.save`.

    Returns `{"path": str, "files": {name: bytes}}`, or `{}` where nothing is to be saved.
    """


@hookspec(firstresult=True)
def map_work(flow: Flow, config: Any, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Apply `function` to each item and give the results in order. Owed by `engine`; called by `Flow.map`."""
