"""Secrets stay secret: the Hub's token is taken out of what bertflow prints, and out of the texts that it writes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MASK = "***"

SHORTEST = 8
"""Characters. A shorter value is no token but a word such as `none`; to mask it would garble everything else."""


def redact(text: str) -> str:
    """Return the text with every token of huggingface_hub replaced by `***`."""
    for secret in secrets():
        text = text.replace(secret, MASK)
    return text


def secrets() -> list[str]:
    """Return the tokens that huggingface_hub would use, found as it finds them: in the environment and its file."""
    get = os.environ.get
    home = get("HF_HOME") or f"{get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    file = get("HF_TOKEN_PATH") or f"{home}/token"
    found = [get("HF_TOKEN", ""), get("HUGGING_FACE_HUB_TOKEN", "")]
    with contextlib.suppress(OSError, ValueError):  # Nobody has logged in.
        found.append(Path(os.path.expandvars(os.path.expanduser(file))).read_text(encoding="utf-8"))
    tokens = {token.strip() for token in found}
    return sorted((token for token in tokens if len(token) >= SHORTEST), key=len, reverse=True)


class _RedactedStream:
    """A text stream whose every `write` is redacted; all else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.inside_line = False

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        self.inside_line = not text.endswith("\n") if text else self.inside_line
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def redacted_stderr() -> Iterator[None]:
    """Redact what anybody prints on stderr meanwhile: bertflow's lines, tracebacks, warnings and libraries' logs."""
    # Where the shell closed stderr, what is printed must not go to stdout instead.
    stream: Any = _RedactedStream(io.StringIO() if sys.stderr is None else sys.stderr)
    with contextlib.redirect_stderr(stream):
        yield


def print_error(line: str) -> None:
    """Print the line that an error ends in on stderr, below what a progress bar has left there."""
    start = "\n" if getattr(sys.stderr, "inside_line", False) else ""
    with contextlib.suppress(OSError):  # The reader may have left.
        print(f"{start}error: {line}", file=sys.stderr, flush=True)
