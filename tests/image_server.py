"""An HTTP server on loopback that serves files and misbehaves as it is told.

    with ImageServer({"/train/0123.jpg": content}) as server:
        server.faults["/train/0123.jpg"] = ["503", "cut", "good"]

Every request of a path uses up the first of its faults; with none left the path is served as it should be. A fault
that ends with `!` stays.

    a number    that status            retry:N   429 and `Retry-After: N`
    cut         half of the bytes under the full length
    drip        one byte at a time, 50 ms apart
    slow        the file, after a tenth of a second
    stall       the head, then nothing for a second
    drop        the connection is closed without an answer
    html        status 200 and a page instead of the file
    other:PATH  the content of another path
    lie         a `Content-Length` of 10 GB
"""

import re
import socket
import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

PAGE = b"<html><body>Please sign in to this network.</body></html>"


class ImageServer:
    """A server in a thread of this process.

    Attributes:
        files: content by path.
        faults: what goes wrong next, by path.
        requests: how often each path was asked for.
        most_at_once: the greatest number of requests that were being answered at one time.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.faults: defaultdict[str, list[str]] = defaultdict(list)
        self.requests: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _next_fault(self, path: str) -> str:
        with self._lock:
            self.requests[path] += 1
            self.times.append(time.monotonic())
            faults = self.faults[path]
            if not faults:
                return "good"
            return faults[0].removesuffix("!") if faults[0].endswith("!") else faults.pop(0)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with server._lock:
                    server._now += 1
                    server.most_at_once = max(server.most_at_once, server._now)
                try:
                    self._answer(server._next_fault(self.path))
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client had enough
                finally:
                    with server._lock:
                        server._now -= 1

            def _answer(self, fault: str) -> None:
                name, _, value = fault.partition(":")
                if name == "drop":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                elif name == "retry":
                    self._head(429, 0, {"Retry-After": value})
                elif name.isdigit():
                    self._head(int(name), 0)
                elif name == "html":
                    self._head(200, len(PAGE))
                    self.wfile.write(PAGE)
                else:
                    self._file(server.files.get(value if name == "other" else self.path), name)

            def _file(self, content: bytes | None, fault: str) -> None:
                if content is None:
                    self._head(404, 0)
                    return
                start, wanted = 0, re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
                version = f'"{hash(content)}"'
                if wanted and self.headers["If-Range"] in (None, version):
                    server.ranges.append(self.headers["Range"])
                    start = int(wanted[1])
                headers = {"ETag": version}
                if start:
                    headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                body = content[start:]
                self._head(206 if start else 200, 10**10 if fault == "lie" else len(body), headers)
                if fault == "cut":
                    self.wfile.write(body[: len(body) // 2])
                    self.close_connection = True
                elif fault == "drip":
                    for place in range(len(body)):
                        self.wfile.write(body[place : place + 1])
                        self.wfile.flush()
                        time.sleep(0.05)
                elif fault == "slow":
                    time.sleep(0.1)
                    self.wfile.write(body)
                elif fault == "stall":
                    self.wfile.flush()
                    time.sleep(1)
                else:
                    self.wfile.write(body)

            def _head(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(length), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
