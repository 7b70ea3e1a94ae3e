"""Sends an HTTP request with retries: `Wire(address, limits, key).ask(…)`.

A time-out covers the whole exchange, so that a server which sends a byte a minute is cut off, too.
Failed connections, time-outs, statuses 408, 409, 425, 429 and 5xx, and malformed replies are tried
again; other statuses are refusals. The wait between tries doubles each time, or is as long as the
endpoint's Retry-After header says. Nothing here imports torch.
"""

import functools
import http.client
import json
import random
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

from megatron_qwen3.posttrain.generators.replies import (
    LockedOut,
    Malformed,
    RequestRefused,
    ShutOut,
    error_text,
    parsed,
)
from megatron_qwen3.posttrain.generators.settings import EndpointLimits

_T = TypeVar("_T")
_AGAIN = (408, 409, 425, 429)
_SHUT_OUT = (402, 404, 405)  # due to the key, the bill or the address, not to the request
_LEAST_SHOWN = 3  # first characters of a key, which show only its kind
_PIECE_BYTES = 1 << 16
_ERROR_BYTES = 1 << 16  # read of an error's page


class Failure(Exception):
    """A request without an answer after all tries; the text is the last try's reason."""


class Unreachable(Failure):
    """No server accepted the connection, or replied in time."""


class Senseless(Failure):
    """The replies did not follow the protocol."""


class _Transient(Exception):
    """A fault that may pass. wait: seconds that the endpoint asks for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Silent(_Transient):
    """No status arrived."""


_KINDS: dict[type, type[Failure]] = {_Silent: Unreachable, Malformed: Senseless}


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections that another thread can cut: `request.cut()`."""

    def http_open(self, request: Any) -> Any:
        return self.do_open(functools.partial(request.opened, http.client.HTTPConnection), request)

    def https_open(self, request: Any) -> Any:
        secure = functools.partial(http.client.HTTPSConnection, context=self.certificates)
        return self.do_open(functools.partial(request.opened, secure), request)

    @functools.cached_property
    def certificates(self) -> ssl.SSLContext:
        return ssl.create_default_context()


class _Exchange(urllib.request.Request):
    """A request that knows its connection."""

    connection: http.client.HTTPConnection | None = None

    def opened(
        self, kind: Callable[..., http.client.HTTPConnection], host: str, **more: Any
    ) -> http.client.HTTPConnection:
        self.connection = kind(host, **more)
        return self.connection

    def cut(self) -> None:
        """End the exchange, whichever thread runs it."""
        socket = self.connection.sock if self.connection else None
        if socket is not None:
            try:
                socket.shutdown(2)
            except (OSError, ValueError):
                return  # it has ended already


