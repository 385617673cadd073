"""No padding at all: sequences one behind the other in one row, each attending to itself alone.

All of an encoder but its attention works token by token, so rows of any lengths can share the matrix products of one
packed row, if the positions are given and the attention keeps the sequences apart. Rows of the same length share one
attention call. Whether a checkpoint's architecture can do that is not believed but tried, against the padded way.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bertflow.flow import Flow
from bertflow.hookspecs import Row
from bertflow_standard.transformers_model import TransformersModel

ATTENTION = "bertflow_packed"
LEAST_TOKENS = 256
"""Of a packed row that a thread takes alone: a product of fewer is left to all threads."""

SLACK = 1.1
"""Packed rows are planned for so much more than their tokens, since whole rows do not fill them."""

PRIMITIVES = 64
"""Products that oneDNN keeps compiled: each packed row is of a size of its own, and 1,024, its default, took 300 MB."""

TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""How far the packed numbers may be from the padded ones, as a multiple of their mean size."""


@dataclass(frozen=True)
class Run:
    """Equally long sequences that follow each other in a packed row, from token `start` on."""

    start: int
    rows: int
    length: int

    @property
    def stop(self) -> int:
        """The token behind the last."""
        return self.start + self.rows * self.length


class Packed:
    """A model that runs packed rows; shares its parameters with the model that it was made from.

    Raises:
        ValueError: the architecture takes no position ids, so its rows cannot be packed.
    """

    def __init__(self, model: TransformersModel, device: str) -> None:
        import torch
        import transformers

        if "position_ids" not in model.inputs:
            raise ValueError("the architecture takes no positions")
        transformers.AttentionInterface.register(ATTENTION, _attention)
        # A copy of the modules that shares the parameters: the loaded model stays as it is, for saving.
        shared = {id(part): part for part in (*model.module.parameters(), *model.module.buffers())}
        module = copy.deepcopy(model.module, shared)
        module.set_attn_implementation(ATTENTION)
        if device == "cpu" and torch.backends.mkldnn.is_available():
            _keep_few_primitives()
            if platform.machine().lower() in ("x86_64", "amd64"):
                _prepack(module)
        self.model = TransformersModel(module)
        self.device = device
        self.offset = _position_offset(module)
        self.pad_token_id = getattr(module.config, "pad_token_id", None)

    def takes(self, row: Row) -> bool:
        """Whether a row can be packed: one that is masked in part, or padded, keeps its own way."""
        padded = self.offset and self.pad_token_id in row["input_ids"]  # Positions are not counted on at padding.
        return 0 not in row["attention_mask"] and not padded

    def run(self, flow: Flow, rows: Sequence[Row], budget: int, output: str, reduce: Callable[[Any], Any]) -> list[Any]:
        """Run rows in packed rows of up to `budget` tokens; see the hook `run_rows`.

        On a CPU each thread takes packed rows of its own: that keeps the cores busier than all at one product.
        """
        import torch

        results: list[Any] = [None] * len(rows)

        def compute(places: Sequence[int]) -> None:
            with torch.inference_mode():
                batch, runs = self._batch([rows[place] for place in places])
                states = flow.call("forward", model=self.model, batch={**batch, "runs": runs})[output][0]
                place = iter(places)
                for run in runs:
                    reduced = reduce(_float(states[run.start : run.stop].view(run.rows, run.length, -1)))
                    for row in reduced.cpu().numpy():
                        results[next(place)] = row

        lengths = [len(row["input_ids"]) for row in rows]
        threads = torch.get_num_threads() if self.device == "cpu" else 1
        if sum(lengths) < threads * LEAST_TOKENS:
            threads = 1
        packs = list(_packs(lengths, budget, threads))
        if 1 < threads <= len(packs):
            _on_threads(compute, packs, threads)
        else:
            for places in packs:
                compute(places)
        return results

    def _batch(self, rows: Sequence[Row]) -> tuple[dict[str, Any], list[Run]]:
        import torch

        def flat(name: str) -> Any:
            values = itertools.chain.from_iterable(row.get(name) or [0] * len(row["input_ids"]) for row in rows)
            return torch.tensor(list(values), dtype=torch.long, device=self.device)[None]

        runs: list[Run] = []
        start = 0
        for length, group in itertools.groupby(rows, key=lambda row: len(row["input_ids"])):
            runs.append(Run(start, sum(1 for _ in group), length))
            start = runs[-1].stop
        positions = [torch.arange(self.offset, self.offset + run.length).repeat(run.rows) for run in runs]
        batch = {"input_ids": flat("input_ids"), "position_ids": torch.cat(positions).to(self.device)[None]}
        if any("token_type_ids" in row for row in rows):
            batch["token_type_ids"] = flat("token_type_ids")
        return batch, runs


