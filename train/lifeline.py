"""The line between the ranks of a run: when one dies, the others learn it at once, tell why, and end too.

Without it a dead rank shows late. NCCL waits for its timeout, launchers give each process half a minute in turn, and
ranks on other machines may not hear of it at all. Rank 0 holds a TCP connection to every other rank. The system closes
those of a process that dies, whatever killed it; keep-alive probes notice a machine that is gone.
"""

import contextlib
import hmac
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GRACE = 5.0
"""Seconds that a rank has to end by itself once another one is dead; its main thread may be waiting for ever."""
CONNECT_TIMEOUT = 60.0
PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}
"""A machine that does not answer for 30 s is dead."""
MOST_BYTES = 16_384
"""Of one message."""


@dataclass
class Peer:
    """A connection; `name` is None until the other side has said who it is."""

    line: socket.socket
    name: str | None = None
    read: bytes = b""
    done: bool = False


class Lifeline:
    """One rank's end of the line. `tie` makes it.

    Args:
        index: this rank; rank 0 holds a connection to each of the others, which each hold one to rank 0.
        world: number of ranks.
        token: what the others say to rank 0 to show that they belong to the run.
        teller: whether this process prints why the run ends.
    """

    def __init__(self, index: int, world: int, token: str, line: socket.socket, teller: bool) -> None:
        self.index, self.world, self.token, self.teller = index, world, token, teller
        self.line, self.peers = line, dict[socket.socket, Peer]()
        self.reason: str | None = None
        self._closing, self._lock, self._told = False, threading.Lock(), threading.Event()
        # A loader process that outlives its rank by some seconds must not keep the connection open.
        os.register_at_fork(after_in_child=self._drop)
        work = self._watch_others if index == 0 else self._watch_first
        threading.Thread(target=work, name="lifeline", daemon=True).start()

    def fail(self, reason: str) -> None:
        """Tells the other ranks why this one ends. Its own message is the caller's to print."""
        self._closing = True
        text = f"{_name(self.index)} has ended: {reason}"
        if self.index == 0:
            self._announce("end", text)
        else:
            _send(self.line, "fail", text)

    def let_go(self) -> None:
        """Says that this rank ends as it should."""
        self._closing = True
        if self.index == 0:
            self._announce("bye")
        else:
            _send(self.line, "bye")

    def verdict(self, wait: float) -> str | None:
        """Which rank ended the run and why, None where nothing is known after `wait` seconds."""
        self._told.wait(wait)
        return self.reason

    def _watch_others(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self.line, selectors.EVENT_READ)
            joined = 0
            while not self._closing:
                for key, _ in ready.select():
                    if key.fileobj is self.line:
                        with contextlib.suppress(OSError):
                            accepted, _ = self.line.accept()
                            _probe(accepted)
                            self.peers[accepted] = Peer(accepted)
                            ready.register(accepted, selectors.EVENT_READ)
                        continue
                    peer = self.peers[key.fileobj]  # type: ignore[index]
                    known, text = peer.name, self._hear(peer)
                    joined += known is None and peer.name is not None
                    if joined == self.world - 1 and self.line.fileno() >= 0:
                        ready.unregister(self.line)
                        self.line.close()
                    if peer.done:
                        ready.unregister(peer.line)
                        del self.peers[peer.line]
                        peer.line.close()
                    if text is not None:
                        self._announce("end", text)
                        self._end(text)

    def _hear(self, peer: Peer) -> str | None:
        """Takes in what a peer sends; why the run has to end, if it has to."""
        data = _receive(peer.line)
        peer.read += data
        if not data or len(peer.read) > MOST_BYTES:
            peer.done = True
            return None if peer.name is None else f"{peer.name} {_WORDLESS}"
        *lines, peer.read = peer.read.split(b"\n")
        for line in lines:
            kind, text = _parse(line)
            if peer.name is None:
                # Whoever else finds the port has no say.
                known = kind == "hello" and hmac.compare_digest(text.partition(" ")[0], self.token)
                peer.name, peer.done = (text.partition(" ")[2], False) if known else (None, True)
            elif kind in ("bye", "fail"):
                peer.done = True
                return text if kind == "fail" else None
        return None

    def _watch_first(self) -> None:
        read = b""
        while not self._closing:
            data = _receive(self.line)
            read += data
            *lines, read = read.split(b"\n")
            for kind, text in map(_parse, lines):
                if kind == "bye":
                    return
                if kind == "end":
                    self._end(text)
            if not data and not self._closing:
                self.teller = self.teller or self.index == 1
                self._end(f"rank 0 {_WORDLESS}")

    def _announce(self, kind: str, text: str = "") -> None:
        for peer in list(self.peers.values()):
            if peer.name is not None:
                _send(peer.line, kind, text)

    def _end(self, text: str) -> None:
        """Ends this process because of another one's death."""
        with self._lock:
            if self._closing:  # the main thread is at it already, with a reason of its own
                return
            self.reason = text
        if self.teller:
            print(f"error: {text}; all ranks end", file=sys.stderr, flush=True)
        self._told.set()
        time.sleep(GRACE)
        os._exit(1)

    def _drop(self) -> None:
        for line in (self.line, *self.peers):
            line.close()


