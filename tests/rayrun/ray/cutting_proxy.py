"""A TCP proxy that cuts its connections: after some bytes of the answer, or after some time."""

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Sequence


class CuttingProxy:
    """Passes connections on to a port of this machine; each is cut when its bytes or time are up."""

    def __init__(self, port: int, *, after_bytes: Sequence[int], after_s: float) -> None:
        self.cuts = 0
        self._target = ("127.0.0.1", port)
        self._limits = itertools.cycle(after_bytes)
        self._after_s = after_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                pair = (client, socket.create_connection(self._target))
                limit = next(self._limits)
                threading.Thread(target=self._up, args=pair, daemon=True).start()
                threading.Thread(target=self._down, args=(*pair, limit), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        end(client, server)

    def _down(self, client: socket.socket, server: socket.socket, limit: int) -> None:
        until = time.monotonic() + self._after_s
        with contextlib.suppress(OSError):
            while True:
                server.settimeout(max(0.01, until - time.monotonic()))
                data = server.recv(65536)
                if not data:
                    break
                client.sendall(data[:limit])
                limit -= len(data)
                if limit <= 0:
                    self.cuts += 1
                    break
        self.cuts += time.monotonic() >= until
        end(client, server)


def end(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