def pack(flow: Flow, model: TransformersModel, device: str, padded: Callable[..., Sequence[Any]]) -> Packed | str:
    """Return the model in packed form, or why it cannot be had.

    Args:
        flow: the run.
        model: the placed model.
        device: where it lies.
        padded: the padded way, which is right by definition: takes rows, an output's name and `reduce`.
    """
    import numpy as np

    rows = list(_sample(model))
    try:
        packed = Packed(model, device)
        ours = packed.run(flow, rows, 128, "last_hidden_state", _whole)
    except Exception as error:  # Whatever an architecture does with what it does not know.
        return " ".join(str(error).split())[:80] or type(error).__name__
    dtype = str(model.module.dtype).removeprefix("torch.")
    for one, other in zip(ours, padded(rows, "last_hidden_state", _whole), strict=True):
        if one.shape != other.shape or np.abs(one - other).max() > TOLERANCE[dtype] * np.abs(other).mean():
            return "its numbers differ from the padded ones"
    return packed


def _whole(states: Any) -> Any:
    """Keep every token of each row, flat."""
    return states.reshape(len(states), -1)


def _sample(model: TransformersModel) -> Iterator[Row]:
    """Yield rows of random ids: short ones, equally long ones, and one that is longer than a sliding window."""
    import numpy as np

    random = np.random.default_rng(0)
    longest = min(model.longest or 512, 2 * getattr(model.module.config, "local_attention", 31) + 1)
    for length in (1, 3, 5, 5, 5, min(17, longest), longest):
        ids = random.integers(1, model.vocabulary_size, min(length, longest))
        ids[ids == model.module.config.pad_token_id] = 1 + (model.module.config.pad_token_id == 1)
        yield {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)}


def _packs(lengths: Sequence[int], budget: int, threads: int) -> Iterator[list[int]]:
    """Yield the places of the rows of each packed row, of up to `budget` tokens.

    Sorted by length, so that equal lengths meet; the longest first, whose attention takes longest, so that no thread
    is left alone with it at the end. They are of one size, and so many that each thread has as many.
    """
    total = sum(lengths)
    rounds = math.ceil(total * SLACK / (budget * threads))
    share = total / (rounds * threads)
    pack: list[int] = []
    packs = tokens = before = 0
    for place in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[place]
        if pack and (tokens + length > budget or before + length / 2 > share * (packs + 1)):
            yield pack
            pack, packs, tokens = [], packs + 1, 0
        pack.append(place)
        tokens += length
        before += length
    if pack:
        yield pack


def _on_threads(function: Callable[[Any], None], items: Iterable[Any], threads: int) -> None:
    """Apply the function to each item, on so many threads that use one core each."""
    import torch

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for _ in pool.map(function, items):
                pass
        finally:
            torch.set_num_threads(threads)  # What the workers set would be the number of threads to come, too.


def _float(states: Any) -> Any:
    """Return half precision as float32, so that a mean over many tokens keeps its digits."""
    import torch

    return states.float() if states.dtype in (torch.float16, torch.bfloat16) else states


def _position_offset(module: Any) -> int:
    """Return the first position: RoBERTa counts from behind the padding index."""
    from torch import nn

    for name, part in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return int(part.padding_idx) + 1
    return 0


def _attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, *, runs: Sequence[Run], **options: Any
) -> tuple[Any, None]:
    """Attend within each sequence of a packed row.

    `query`, `key` and `value` are of shape [1, heads, tokens, width]. Signature: transformers' AttentionInterface.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    parts = [tensor.transpose(1, 2)[0] for tensor in (query, key, value)]
    attended = torch.empty_like(parts[0])
    for run in runs:
        shape = run.rows, run.length, *parts[0].shape[1:]
        q, k, v = (part[run.start : run.stop].view(shape).transpose(1, 2) for part in parts)
        window = _window(run.length, options.get("sliding_window"), q.device)
        out = scaled_dot_product_attention(q, k, v, attn_mask=window, scale=options.get("scaling"))
        attended[run.start : run.stop] = out.transpose(1, 2).reshape(run.rows * run.length, *shape[2:])
    return attended[None], None


def _window(length: int, size: int | None, device: Any) -> Any:
    """Return the mask of a sliding window; None where the window covers the whole sequence."""
    import torch

    if size is None or length <= size:
        return None
    places = torch.arange(length, device=device)
    return (places[:, None] - places[None]).abs() < size


def _keep_few_primitives() -> None:
    """Bound oneDNN's cache, unless the user does; it asks the environment once, at the first primitive it compiles."""
    import torch

    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    bounded = name in os.environ
    os.environ.setdefault(name, str(PRIMITIVES))
    try:
        torch.zeros(1, 1).to_mkldnn()
    finally:
        if not bounded:
            del os.environ[name]


def _prepack(module: Any) -> None:
    """Give the float32 linear layers weights in oneDNN's own order.

    Its GELU is not fused into the product: behind it torch's own, which is vectorised, took less time.
    """
    import torch
    from torch import nn

    class Linear(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        """A linear layer as one product of oneDNN."""

        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
            self.weight, self.bias = linear.weight, linear.bias

        def forward(self, states: Any) -> Any:
            return torch.ops.mkldnn._linear_pointwise(states, self.packed, self.bias, "none", [], "none")

    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.dtype is torch.float32:
                setattr(parent, name, Linear(child))
