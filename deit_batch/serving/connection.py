"""One connection of a server: uvicorn's, with bounds on what its client may cost the others."""

from __future__ import annotations

import asyncio
import heapq
import json
import re
from collections import Counter
from urllib.parse import unquote

import h11
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from deit_batch.system.machine import most_open_files

HEAD_SECONDS = 10
"""For the head of a request to come, and for a connection to stay that sends none."""
UNREAD_SECONDS = 30
"""In which a client must take something of its answer."""
LINGER_SECONDS = 5
"""For a client to hear an answer that came before its request was whole. What it still sends is thrown away."""
HALF_CLOSED_SECONDS = 5
"""For the answer to a client that has closed its side. One that has left looks the same, and should cost no more."""

MOST_CONNECTIONS = 800
"""The usual limit of open files is 1,024."""
OTHER_FILES = 224
"""Open ones that are no clients: what is fetched, the decoders, libraries."""

_ONCE = (b"authorization", b"content-type", b"origin")
"""Fields of which a proxy may have looked at another than we do. (h11 refuses a second Host and Content-Length.)"""

MOST_LINES = 500
"""In the head of a request and between the chunks of its body, which have two each: reading one takes 10 µs, in which
nobody else is answered, however short it is. (A client that streams JSON may send each string and comma as a chunk.)"""
BYTES_A_LINE = 256
"""So many bytes of them allow one more."""
HEAD_PART = 4096
"""Bytes that are read at a time of what may be a head: h11 looks at the size of a head only if it is not whole yet."""


_ABSOLUTE = re.compile(rb"https?://[^/]*", re.IGNORECASE)


def _take_off_host(scope: Scope) -> None:
    """Of a target in absolute form, as proxies send it: `GET http://host/health` (RFC 9112, section 3.2.2)."""
    if scope["type"] == "http" and (absolute := _ABSOLUTE.match(scope["raw_path"])):
        scope["raw_path"] = scope["raw_path"][absolute.end() :] or b"/"
        scope["path"] = unquote(scope["raw_path"].decode("ascii"))


def most_connections() -> int:
    """As the process may have files open."""
    files = most_open_files()
    return MOST_CONNECTIONS if files is None else min(MOST_CONNECTIONS, max(1, files - OTHER_FILES))


