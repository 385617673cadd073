"""Requests to the Hub that come to an end: a silent or failing Hub is given up, at once or within a deadline.

huggingface_hub waits for some answers without limit, and asks again for minutes where none comes. Here every wait of
its session has the deadline, and so has a row of failures; a connection that breaks while bytes flow is resumed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from bertflow_standard.process import Borrowed

TOO_MANY_REQUESTS = 429
SERVER_ERROR = 500


class _Patience:
    """How long one thread waits for the Hub: `seconds` for each sign of life, and from a failure to a success."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.failing: float | None = None

    def ends(self, begun: float) -> bool:
        """Note that what had begun then has failed; return whether to give up."""
        self.failing = begun if self.failing is None else self.failing
        return time.monotonic() - self.failing >= self.seconds

    def send(self, session: Any, request: Any, **options: Any) -> Any:
        """Send a request. Raises ConnectionError, which huggingface_hub lets through, to give up."""
        from httpx2 import ConnectError, HTTPError

        begun = time.monotonic()
        left = self.seconds - (0 if self.failing is None else begun - self.failing)
        if left <= 0:
            raise ConnectionError(self._said())
        limits = request.extensions["timeout"]
        for wait in ("connect", "read", "write", "pool"):
            limits[wait] = left if limits.get(wait) is None else min(left, limits[wait])
        try:
            response = type(session).send(session, request, **options)
        except HTTPError as error:
            # Where nobody listens it helps nobody to ask again.
            if self.ends(begun) or isinstance(error, ConnectError):
                raise ConnectionError(self._said(error)) from error
            raise
        if response.status_code == TOO_MANY_REQUESTS or response.status_code >= SERVER_ERROR:
            if self.ends(begun):
                response.close()
                raise ConnectionError(f"status {response.status_code}")
            for header in ("Retry-After", "RateLimit"):  # The wait that they ask for may have no end.
                response.headers.pop(header, None)
        else:
            self.failing = None
        response.iter_raw = lambda size=None: self._read(type(response).iter_raw(response, size))
        return response

    def _read(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        from httpx2 import HTTPError

        while True:
            begun = time.monotonic()
            try:
                piece = next(pieces, None)
            except HTTPError as error:
                if self.ends(begun):
                    raise ConnectionError(self._said(error)) from error
                raise
            if piece is None:
                return
            self.failing = None
            yield piece

    def _said(self, error: Exception | None = None) -> str:
        from httpx2 import TimeoutException

        if error is None or isinstance(error, TimeoutException):
            return f"no answer for {self.seconds:g} seconds"
        return str(error) or type(error).__name__


_mine = threading.local()


def _send(request: Any, **options: Any) -> Any:
    from huggingface_hub import get_session

    session = get_session()
    patience: _Patience | None = getattr(_mine, "patience", None)
    if patience is None:  # A thread that is not bertflow's uses the same session.
        return type(session).send(session, request, **options)
    return patience.send(session, request, **options)


def _read_session() -> Any:
    from huggingface_hub import get_session

    return vars(get_session()).get("send")


def _write_session(send: Any) -> None:
    from huggingface_hub import get_session

    if send is None:
        vars(get_session()).pop("send", None)
    else:
        vars(get_session())["send"] = send


def _read_xet() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_DISABLE_XET


def _write_xet(disabled: bool) -> None:
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_XET = disabled


_session = Borrowed(_read_session, _write_session)
_xet = Borrowed(_read_xet, _write_xet)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Let what this thread asks of the Hub raise ConnectionError after `seconds` without a sign of life.

    Files travel by plain HTTP meanwhile: Xet's own transfers know neither this deadline nor a signal.
    """
    _mine.patience = _Patience(seconds)
    try:
        with _session.set(_send), _xet.set(True):
            yield
    finally:
        del _mine.patience
