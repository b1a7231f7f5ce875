"""Encoded bytes of a picture -> (H, W, 3) uint8 RGB pixels, those of `modeling_decodepos.data.pictures`, but faster.

OpenCV decodes JPEG in two thirds of Pillow's time, but hands over a half-grey picture where some of a JPEG's data is
missing. So it gets whole JPEG files only; Pillow, which refuses what is cut short, reads everything else.

Where bytes inside a JPEG are damaged, both hand over garbage. Only libjpeg notices, and it says so on the process's
standard error and nowhere else: that is where `decode_image` listens.
"""

from __future__ import annotations

import functools
import os
import tempfile
import threading
from typing import Any

import cv2
import numpy as np

from modeling_decodepos.data.pictures import BrokenImage, decode_picture, read_size

__all__ = ["BrokenImage", "decode_image", "read_size"]

_JPEG_END = b"\xff\xd9"
_DAMAGED = b"Corrupt JPEG data"
_one_listens = threading.Lock()


def decode_image(
    data: bytes | None, name: str, size: tuple[int, int] | None = None, strict: bool = True
) -> np.ndarray:
    """(H, W, 3) uint8 RGB pixels; arguments and errors are those of `decode_picture`.

    With `strict`, a JPEG that libjpeg calls corrupt is a broken image too.
    """
    decode_jpeg = _decode_intact_jpeg if strict else _decode_whole_jpeg
    return decode_picture(data, name, size, decode_jpeg=decode_jpeg)


def _decode_whole_jpeg(data: bytes) -> np.ndarray | None:
    if not data.endswith(_JPEG_END):
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)


def _decode_intact_jpeg(data: bytes) -> np.ndarray | None:
    """The same, or ValueError with libjpeg's first complaint; whatever else was written meanwhile passes through."""
    with _one_listens:
        heard = _heard(os.getpid())
        try:
            stderr = os.dup(2)
        except OSError:  # a process without standard error hears nothing
            return _decode_whole_jpeg(data)
        os.dup2(heard.fileno(), 2)
        try:
            pixels = _decode_whole_jpeg(data)
        finally:
            os.dup2(stderr, 2)
            length = os.fstat(heard.fileno()).st_size
            text = os.pread(heard.fileno(), length, 0) if length else b""
            if length:
                os.ftruncate(heard.fileno(), 0)
                os.lseek(heard.fileno(), 0, os.SEEK_SET)
            lines = text.splitlines(keepends=True)
            damage = [line for line in lines if line.startswith(_DAMAGED)]
            if others := b"".join(line for line in lines if line not in damage):
                os.write(stderr, others)
            os.close(stderr)
    if damage:
        raise ValueError(damage[0].decode("ascii", "replace").strip())
    return pixels


@functools.cache
def _heard(process: int) -> Any:
    """A file for what this process writes; a child that was forked must not share its parent's."""
    return tempfile.TemporaryFile(buffering=0)
