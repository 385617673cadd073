"""Tokens that somebody's code left in the JSON files of a checkpoint: bertflow neither shows nor saves them.

transformers takes an argument of `from_pretrained` such as `hf_token="hf_..."` for a special token of the tokenizer,
and writes it into every file that lists those.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from bertflow import redaction
from bertflow_standard.checkpoint import read_object

FIELDS = ("token", "use_auth_token", "hf_token", "auth_token", "access_token")
# In a vocabulary `token` is a word, and its value a number.
_HELD = re.compile(rf'"({"|".join(FIELDS)})"\s*:\s*(?![\s\d])')


def remove_tokens(folder: Path) -> None:
    """Take tokens out of the JSON files in a folder; files without one stay as they are, byte for byte."""
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in folder.rglob("*.json")}
    if not any(_HELD.search(text) or redaction.redact(text) != text for text in texts.values()):
        return
    contents = {path: read_object(path) for path in texts}
    secrets = {*redaction.secrets(), *(secret for content in contents.values() for secret in _secrets(content))}
    for path, content in contents.items():
        clean = _clean(content, secrets)
        if clean != content:
            path.write_text(json.dumps(clean, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _secrets(content: Any) -> Iterator[str]:
    """Yield the values of the fields that hold a token, wherever they stand."""
    for name, value in content.items() if isinstance(content, dict) else ():
        if name in FIELDS and isinstance(value, str) and len(value) >= redaction.SHORTEST:
            yield value
        yield from _secrets(value)


def _clean(content: Any, secrets: Collection[str]) -> Any:
    """Return JSON without those fields, and without whatever holds one of the values."""
    if isinstance(content, dict):
        kept = {name: value for name, value in content.items() if not _holds(name, secrets)}
        kept = {name: value for name, value in kept.items() if name not in FIELDS or type(value) is int}
        return {name: _clean(value, secrets) for name, value in kept.items() if not _holds(value, secrets)}
    if isinstance(content, list):
        return [_clean(item, secrets) for item in content if not _holds(item, secrets)]
    return content


def _holds(value: Any, secrets: Collection[str]) -> bool:
    """Whether this is a secret, or a tokenizer's entry for one."""
    text = value.get("content") if isinstance(value, dict) else value
    return isinstance(text, str) and any(secret in text for secret in secrets)