class Connection(H11Protocol):
    """With limits of connections, of lines, and of the time for the head of a request, for reading the answer, and for
    going on with a request that is answered already."""

    _timer: asyncio.TimerHandle | None = None
    """Ends it, unless what it waits for comes."""
    _unread: asyncio.TimerHandle | None = None
    _waiting_since = 0.0
    _lines = _bytes = 0
    _is_ending = _is_half_closed = _is_given_up = False

    # --- what the transport tells -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app = self._run_unless_left
        transport.set_write_buffer_limits(high=0)  # so that we are told of whatever the kernel does not take at once
        self._waiting_since = self.loop.time()
        if len(self.connections) > most_connections():
            self._make_room()
        self._limit_head()

    def data_received(self, data: bytes) -> None:
        while data and not self._is_ending:
            part, data = (data, b"") if self._is_in_body() else (data[:HEAD_PART], data[HEAD_PART:])
            if self._has_too_many_lines(part):
                self._refuse("too many lines in the head of the request, or chunks in its body")
                return
            super().data_received(part)
        if not self._is_ending:
            self._limit_head()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether it stays open: for a client that has sent its whole request, and waits for the answer."""
        if self._is_ending or self.waits_for_client:
            self._is_given_up = True
            return False
        self._is_half_closed = True
        self._end_after(HALF_CLOSED_SECONDS)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end_after(None)
        self._forget_unread()

    # --- what uvicorn tells -----------------------------------------------------------------------------------------

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._waiting_since = self.loop.time()
            names = Counter(name for name, _ in self.headers)
            if twice := next((name for name in _ONCE if names[name] > 1), None):
                self._refuse(f"more than one {twice.decode()} in one request (RFC 9110, section 5.3)")
            elif names.keys() >= {b"content-length", b"transfer-encoding"}:
                # Between two servers that read it differently, one client's body would be another's request.
                self._refuse("Content-Length and Transfer-Encoding in one request (RFC 9112, section 6.1)")

    def on_response_complete(self) -> None:
        self._lines = self._bytes = 0
        self._waiting_since = self.loop.time()
        super().on_response_complete()  # which goes on with what the client has sent already
        if self._is_half_closed and self.cycle.response_complete:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no request, or costs too much, and ends the connection."""
        self._is_given_up = True
        if self.cycle is not None and not self.cycle.response_complete:  # type: ignore[redundant-expr]
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"detail": msg}).encode()
            fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
            answer = h11.Response(status_code=400, headers=list(fields.items()), reason=b"Bad Request")
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self._end()

    def shutdown(self) -> None:
        if self._is_ending:
            self.transport.close()
        else:
            super().shutdown()

    # --- the bounds -------------------------------------------------------------------------------------------------

    @property
    def waits_for_client(self) -> bool:
        """Whether it is the client's turn: to send a request, or the rest of one."""
        # None before the first request, whatever uvicorn's annotation says.
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body  # type: ignore[redundant-expr]

    async def _run_unless_left(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """The application, once the event loop has seen what else the client has done: if it has left in the middle of
        its request, or sent what is none, that is to cost the others no more than reading its head."""
        await asyncio.sleep(0)
        if self._is_given_up:
            self.cycle.disconnected = True
        else:
            _take_off_host(scope)
            await self.config.loaded_app(scope, receive, self._send_as_last_if_early(send))

    def _send_as_last_if_early(self, send: ASGISendCallable) -> ASGISendCallable:
        """Sends an answer. One to a request that is not whole yet is the last on its connection, and says so: what the
        client still sends is thrown away, and its next request must not be (RFC 9112, section 9.6)."""
        is_early = False

        async def send_on(message: ASGISendEvent) -> None:
            nonlocal is_early
            if message["type"] == "http.response.start" and self.cycle.more_body:
                is_early = True
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            if is_early and message["type"] == "http.response.body" and not message.get("more_body"):
                await send({**message, "more_body": True})  # for uvicorn would close it at the end, and not linger
                self._finish_early()
            else:
                await send(message)

        return send_on

    def _finish_early(self) -> None:
        if not self.cycle.disconnected:
            self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
            self.cycle.response_complete = True
            self.cycle.message_event.set()
            self._end()

    def _make_room(self) -> None:
        """Ends connections whose clients have let us wait longest: a new one may be a probe of our health, and must not
        be kept out by those that say nothing. Some at a time, for looking for them takes a while."""
        connections = [
            one for one in self.connections if isinstance(one, Connection) and not one.transport.is_closing()
        ]
        most = most_connections()
        if len(connections) > most:
            waiting = [one for one in connections if one.waits_for_client]  # this one is
            for one in heapq.nsmallest(1 + most // 20, waiting, key=lambda one: one._waiting_since):
                one.transport.abort()

    def _refuse(self, message: str) -> None:
        self.logger.warning("a request is refused with 400: %s", message)
        self.send_400_response(message)

    def _is_in_body(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY

    def _has_too_many_lines(self, part: bytes) -> bool:
        if self._is_in_body() and all(name != b"transfer-encoding" for name, _ in self.headers):
            return False  # its length is known: nobody looks at its lines
        self._lines += part.count(b"\n")
        self._bytes += len(part)
        return self._lines > MOST_LINES + self._bytes // BYTES_A_LINE

    def _end(self) -> None:
        """Tells the client that this was all, and throws away what it still sends. If the connection were closed at
        once, that would make the kernel take back the answer, too (RFC 9112, section 9.6)."""
        self._is_ending = True
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if not self.transport.is_closing():
            self.transport.write_eof()
        self._end_after(LINGER_SECONDS)

    def _limit_head(self) -> None:
        """Runs a timer while no request is being answered, from the first byte of the next."""
        if self.cycle is not None and not self.cycle.response_complete:  # type: ignore[redundant-expr]
            self._end_after(None)
        elif self._timer is None:
            self._end_after(HEAD_SECONDS)

    def _end_after(self, seconds: float | None) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    # --- a client that does not read --------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_unread()

    def _wait_for_reader(self) -> None:
        unsent = self.transport.get_write_buffer_size()

        def look() -> None:
            if self.transport.get_write_buffer_size() < unsent:
                self._wait_for_reader()
            else:
                self.transport.abort()

        self._unread = self.loop.call_later(UNREAD_SECONDS, look)

    def _forget_unread(self) -> None:
        if self._unread:
            self._unread.cancel()
        self._unread = None
