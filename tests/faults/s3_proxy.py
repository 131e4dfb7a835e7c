"""A proxy in front of an S3 server that answers 503, or slowly, for a while.

client --TCP--> proxy --TCP--> server
                  |
                  during an outage: 503 SlowDown, connection closed
"""

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self

BLOCK = 1 << 16
BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: 63\r\n"
    b"Connection: close\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>Slow down</Message></Error>"
)


class S3Proxy:
    """A context manager; `endpoint` is host:port of the proxy."""

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._outage_until = 0.0
        self.delay_s = 0.0
        """Pause before every block that a client sends."""
        self.num_refused = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def is_out(self) -> bool:
        return time.monotonic() < self._outage_until

    def fail_for(self, seconds: float) -> None:
        """Answer 503 from now on for so long."""
        self._outage_until = time.monotonic() + seconds

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._server) as server:
            back = threading.Thread(target=_pipe, args=(server, client), daemon=True)
            back.start()
            while block := client.recv(BLOCK):
                time.sleep(self.delay_s)
                if self.is_out:
                    self.num_refused += 1
                    client.sendall(BUSY)
                    break
                server.sendall(block)
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)


def _pipe(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(BLOCK):
            target.sendall(block)
