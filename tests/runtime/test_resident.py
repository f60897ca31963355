"""What a start needed and a running daemon doesn't."""

import subprocess
import sys


def test_code_that_was_dropped_comes_back_when_it_runs() -> None:
    code = (
        "import cryptography.x509, grpc.aio, hashlib\n"
        "from meshagent.runtime.resident import drop_code\n"
        "pages = lambda: int(open('/proc/self/statm').read().split()[1])\n"
        "before = pages(); drop_code(); after = pages()\n"
        "assert after < before * 0.9, (before, after)\n"
        "assert hashlib.sha256(b'').hexdigest().startswith('e3b0c442')\n"
        "import asyncio; asyncio.run(asyncio.sleep(0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_free_heap_between_what_stays_is_given_back() -> None:
    code = (
        "from meshagent.runtime.resident import trim_heap\n"
        "pages = lambda: int(open('/proc/self/statm').read().split()[1])\n"
        "blocks = [b'x' * 60_000 for _ in range(1_000)]\n"
        "stays = blocks[::50]; del blocks\n"
        "before = pages(); trim_heap(); after = pages()\n"
        "assert after < before - 10_000, (before, after)\n"
        "assert all(block == b'x' * 60_000 for block in stays)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
