"""Connections that do not wait forever: uvicorn gives a client all the time that it wants for a request's headers."""

from __future__ import annotations

import asyncio
import socket
import time

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

LAST_SECONDS = 2.0  # for the answers to what was cancelled


class Connection(H11Protocol):
    """Closes a connection that has said nothing yet, or a part of a request's headers, for ``seconds``.

    It also ends one whose client reads nothing of its answers for so long: they are kept in memory until then.
    Bodies have a limit of their own (guard.py), idle connections one of uvicorn's.
    """

    seconds: float
    most: int
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come; one too many is not even told so."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """A part of a request, or all of it."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        super().pause_writing()
        self._look_at_unsent(None)

    def _look_at_unsent(self, before: int | None) -> None:
        """``before``: bytes that were unsent when it was last looked, ``seconds`` ago."""
        if not self.flow.write_paused:
            return
        unsent = self.transport.get_write_buffer_size()
        if before is not None and unsent >= before:
            self.transport.abort()  # close() would wait for the client
            return
        self.loop.call_later(self.seconds, self._look_at_unsent, unsent)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # a request is being answered
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._late)

    def _late(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()


def connections(seconds: float, most: int) -> type[Connection]:
    """For uvicorn's ``http``: the class of connections that wait so long for headers, ``most`` at a time."""
    return type("Connection", (Connection,), {"seconds": seconds, "most": most})


class Server(uvicorn.Server):
    """Ends whatever its clients do: uvicorn waits for each that does not read its answer."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Until the graceful time is over and what was cancelled then is answered, if its client reads it."""
        await super().shutdown(sockets)
        end = time.monotonic() + LAST_SECONDS
        while self.server_state.connections and not self.force_exit and time.monotonic() < end:
            await asyncio.sleep(0.05)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
