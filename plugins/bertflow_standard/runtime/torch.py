"""`runtime=torch`: PyTorch on one device."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from bertflow import defaults, hookimpl
from bertflow.errors import ConfigError, did_you_mean
from bertflow.flow import Flow
from bertflow.hookspecs import Batch, Row
from bertflow_standard.packing import Packed, pack
from bertflow_standard.process import Borrowed
from bertflow_standard.transformers_model import TransformersModel

DEVICES = ("auto", "cpu", "cuda", "mps")
CPU_TOKENS, CPU_BYTES = 2048, 2048 * 1536 * 4
"""Most tokens of one forward pass on a CPU, and most bytes of its widest array: beyond, each is new memory."""

ACCELERATOR_TOKENS = 65536
MAX_THREADS = 4096


@dataclass
class Config:
    """Where and how the model runs."""

    device: str
    threads: int | None
    batch_tokens: int | None
    seed: int

    def __post_init__(self) -> None:
        """Refuse what torch would misread, before it is imported."""
        kind, _, index = self.device.partition(":")
        if kind not in DEVICES or (index and not index.isdigit()):
            raise ConfigError("wrong value", f"runtime.device={self.device}", did_you_mean(kind, DEVICES))
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise ConfigError("wrong value", f"runtime.threads={self.threads}", f"give 1 to {MAX_THREADS}, or null")
        if not 0 <= self.seed < 2**64:
            raise ConfigError("wrong value", f"runtime.seed={self.seed}", "give 0 to 2**64 - 1")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ConfigError("wrong value", f"runtime.batch_tokens={self.batch_tokens}", "give at least 1")


@hookimpl(wrapper=True)
def run_task(flow: Flow) -> Generator[None, Any, Any]:
    """Use the number of threads that was asked for while the task runs."""
    threads = flow.settings["runtime"].threads
    if threads is None:
        return (yield)
    with _threads.set(threads):
        return (yield)


def _read_threads() -> int:
    import torch

    return int(torch.get_num_threads())


def _write_threads(number: int) -> None:
    import torch

    torch.set_num_threads(number)


_threads = Borrowed(_read_threads, _write_threads)
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw random weights from the seed, and leave torch's generator as it was.

    The generator and the default dtype, which transformers changes while it loads, belong to the whole process: so
    threads build their models one at a time.
    """
    import torch

    with _one_at_a_time:
        # Models are drawn on the CPU; `torch.manual_seed` would reseed the generators of accelerators too.
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_rng_state(before)


@hookimpl(wrapper=True)
def build_model(flow: Flow) -> Generator[None, Any, Any]:
    """Refuse a device that this machine lacks, and seed what is drawn while the model is built."""
    _device(flow.settings["runtime"].device)
    with _seeded(flow.settings["runtime"].seed):
        return (yield)


@hookimpl(wrapper=True)
def load_weights(flow: Flow) -> Generator[None, Any, Any]:
    """Seed what is drawn for tensors that the checkpoint lacks."""
    with _seeded(flow.settings["runtime"].seed):
        return (yield)


@hookimpl
def place_model(config: Config, model: Any) -> Any:
    """Move the model to the device. A model that cannot be moved is not torch's, and runs where it is, on numpy."""
    if hasattr(model, "to"):
        return model.to(_device(config.device))
    if config.device not in ("auto", "cpu"):
        where = f"runtime.device={config.device}, a model of type {type(model).__name__}"
        raise ConfigError("model cannot be moved to a device", where, "leave runtime.device=auto")
    return model


