"""Reads a JSON object member by member, and long lists in it element by element, without holding the file in memory.

The annotations of COCO are one object of 450 MB; as Python objects they take several gigabytes.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

CHUNK_BYTES = 1 << 22
_NUMBER = "0123456789.eE+-"
LARGEST_VALUE_BYTES = 1 << 26  # no single element of annotation files is longer; a broken file looks as if one were


class Member(NamedTuple):
    """A member of the object, or one element of a member that is a listed array, and where its text lies."""

    key: str
    value: Any
    start: int
    length: int


class JsonObject:
    """The members of the object in a JSON file, in the file's order; those in `arrays` come element by element.

    `keys` has the keys seen so far, also those of arrays without elements.
    """

    def __init__(self, path: Path, arrays: Collection[str] = ()):
        self.path, self.arrays = path, arrays
        self.keys: list[str] = []

    def __iter__(self) -> Iterator[Member]:
        size = self.path.stat().st_size
        with self.path.open("rb") as file, tqdm(total=size, desc=self.path.name, unit="B", unit_scale=True) as bar:
            reader = _Reader(self.path, file, bar)
            reader.skip("\xef\xbb\xbf")  # a byte order mark, as Latin-1 shows it
            if (first := reader.peek()) != "{":
                raise ValueError(f"{self.path} begins with {first!r}, expected an object, which begins with '{{'.")
            for key in reader.each_key():
                self.keys.append(key)
                if key in self.arrays and reader.peek() == "[":
                    yield from reader.elements(key)
                else:
                    yield reader.value(key)


class _Reader:
    """A window on the file. Its bytes are read as Latin-1, so that a character is a byte and places can be told."""

    def __init__(self, path: Path, file: Any, bar: tqdm):
        self.path, self.file, self.bar = path, file, bar
        self.text, self.offset, self.at = "", 0, 0  # `at` counts from the window's start, `offset` is where that lies
        self.decoder = json.JSONDecoder()

    def more(self) -> bool:
        """Lengthens the window and forgets what lies behind; false at the end of the file."""
        data = self.file.read(max(CHUNK_BYTES, len(self.text) - self.at))
        self.text, self.offset, self.at = self.text[self.at :] + data.decode("latin-1"), self.offset + self.at, 0
        self.bar.update(len(data))
        return bool(data)

    def skip(self, text: str) -> None:
        """Steps over this text if it comes next."""
        while len(self.text) - self.at < len(text) and self.more():
            pass
        if self.text.startswith(text, self.at):
            self.at += len(text)

    def peek(self) -> str:
        """The next character that is not white space, or nothing at the end of the file."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in " \t\r\n":
                    return self.text[self.at]
                self.at += 1
            if not self.more():
                return ""

    def take(self, expected: str) -> str:
        """Steps over the next character, one of those expected."""
        found = self.peek()
        if not found or found not in expected:
            what = repr(found) if found else "the end of the file"
            raise self.error(f"{what}, expected {' or '.join(map(repr, expected))}")
        self.at += 1
        return found

    def value(self, key: str) -> Member:
        """The next value. It counts when something follows that could not belong to it, as digits to a number."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                if end < len(self.text) and self.text[end] not in _NUMBER:
                    break
                problem = "the end of the file in a value"
            except json.JSONDecodeError as error:
                problem = f"no valid JSON ({error.msg})"
            if len(self.text) - self.at > LARGEST_VALUE_BYTES or not self.more():
                raise self.error(problem)
        text = self.text[self.at : end]
        if not text.isascii():
            try:
                value = json.loads(text.encode("latin-1"))
            except UnicodeDecodeError:
                raise self.error("text that is not UTF-8") from None
        member = Member(key, value, self.offset + self.at, end - self.at)
        self.at = end
        return member

    def each_key(self) -> Iterator[str]:
        """The keys of the object that comes next; whoever takes one reads its value before the next."""
        self.take("{")
        if self.peek() == "}":
            return
        while True:
            key = self.value("").value
            if not isinstance(key, str):
                raise self.error(f"the key {key!r}, expected text")
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return

    def elements(self, key: str) -> Iterator[Member]:
        """The elements of the array that comes next."""
        self.take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield self.value(key)
            if self.take(",]") == "]":
                return

    def error(self, found: str) -> ValueError:
        return ValueError(
            f"{self.path}, byte {self.offset + self.at:,} of {self.path.stat().st_size:,}: {found}. "
            "The file was cut short or edited; download it again."
        )
