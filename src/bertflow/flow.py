"""The straight line of one run: build -> load -> forward -> save.

`Flow` holds one run's plugins and settings and offers its steps; a task takes those that it needs, in its own order.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from bertflow import interruption
from bertflow.catalogue import GROUPS, OWNERS
from bertflow.config import PRIMARY, Composition, catalogue, compose_run
from bertflow.errors import BertflowError, InputError, PluginError, StorageError
from bertflow.hookspecs import Batch, ModelDescription, Outputs, Result, Row, WeightsReport
from bertflow.plugins import failure
from bertflow.words import refuse_hydra_words

TOKENIZE_ROWS = 1024
"""Rows per call of `tokenize`: enough for a tokenizer to work in parallel, few enough to stream."""


def run(
    *overrides: str,
    rows: Iterable[Any] | None = None,
    config_dir: str | Path | None = None,
    config_name: str = PRIMARY,
) -> Result:
    """Run one task, as the command line does, and return its result; prints nothing.

    Args:
        overrides: words as on the command line, such as `"model=pretrained"`.
        rows: the input, instead of what `input` selects: texts, lists of token ids, or mappings of input names. Any
            iterable; it is read once and streamed.
        config_dir: a folder of your own options and presets.
        config_name: the primary config to start from.

    Raises:
        BertflowError: one of its family, for whatever goes wrong; but what `rows` itself raises comes through as it is.
    """
    if rows is not None and (isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable)):
        raise InputError("rows is not an iterable of rows", f"rows={rows!r:.40}", "give a list, such as rows=[text]")
    refuse_hydra_words(overrides)
    composition = compose_run(overrides, catalogue([config_dir] if config_dir else []), config_name)
    return Flow(composition, rows).run()


class Flow:
    """One run: its settings (one `Config` per plugin), and its steps, each done when first asked for.

    Args:
        composition: the validated config and the activated plugins.
        rows: rows that stand in for the input plugin's.
        interactive: whether somebody reads stderr, so that progress may be shown there.

    Raises:
        ConfigError: a value is missing, or a plugin refuses its settings.
    """

    def __init__(self, composition: Composition, rows: Iterable[Any] | None = None, interactive: bool = False) -> None:
        self.config, self.choices = composition.config, composition.choices
        self.interactive = interactive
        self.notes: list[str] = []
        self.watch: Callable[[int, int], None] | None = None
        """Is told of rows and tokens as `run_rows` computes them."""
        self.settings: Mapping[str, Any] = composition.settings()
        self.catalogue = composition.catalogue
        self.source = f"input={self.choices.get('input')}" if rows is None else "rows"
        self._active = composition.active
        self._given = rows
        self._caller_error: Exception | None = None

    def note(self, line: str) -> None:
        """Note what the user should know and did not ask for; shown once, on stderr if somebody reads it."""
        if line not in self.notes:
            self.notes.append(line)
            if self.interactive:
                print(f"note: {line}", file=sys.stderr)

    def settings_of(self, module: str) -> Any:
        """Return the settings of the plugin in that module; an extension asks with `__name__`."""
        return next(self.settings[key] for key, found in self._active.modules.items() if found.__name__ == module)

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call a hook with this run and the owner's settings, and say whose fault it is if it fails.

        Raises:
            BertflowError: as the plugin raised it; `PluginError` for any other exception and for an owed hook that
                returns None; `StorageError` for an OSError.
        """
        interruption.check()
        group = OWNERS.get(hook)
        settings = {"config": self.settings[group]} if group else {}
        try:
            result = getattr(self._active.manager.hook, hook)(flow=self, **settings, **arguments)
        except BertflowError:
            raise
        except OSError as error:
            raise StorageError.of(error) from error
        except (Exception, SystemExit) as error:
            if error is self._caller_error:
                raise
            raise failure(error, self._active.blame(error, group or hook), hook) from error
        if group and result is None and hook in GROUPS[group].owes:
            raise PluginError(f"hook {hook} returned None", self._active.names[group], "return its result")
        return result

    def run(self) -> Result:
        """Check, do the task, and deliver its result."""
        self.call("check_run")
        result: Result = self.call("run_task")
        delivered: Result = self.call("write_result", result=result)
        return delivered

    def render(self, result: Result) -> str:
        """Return the result as the text that the output plugin would show."""
        text: str = self.call("render_result", result=result)
        return text

    @cached_property
    def _loaded(self) -> tuple[Any, WeightsReport]:
        model, report = self.call("load_weights", model=self.call("build_model"))
        return model, report

    @cached_property
    def _description(self) -> ModelDescription:
        description: ModelDescription = self.call("describe_model", model=self.model())
        return description

    @cached_property
    def _placed(self) -> Any:
        return self.call("place_model", model=self.model())

    def model(self) -> Any:
        """Return the model, built and loaded; where it runs, and in which form, is the runtime's business."""
        return self._loaded[0]

    def weights(self) -> WeightsReport:
        """Return where the model's tensors came from."""
        return self._loaded[1]

    def description(self) -> ModelDescription:
        """Return what the model is."""
        return self._description

    def rows(self) -> Iterable[Row]:
        """Return the rows, given or read by the input plugin."""
        if self._given is None:
            rows: Iterable[Row] = self.call("read_rows")
            return rows
        return self._given_rows(self._given)

    def _given_rows(self, rows: Iterable[Any]) -> Iterator[Row]:
        iterator = iter(rows)
        for number in count():
            try:
                item = next(iterator)
            except StopIteration:
                return
            except Exception as error:
                self._caller_error = error
                raise
            yield _row(item, number)

    def batches(self) -> Iterator[Batch]:
        """Return the rows as batches that the model can take. The input is opened before the model is built.

        Raises:
            InputError: there is no row, or one that the model cannot take.
        """
        rows = iter(self.rows())
        first = next(rows, None)
        if first is None:
            raise InputError("empty batch", self.source, "give at least one row")
        pad_token_id = self.description().pad_token_id
        encoded = self._tokenized(chain((first,), rows))
        batches: Iterator[Batch] = self.call("make_batches", rows=encoded, pad_token_id=pad_token_id)
        return batches

    def _tokenized(self, rows: Iterator[Row]) -> Iterator[Row]:
        start, longest = 0, self.description().longest
        while chunk := list(islice(rows, TOKENIZE_ROWS)):
            for number, row in enumerate(self.tokenize(chunk, start), start):
                if longest is not None and len(row["input_ids"]) > longest:
                    where = f"row {number}: {len(row['input_ids'])} tokens, limit {longest}"
                    raise InputError(
                        "row is longer than the model's positions",
                        where,
                        "shorten it, or use a task with task.overflow=truncate",
                    )
                yield row
            start += len(chunk)

    def tokenize(self, rows: Sequence[Row], start: int) -> Sequence[Row]:
        """Return one row of ids for each row, of whatever length; `start` is the number of the first.

        Raises:
            InputError: a row could not be read, or the model cannot take it.
        """
        for number, row in enumerate(rows, start):
            if "error" in row:
                raise InputError(str(row["error"]), f"row {number}", "mend it, or leave it out")
        encoded: Sequence[Row] = self.call("tokenize", model=self.model(), rows=rows, start=start)
        if len(encoded) != len(rows):
            raise self._miscounted("tokenize", len(rows), len(encoded))
        return encoded

    def run_rows(self, rows: Sequence[Row], output: str, reduce: Callable[[Any], Any]) -> Sequence[Any]:
        """Run rows of ids in any grouping; return what `reduce` gives for each row's output, in their order."""

        def watched(states: Any) -> Any:
            if self.watch:
                self.watch(states.shape[0], states.shape[0] * states.shape[1])
            return reduce(states)

        results: Sequence[Any] = self.call("run_rows", model=self._placed, rows=rows, output=output, reduce=watched)
        if len(results) != len(rows):
            raise self._miscounted("run_rows", len(rows), len(results))
        return results

    def forward(self, batch: Batch) -> Outputs:
        """Run the model on one batch and return its outputs as numpy arrays."""
        outputs: Outputs = self.call("run_batch", model=self._placed, batch=batch)
        rows = len(next(iter(batch.values())))
        for array in outputs.values():
            if array.shape[:1] != (rows,):
                raise self._miscounted("forward", rows, array.shape[0] if array.shape else 0)
        return outputs

    def _miscounted(self, hook: str, rows: int, found: int) -> PluginError:
        what = f"hook {hook} gave {found} rows for {rows}"
        return PluginError(what, self._active.names[OWNERS[hook]], "give one for each, in order")

    def map(self) -> Iterator[Outputs]:
        """Run every batch through the engine and give the outputs in order."""
        outputs: Iterator[Outputs] = self.call("map_work", function=self.forward, items=self.batches())
        return outputs

    def save(self) -> dict[str, Any]:
        """Save the model as the save plugin says; return what was written, `{}` for nothing."""
        saved: dict[str, Any] = self.call("save_checkpoint", model=self.model())
        return saved

    def result(self, outputs: Mapping[str, Any], saved: Mapping[str, Any]) -> Result:
        """Put the outputs and the story of the model behind them into one result."""
        what = self.description()
        model = {
            "option": self.choices.get("model"),
            "architecture": what.architecture,
            "parameters": what.parameters,
            "dtype": what.dtype,
            "config": dict(what.config),
        }
        task = str(self.choices.get("task"))
        return Result(task, model, self.weights(), dict(outputs), saved=dict(saved) or None)


def _row(item: Any, number: int) -> Row:
    if isinstance(item, Mapping):
        return item
    if isinstance(item, str):
        return {"text": item}
    if hasattr(item, "tolist"):  # an array of ids
        item = item.tolist()
    if isinstance(item, list | tuple):
        return {"input_ids": list(item)}
    raise InputError(f"no row but {type(item).__name__}", f"row {number}", "give a text, a list of ids or a mapping")
