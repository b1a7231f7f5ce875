"""Fetching files over HTTP, politely and to the end.

A request that fails in a way that may pass (time-out, broken connection, 429, 5xx, fewer bytes than announced, content
that does not verify) is made again after a pause that doubles, half of it at random; `Retry-After` holds all requests
back. 404 and 410 mean that the file is gone. Every file appears under its name only when it is whole.
"""

import email.utils
import http.client
import math
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm

USER_AGENT = "decodepos-dataset-builder"
PIECE_BYTES = 1 << 18
Content = TypeVar("Content")
_PASSING = (429, 500, 502, 503, 504, 520, 522, 524)  # the last three are a proxy's


class GoneError(Exception):
    """The server says that there is no such file."""


class FetchError(Exception):
    """A file could not be fetched this time; says why."""


class StoppedError(Exception):
    """The build was stopped while a request waited."""


@dataclass
class Pace:
    """Lets at most so many requests begin per second, over all threads; none while the server asked for a pause."""

    per_second: float
    stopped: threading.Event = field(default_factory=threading.Event)
    _next: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self) -> None:
        """Returns when the next request may begin."""
        with self._lock:
            begin = max(time.monotonic(), self._next)
            self._next = begin + 1 / self.per_second
        self.pause(begin - time.monotonic())

    def hold(self, seconds: float) -> None:
        """No request begins before `seconds` from now."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def pause(self, seconds: float) -> None:
        """Waits, unless the build is stopped."""
        if self.stopped.wait(max(seconds, 0)):
            raise StoppedError


@dataclass(frozen=True)
class Downloader:
    """How to fetch."""

    pace: Pace  # shared by all threads
    attempts: int = 5  # requests per file before it counts as failed
    timeout_s: float = 30.0  # without a byte from the server
    deadline_s: float = 120.0  # for a whole file that is kept in memory, against a server that drips
    backoff_s: float = 1.0  # the first pause; each further one is twice as long
    most_retry_after_s: float = 120.0  # a server that asks for more is asked again after this
    most_bytes: int = 64 << 20  # a file kept in memory may have at most so many

    def fetch(self, url: str, verify: Callable[[bytes], object]) -> bytes:
        """The content of a small file; `verify` raises ValueError for content that is not what was wanted."""

        def once() -> bytes:
            with self._open(url) as response:
                content = b"".join(self._pieces(response, self.most_bytes, self.deadline_s))
            verify(content)
            return content

        return self._repeat(url, once)

    def fetch_file(self, url: str, path: Path) -> None:
        """Fetches a large table; goes on where an earlier attempt, or an earlier run, was cut off."""
        part = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._repeat(url, lambda: self._go_on(url, part))
        part.replace(path)

    def ask(self, url: str) -> None:
        """One request, whose answer is not read; raises as `fetch_file` where that would fail."""

        def once() -> None:
            self._open(url).close()

        replace(self, attempts=1)._repeat(url, once)

    def _go_on(self, url: str, part: Path) -> None:
        have = part.stat().st_size if part.is_file() else 0
        # If the file was changed meanwhile, the server sends the whole of it: two halves must not be of two versions.
        note = part.with_suffix(".version")
        version = note.read_text() if have and note.is_file() else ""
        headers = {"Range": f"bytes={have}-", "If-Range": version} if have and version else {}
        with self._open(url, **headers) as response:
            resumed = response.status == 206 and (response.headers["Content-Range"] or "").startswith(f"bytes {have}-")
            if response.status == 206 and not resumed:
                raise FetchError(f"asked for the rest from byte {have}, got {response.headers['Content-Range']}")
            note.write_text(response.headers["ETag"] or response.headers["Last-Modified"] or "")
            length = response.headers["Content-Length"]
            total = (have if resumed else 0) + int(length) if length else None
            with (
                part.open("ab" if resumed else "wb") as file,
                tqdm(total=total, initial=file.tell(), desc=part.name[1:-5], unit="B", unit_scale=True) as progress,
            ):
                for piece in self._pieces(response):
                    if file.tell() == 0 and piece.lstrip().startswith(b"<"):
                        raise FetchError(f"a web page came instead: it begins with {piece[:30]!r}")
                    file.write(piece)
                    progress.update(len(piece))
        note.unlink(missing_ok=True)

    @staticmethod
    def _pieces(
        response: http.client.HTTPResponse, most_bytes: float = math.inf, seconds: float = math.inf
    ) -> Iterator[bytes]:
        announced, received, begin = response.headers["Content-Length"], 0, time.monotonic()
        if announced and int(announced) > most_bytes:
            raise FetchError(f"{int(announced):,} bytes announced, expected at most {most_bytes:,}")
        while piece := response.read1(PIECE_BYTES):
            received += len(piece)
            if received > most_bytes:
                raise FetchError(f"more than {most_bytes:,} bytes")
            if time.monotonic() > begin + seconds:
                raise FetchError(f"{received:,} bytes in {seconds:.0f} s: too slow")
            yield piece
        if announced and received != int(announced):
            raise FetchError(f"{received:,} of {int(announced):,} bytes: cut off")

    def _open(self, url: str, **headers: str) -> Any:
        request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT, **headers})
        return urllib.request.urlopen(request, timeout=self.timeout_s)

    def _repeat(self, url: str, once: Callable[[], Content]) -> Content:
        reason = "no attempt was made"
        for attempt in range(self.attempts):
            if attempt:
                self.pace.pause(self.backoff_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
            self.pace.wait()
            try:
                return once()
            except urllib.error.HTTPError as error:
                error.close()
                if error.code in (404, 410):
                    raise GoneError(f"HTTP {error.code}") from error
                reason = f"HTTP {error.code} {error.reason}"
                if error.code not in _PASSING:
                    break
                asked = retry_after_seconds(error.headers["Retry-After"])
                if asked is not None:
                    self.pace.hold(min(asked, self.most_retry_after_s))
            except (FetchError, ValueError) as error:
                reason = str(error)
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                reason = f"{type(error).__name__}: {error}"
        raise FetchError(f"{url}: {reason}")


def retry_after_seconds(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for, as a number or as a date; None if it says nothing."""
    if not value:
        return None
    with suppress(ValueError):
        return max(float(value), 0.0)
    with suppress(ValueError, TypeError):
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return None
