"""Feeding a child process and collecting what it says, all three pipes at once, within a time and a size."""

import os
import selectors
import subprocess
import time
from typing import IO, cast

_CHUNK = 65536


def pump(process: subprocess.Popen[bytes], data: bytes, timeout: float, limit: int) -> tuple[bytes, bytes]:
    """Write ``data`` to its stdin, read stdout and stderr to their ends, wait for its end.

    Raises ``TimeoutError`` after ``timeout`` seconds, ``OverflowError`` when one output exceeds ``limit`` bytes; the
    process then still runs.
    """
    deadline = time.monotonic() + timeout
    output: dict[object, bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        _register(selector, process)
        while selector.get_map():
            events = selector.select(max(0.0, deadline - time.monotonic()))
            if not events and time.monotonic() >= deadline:
                raise TimeoutError
            for key, _ in events:
                stream = cast(IO[bytes], key.fileobj)
                if stream is process.stdin:
                    data = _write_some(selector, stream, data)
                else:
                    _read_some(selector, stream, output[stream], limit)
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    return bytes(output[process.stdout]), bytes(output[process.stderr])


def _register(selector: selectors.BaseSelector, process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        selector.register(stream, selectors.EVENT_READ)


def _write_some(selector: selectors.BaseSelector, stream: IO[bytes], data: bytes) -> bytes:
    try:
        written = os.write(stream.fileno(), data[:_CHUNK]) if data else 0
    except BrokenPipeError:  # the program reads no more; its exit status tells whether that is an error
        data, written = b"", 0
    if not data[written:]:
        selector.unregister(stream)
        stream.close()
    return data[written:]


def _read_some(selector: selectors.BaseSelector, stream: IO[bytes], output: bytearray, limit: int) -> None:
    chunk = os.read(stream.fileno(), _CHUNK)
    if not chunk:
        selector.unregister(stream)
        return
    output += chunk
    if len(output) > limit:
        raise OverflowError