def _device(asked: str) -> str:
    """Return torch's name of the device; raise ConfigError for one that this machine lacks."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    usable = ["cpu", *(["cuda", *cuda] if cuda else []), *(["mps"] if torch.backends.mps.is_available() else [])]
    if asked not in usable:
        fix = f"choose auto or one of {', '.join(usable)}"
        raise ConfigError("no such device on this machine", f"runtime.device={asked}", fix)
    return asked


def _budget(config: Config, model: Any) -> int:
    """Return the tokens of one forward pass."""
    if config.batch_tokens is not None:
        return config.batch_tokens
    if _device(config.device) != "cpu":
        return ACCELERATOR_TOKENS
    if not isinstance(model, TransformersModel):
        return CPU_TOKENS
    return max(1, min(CPU_TOKENS, CPU_BYTES // model.token_bytes))


@hookimpl
def describe_runtime(flow: Flow, config: Config) -> Mapping[str, Any]:
    """Tell what the settings came to on this machine; the last digit of a number may depend on each of them."""
    import torch

    device = _device(config.device)
    kind = torch.backends.cpu.get_cpu_capability() if device == "cpu" else device
    if device.startswith("cuda"):
        kind = torch.cuda.get_device_name(device)
    budget = _budget(config, flow.model())
    return {"device": device, "kind": kind, "threads": torch.get_num_threads(), "batch_tokens": budget}


@hookimpl
def make_batches(flow: Flow, config: Config, rows: Iterable[Row], pad_token_id: int) -> Iterator[Batch]:
    """Fill batches in the order of the rows, each up to `batch_tokens` with its padding, and at least one row."""
    budget = _budget(config, flow.model())
    batch: list[Row] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row["input_ids"]))
        if batch and longest * (len(batch) + 1) > budget:
            yield _pad(batch, pad_token_id)
            batch, longest = [], len(row["input_ids"])
        batch.append(row)
    if batch:
        yield _pad(batch, pad_token_id)


def _pad(rows: list[Row], pad_token_id: int) -> Batch:
    """Return numpy int64 arrays of shape [rows, tokens]; short rows end in padding that the mask leaves out."""
    import numpy as np

    shape = len(rows), max(len(row["input_ids"]) for row in rows)
    batch = {}
    for name in sorted({name for row in rows for name in row}):
        batch[name] = np.full(shape, pad_token_id if name == "input_ids" else 0, dtype=np.int64)
        for number, row in enumerate(rows):
            values = row.get(name, ())
            batch[name][number, : len(values)] = values
    return batch


@hookimpl
def run_rows(
    flow: Flow, config: Config, model: Any, rows: Sequence[Row], output: str, reduce: Callable[[Any], Any]
) -> Sequence[Any]:
    """Run the rows without padding where the architecture can, else sorted by length and padded."""
    padded = functools.partial(defaults.run_rows, flow, model)
    if not isinstance(model, TransformersModel):
        return padded(rows, output, reduce)
    device = _device(config.device)
    with _one_at_a_time:
        if model not in _packed:
            _packed[model] = pack(flow, model, device, padded)
    packed = _packed[model]
    if isinstance(packed, str):
        flow.note(f"rows are sorted and padded, not packed: {type(model.module).__name__}: {packed}")
        return padded(rows, output, reduce)
    budget = _budget(config, model)
    places = {kind: [i for i, row in enumerate(rows) if packed.takes(row) is kind] for kind in (True, False)}
    results: list[Any] = [None] * len(rows)
    for kind, run in ((True, functools.partial(packed.run, flow, budget=budget)), (False, padded)):
        chosen = places[kind]
        values = run(rows=[rows[i] for i in chosen], output=output, reduce=reduce) if chosen else ()
        for place, value in zip(chosen, values, strict=True):
            results[place] = value
    return results


_packed: WeakKeyDictionary[TransformersModel, Packed | str] = WeakKeyDictionary()


@hookimpl
def run_batch(flow: Flow, config: Config, model: Any, batch: Batch) -> Mapping[str, Any]:
    """Run `forward` without gradients, on tensors, and give numpy arrays; numpy has no bfloat16: it becomes float32."""
    if not hasattr(model, "to"):
        outputs: Mapping[str, Any] = flow.call("forward", model=model, batch=batch)
        return outputs
    import torch

    device = _device(config.device)
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(array).to(device) for name, array in batch.items()}
        return {name: _to_numpy(value) for name, value in flow.call("forward", model=model, batch=tensors).items()}


def _to_numpy(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()
    return value
