"""The model card of a saved checkpoint: what it is, where it comes from, and how plain transformers loads it.

It names no path of this machine, since cards are made to be shared.
"""

from __future__ import annotations

import contextlib
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bertflow.hookspecs import WeightsReport
from bertflow_standard.checkpoint import Checkpoint
from bertflow_standard.manifest import CARD

FRONT = 1 << 16
"""Characters in which a card's front matter is looked for."""

TEXT = """\
---
{front}
---

# {architecture}

Saved by bertflow {bertflow} with transformers {transformers} and torch {torch}.

{facts}

```python
from transformers import {classes}

folder = "."  # where this file lies
{code}
```
"""


def model_card(module: Any, weights: WeightsReport, checkpoint: Checkpoint | None, tokenizer: bool) -> str:
    """Return the card, in Markdown with the Hub's front matter.

    Args:
        module: the module as it is saved.
        weights: where its tensors came from.
        checkpoint: what it was loaded from, if anything.
        tokenizer: whether one is saved along.
    """
    front, facts = _origin(checkpoint) if checkpoint else ([], ["built from a config, without a checkpoint"])
    facts += [
        f"{weights.loaded} tensors loaded, {len(weights.random)} drawn at random",
        f"saved in {str(module.dtype).removeprefix('torch.')}",
    ]
    classes = [type(module).__name__]
    # transformers would draw the pooler that a model was loaded without.
    bare = ", add_pooling_layer=False" if getattr(module, "pooler", ...) is None else ""
    code = [f"model = {classes[0]}.from_pretrained(folder{bare})"]
    if tokenizer:
        classes.append("AutoTokenizer")
        code.append("tokenizer = AutoTokenizer.from_pretrained(folder)")
    return TEXT.format(
        front="\n".join(["library_name: transformers", *front]),
        architecture=classes[0],
        facts="\n".join(f"- {fact}" for fact in facts),
        classes=", ".join(sorted(classes)),
        code="\n".join(code),
        **{name: version(name).partition("+")[0] for name in ("bertflow", "transformers", "torch")},
    )


def _origin(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """Return the front matter and the facts that tell what the model was loaded from."""
    front = _license(checkpoint.folder)
    # The path of a folder in the Hub's cache says which repository it is, and at which commit.
    cached = re.search(r"/models--([\w.-]+)/snapshots/(\w+)$", checkpoint.folder.absolute().as_posix())
    if cached:
        name = cached[1].replace("--", "/")
        return [f"base_model: {name}", *front], [f"base checkpoint: {name}", f"revision: {cached[2]}"]
    if not checkpoint.name.startswith("pkg://"):
        return front, [f"base checkpoint: {checkpoint.folder.resolve().name}, a local folder"]
    facts = [f"base checkpoint: {checkpoint.name}"]
    package = checkpoint.name.removeprefix("pkg://").partition("/")[0]
    with contextlib.suppress(PackageNotFoundError):
        facts.append(f"revision: {package} {version(package)}")
    return front, facts


def _license(folder: Path) -> list[str]:
    """Return the line with which the folder's own card states a license, if it does."""
    path = folder / CARD
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        front = re.match(r"---\n(.*?)\n---\n", file.read(FRONT), flags=re.DOTALL)
    return re.findall(r"^license: *[\w.+-]+ *$", front[1], flags=re.MULTILINE)[:1] if front else []
