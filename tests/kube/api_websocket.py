"""A WebSocket (RFC 6455) from the server's side: text goes out as it comes to be."""

import base64
import hashlib
import select
import socket
import struct
import threading
from collections.abc import Callable

MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
POLL_S = 0.05

Feed = Callable[[], tuple[str, str]]
"""All text so far, and `open`, `ended` (the server closes) or `broken` (the connection is gone)."""


def accepted(key: str) -> str:
    """Sec-WebSocket-Accept."""
    return base64.b64encode(hashlib.sha1((key + MAGIC).encode()).digest()).decode()


def frame(opcode: int, content: bytes) -> bytes:
    """An unmasked final frame."""
    size = len(content)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 127, size)
    return head + content


class Pushed:
    """One connection to which the text of a feed is pushed."""

    def __init__(self, connection: socket.socket, feed: Feed) -> None:
        self.connection = connection
        self.feed = feed
        self.over = False
        self._sent = 0
        self._lock = threading.Lock()

    def push(self) -> None:
        """Send what is new."""
        with self._lock:
            if self.over:
                return
            text, state = self.feed()
            try:
                if state != "broken" and len(text) > self._sent:
                    self.connection.sendall(frame(TEXT, text[self._sent :].encode()))
                    self._sent = len(text)
                if state == "ended":
                    self.connection.sendall(frame(CLOSE, struct.pack("!H", 1000)))
                if state == "broken":
                    self.connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                state = "broken"
            self.over = state != "open"

    def listen(self, every_s: float | None) -> None:
        """Until the client or the feed ends it; with `every_s`, push so often."""
        while True:
            readable, _, _ = select.select([self.connection], [], [], every_s)
            if readable and not self._read():
                break
            if every_s is not None:
                self.push()
        self.over = True

    def _read(self) -> bool:
        """Take a frame of the client's; says whether the connection goes on."""
        try:
            data = self.connection.recv(4096)
            if not data:
                return False
            opcode = data[0] & 0xF
            if opcode == CLOSE:
                self.connection.sendall(frame(CLOSE, struct.pack("!H", 1000)))
                return False
            if opcode == PING:
                self.connection.sendall(frame(PONG, b""))
        except OSError:
            return False
        return True