class _NoRedirections(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class Wire:
    """Requests to one address, from any thread. direct: ignore the proxies that the environment
    names."""

    def __init__(
        self, address: str, limits: EndpointLimits, key: str, direct: bool = False
    ) -> None:
        self._address, self._limits, self._key = address, limits, key
        self._key_written = re.compile(b"".join(map(_written, key))) if key else None
        proxies = [urllib.request.ProxyHandler({})] if direct else []
        self._opener = urllib.request.build_opener(_Handler, _NoRedirections, *proxies)
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._next_time = 0.0
        self._under_way: set[_Exchange] = set()

    def stop(self) -> None:
        """End all waiting: open and later requests fail at once."""
        self._stopped.set()
        with self._lock:
            for exchange in self._under_way:
                exchange.cut()

    def ask(self, path: str, body: dict[str, Any] | None, take: Callable[[Any], _T]) -> _T:
        """`take` of the reply to a POST of `body`, or to a GET where it is None.

        Failure after the last try, RequestRefused where another try would not help.
        """
        waits = random.Random(json.dumps(body, sort_keys=True, default=str))
        for number in range(self._limits.tries):
            if self._stopped.is_set():
                raise Failure("stopped")
            try:
                return self._taken(self._exchange(path, body), take)
            except (_Transient, Malformed) as error:
                reason, asked = self._told(error), getattr(error, "wait", 0.0)
                kind = _KINDS.get(type(error), Failure)
            except RequestRefused as error:
                raise type(error)(self._told(error)) from None
            if number + 1 < self._limits.tries:
                doubled = self._limits.first_wait * 2**number * waits.uniform(0.75, 1.25)
                if self._stopped.wait(min(max(doubled, asked), self._limits.longest_wait)):
                    raise Failure("stopped")
        tries = f" ({self._limits.tries} tries)" if self._limits.tries > 1 else ""
        raise kind(reason + tries)

    def _taken(self, data: bytes, take: Callable[[Any], _T]) -> _T:
        """`take` of a reply. An error of it quotes the reply, so it is made again from the reply
        without the key: a key that was cut short in a quotation could not be recognized."""
        try:
            return take(parsed(data))
        except (Malformed, RequestRefused) as error:
            kind, told, cleaned = type(error), str(error), self._without_key(data)
        if cleaned != data:
            try:
                take(parsed(cleaned))
                told = "the reply makes no sense, and has the key in it"
            except (Malformed, RequestRefused) as error:
                told = str(error)
        raise kind(told)

    def _exchange(self, path: str, body: dict[str, Any] | None) -> bytes:
        self._await_turn()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        exchange = _Exchange(self._address + path, data, headers)
        timer = threading.Timer(self._limits.seconds, exchange.cut)
        timer.daemon = True
        deadline = time.monotonic() + self._limits.seconds
        with self._lock:
            self._under_way.add(exchange)
        try:
            timer.start()
            return self._reply(exchange, deadline)
        finally:
            timer.cancel()
            with self._lock:
                self._under_way.discard(exchange)

    def _reply(self, exchange: _Exchange, deadline: float) -> bytes:
        try:
            with self._opener.open(exchange, timeout=self._limits.seconds) as response:
                return self._read(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                raise self._status(error) from None
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            # http.client fails in ways of its own where its socket is closed meanwhile.
            if time.monotonic() >= deadline or isinstance(error, TimeoutError):
                raise _Silent(f"no reply within {self._limits.seconds:g} s") from None
            reason = getattr(error, "reason", None) or error
            raise _Silent(f"{type(reason).__name__}: {reason}") from None

    def _read(self, response: Any, deadline: float) -> bytes:
        """The whole body; Refused where it is too long, TimeoutError after the deadline."""
        most, body = self._limits.most_bytes, bytearray()
        while piece := response.read1(_PIECE_BYTES):
            body += piece
            if len(body) > most:
                raise RequestRefused(f"the reply has more than {most:,} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError
        missing = response.length
        if missing:
            raise _Transient(f"the connection was cut {missing:,} bytes before the reply's end")
        return bytes(body)

    def _status(self, error: urllib.error.HTTPError) -> Exception:
        """The exception for a status other than success."""
        page = self._without_key(_page(error))
        try:
            text = error_text(parsed(page)) if page else ""
        except Malformed:
            text = page[:200].decode("utf-8", "replace")
        reason = f"status {error.code}: {text or error.reason}"
        if error.code in _AGAIN or error.code >= 500:
            return _Transient(reason, _seconds(error.headers.get("Retry-After", "")))
        if 300 <= error.code < 400:
            where = error.headers.get("Location", "nowhere")
            return ShutOut(f"status {error.code}: redirects to {where}; is that the address?")
        if error.code == 401:
            return LockedOut(reason)
        return ShutOut(reason) if error.code in _SHUT_OUT else RequestRefused(reason)

    def _await_turn(self) -> None:
        """Wait until one more request is within the limit of each minute."""
        if not self._limits.per_minute:
            return
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next_time)
            self._next_time = at + 60 / self._limits.per_minute
        self._stopped.wait(at - now)

    def _told(self, error: Exception) -> str:
        return self._without_key(str(error).encode("utf-8", "replace")).decode()

    def _without_key(self, data: bytes) -> bytes:
        """Remove the key, however it is escaped, and a beginning of it at the end of the data."""
        if not self._key_written:
            return data
        data, key = self._key_written.sub(b"[key]", data), self._key.encode()
        for size in range(len(key) - 1, _LEAST_SHOWN, -1):
            if data.endswith(key[:size]):
                return data[:-size] + b"[key]"
        return data


def _written(character: str) -> bytes:
    """A pattern of one character, plain or as JSON, repr and addresses escape it."""
    number = ord(character)
    plain = re.escape(character)
    pattern = rf"(?:\\{{0,2}}{plain}|\\u(?i:{number:04x})|\\x(?i:{number:02x})|%(?i:{number:02x}))"
    return pattern.encode()


def _page(error: urllib.error.HTTPError) -> bytes:
    """The first bytes of an error's page, which may arrive in pieces."""
    page = bytearray()
    try:
        while error.fp and len(page) < _ERROR_BYTES:
            piece = error.read1(_ERROR_BYTES - len(page))
            if not piece:
                break
            page += piece
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        pass  # the connection was cut: show the bytes that came
    return bytes(page)


def _seconds(text: str) -> float:
    """Seconds of a Retry-After header; 0 for a date or anything else."""
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0.0
