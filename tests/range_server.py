"""A real HTTP server on loopback that serves a folder, with ranges, and misbehaves on request."""

import re
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class RangeServer:
    """Serves the files of `root`. Use as a context manager.

    `faults` are taken up one per GET, each one of: a status such as 500, "cut" (breaks off in the middle of the body),
    "wrong" (flips a bit), "slow" (trickles), "stall" (sends half, sets `stalled`, then nothing). `always` is a fault
    for every GET beyond them. Without `ranges` every answer is the whole file. While `gate` is clear, answers stop
    half way.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.ranges = root, True
        self.faults: deque[str | int] = deque()
        self.always: str | int | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.halfway, self.stalled = threading.Event(), threading.Event()
        self.sent: Counter[str] = Counter()
        self.gets: list[tuple[str, str | None]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "RangeServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()


def _handler(server: RangeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            name, wanted = self.path.lstrip("/"), self.headers.get("Range")
            server.gets.append((name, wanted))
            fault = server.faults.popleft() if server.faults else server.always
            path = server.root / name
            if isinstance(fault, int) or not path.is_file():
                self.send_response(fault if isinstance(fault, int) else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = path.read_bytes()
            start, end = 0, len(content)
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
            if match and server.ranges:
                start, end = int(match[1]), min(int(match[2] or end) + 1, end)
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
            else:
                self.send_response(200)
            body = content[start:end]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.send(name, body, fault)

        def send(self, name: str, body: bytes, fault: object) -> None:
            half = len(body) // 2
            if fault == "wrong":
                body = bytes([body[0] ^ 1]) + body[1:]
            try:
                if fault == "slow":
                    server.sent[name] += len(body)
                    for begin in range(0, len(body), max(len(body) // 10, 1)):
                        self.wfile.write(body[begin : begin + max(len(body) // 10, 1)])
                        self.wfile.flush()
                        time.sleep(0.01)
                    return
                server.sent[name] += half
                self.wfile.write(body[:half])
                self.wfile.flush()
                server.halfway.set()
                server.gate.wait()
                if fault == "stall":
                    server.stalled.set()
                    server._ended.wait(20)
                if fault in ("cut", "stall"):
                    self.close_connection = True
                    self.connection.close()
                    return
                server.sent[name] += len(body) - half
                self.wfile.write(body[half:])
            except OSError:
                self.close_connection = True  # whoever asked is gone

    return Handler
