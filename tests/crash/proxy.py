"""A TCP proxy before a store: it delays, cuts, refuses, swallows, and can act after a number of bytes."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

CHUNK = 16 << 10


@dataclass
class Faults:
    """What the proxy does from now on; changed while it runs."""

    delay_s: float = 0.0
    """Before each chunk, both ways."""
    refuse: bool = False
    """New connections are reset at once."""
    swallow: bool = False
    """Nothing gets through, either way, and nobody is told."""
    cut_after: int | None = None
    """Bytes sent to the store from the start, at which every connection is reset, once, whatever else."""
    on_cut: Callable[[], None] | None = None
    """Called right before."""


class Proxy:
    def __init__(self, target: int) -> None:
        self.faults = Faults()
        self.sent = 0
        """Bytes that went to the store."""
        self.received = 0
        """Bytes that came from it."""
        self.port = 0
        self._target = target
        self._open: set[asyncio.StreamWriter] = set()

    async def serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._loop = asyncio.get_running_loop()
        started.set()
        await stop.wait()
        server.close()
        self._reset_now()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.faults.refuse:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._open |= {writer, back}
        try:
            await asyncio.gather(
                self._pass_on(reader, back, upstream=True),
                self._pass_on(there, writer, upstream=False),
            )
        finally:
            self._open -= {writer, back}
            for end in (writer, back):
                end.transport.abort()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: bool
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK):
                await asyncio.sleep(self.faults.delay_s)
                if upstream:
                    self.sent += len(data)
                    self._cut_if_due()
                else:
                    self.received += len(data)
                if not self.faults.swallow:
                    writer.write(data)
                    await writer.drain()
            writer.close()

    def _cut_if_due(self) -> None:
        faults = self.faults
        if faults.cut_after is None or self.sent < faults.cut_after:
            return
        faults.cut_after = None
        if faults.on_cut:
            faults.on_cut()
        self._reset_now()

    def reset_all(self) -> None:
        """Resets all connections; for other threads than the proxy's own."""
        self._loop.call_soon_threadsafe(self._reset_now)

    def _reset_now(self) -> None:
        for writer in self._open:
            writer.transport.abort()


@contextmanager
def proxy_to(target: int) -> Iterator[Proxy]:
    """Forwards a port of 127.0.0.1, `proxy.port`, to the port `target`, in a thread."""
    proxy, started = Proxy(target), threading.Event()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(proxy.serve(started, stop)))
    thread.start()
    started.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