_WORDLESS = (
    "has died without a word: it was killed (the system's log on that machine tells whether it ran out of memory), it "
    "crashed, or its machine is gone"
)
_tied: Lifeline | None = None


def tie(index: int, world: int, gather: Callable[[Any], list[Any]]) -> None:
    """Ties this process to the other ranks; called on every rank.

    Args:
        gather: returns every rank's value, by rank.
    """
    global _tied
    if world == 1 or _tied is not None:
        return
    listener = None
    if index == 0:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(("", 0), family=family, backlog=world, dualstack_ipv6=both)
    offer = (listener.getsockname()[1], secrets.token_hex(16)) if listener else None
    port, token = gather(offer)[0]
    line, problem = listener, None
    if line is None:
        try:
            line = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=CONNECT_TIMEOUT)
            line.settimeout(None)
            _probe(line)
            _send(line, "hello", f"{token} {_name(index)}")
        except OSError as error:
            problem = f"rank {index} cannot reach rank 0 at {os.environ['MASTER_ADDR']}, port {port}: {error}"
    problems = [text for text in gather(problem) if text]
    if problems:
        if index == 0:
            print(f"warning: {problems[0]}; if a rank dies, the others notice late", file=sys.stderr, flush=True)
        return
    assert line is not None
    _tied = Lifeline(index, world, token, line, teller=index == 0 or os.environ.get("LOCAL_RANK") == "0")


def fail(reason: str) -> None:
    """Tells the other ranks, where there are any, why this one ends."""
    if _tied is not None:
        _tied.fail(reason)


def let_go() -> None:
    """Says that this rank ends as it should."""
    if _tied is not None:
        _tied.let_go()


def verdict(wait: float) -> str | None:
    """Which other rank ended the run and why; None where that is not known after `wait` seconds."""
    return None if _tied is None else _tied.verdict(wait)


def _name(index: int) -> str:
    return f"rank {index} (process {os.getpid()} on {socket.gethostname()})"


def _probe(line: socket.socket) -> None:
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBES.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _receive(line: socket.socket) -> bytes:
    """What there is to read; nothing once the other side has gone."""
    try:
        return line.recv(4096)
    except OSError:
        return b""


def _send(line: socket.socket, kind: str, text: str = "") -> None:
    with contextlib.suppress(OSError):
        line.sendall(json.dumps([kind, text[: MOST_BYTES // 8]]).encode() + b"\n")


def _parse(line: bytes) -> tuple[str, str]:
    try:
        kind, text = json.loads(line)
        return str(kind), str(text)
    except (ValueError, TypeError, RecursionError):
        return "", ""
