"""A program between a process of a run and the coordinator, which hides that the latter is lost.

JAX's client ends its process with a C++ stack the moment the connection to the coordinator closes,
and offers no say in it. So it is connected to this relay, which keeps its side open and reports
the loss on standard output instead: the process can then leave with a message that helps. It is a
program of its own because a thread could not pass on heartbeats while native code holds Python's
lock. Only the standard library is imported, to start at once.

    python relay.py HOST PORT SECONDS PARENT

HOST and PORT are the coordinator's. The first line of output is the port to connect to; a second
one means that the coordinator is lost: it closed a connection, or left something unanswered for
SECONDS. The program ends with its PARENT.
"""

import os
import signal
import socket
import sys
import threading
import time


class Pair:
    """A connection of the client and the one to the coordinator it is passed on to."""

    def __init__(self, client: socket.socket, coordinator: socket.socket):
        self.client, self.coordinator = client, coordinator
        self.asked: float | None = None
        """When the client sent what has had no answer yet."""
        for target in (self.send, self.receive):
            threading.Thread(target=target, daemon=True).start()

    def send(self) -> None:
        """Passes on what the client sends, and that it has closed its side."""
        try:
            while data := self.client.recv(1 << 16):
                if self.asked is None:
                    self.asked = time.monotonic()
                self.coordinator.sendall(data)
        except OSError:
            pass  # the other direction tells which side is gone
        self.asked = None
        _close(self.coordinator, socket.SHUT_WR)

    def receive(self) -> None:
        """Passes on what the coordinator sends; tells when it closed a connection in use."""
        try:
            while data := self.coordinator.recv(1 << 16):
                self.asked = None
                self.client.sendall(data)
        except OSError:
            pass
        if _is_open(self.client):
            lost("it closed the connection")
        else:
            self.client.close()


def _close(connection: socket.socket, how: int) -> None:
    try:
        connection.shutdown(how)
    except OSError:
        pass


def _is_open(connection: socket.socket) -> bool:
    """Whether the other side has not closed it; what it sent stays unread."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def lost(reason: str) -> None:
    """Reports that the coordinator is lost."""
    try:
        print(reason, flush=True)
    except OSError:
        pass  # the parent is gone too


def look_after(pairs: list[Pair], seconds: float, parent: int) -> None:
    """Waits for questions that stay unanswered and for the end of the parent."""
    while os.getppid() == parent:
        time.sleep(min(0.5, seconds / 4))
        now = time.monotonic()
        if any(now - (pair.asked or now) > seconds for pair in list(pairs)):
            lost(f"it has not answered for {seconds:.0f} s")
            seconds = float("inf")  # said once
    os._exit(0)


def main() -> None:
    """Listens on the loopback device."""
    host, port, seconds, parent = sys.argv[1:]
    # The parent decides what a signal to the whole job means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pairs: list[Pair] = []
    kept: list[socket.socket] = []  # of the client, with nothing behind; open, as it hides the loss
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        watcher = threading.Thread(
            target=look_after, args=(pairs, float(seconds), int(parent)), daemon=True
        )
        watcher.start()
        while True:
            client, _ = server.accept()
            try:
                coordinator = socket.create_connection((host, int(port)), timeout=float(seconds))
            except OSError:
                lost("it takes no connection")
                kept.append(client)
                continue
            for connection in (client, coordinator):
                connection.settimeout(None)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pairs.append(Pair(client, coordinator))


if __name__ == "__main__":
    main()
