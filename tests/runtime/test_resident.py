"""What a start needed and a running daemon doesn't."""

import subprocess
import sys


def test_code_that_was_dropped_comes_back_when_it_runs() -> None:
    code = (
        "import cryptography.x509, grpc.aio, hashlib\n"
        "from meshagent.runtime.resident import drop_code\n"
        "pages = lambda: int(open('/proc/self/statm').read().split()[1])\n"
        "before = pages(); drop_code(drop_code(frozenset())); after = pages()\n"
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


def test_constants_that_the_loader_filled_in_stay() -> None:
    """Every library with relocations has such pages: were they dropped, its next call would end the process."""
    code = (
        "import ctypes, cryptography.x509, grpc.aio, sqlite3, json\n"
        "from meshagent.runtime.resident import drop_code\n"
        "smaps = open('/proc/self/smaps').read()\n"
        "relocated = [m for m in smaps.split('VmFlags') if ' r--p ' in m and 'Anonymous:             0' not in m]\n"
        "assert relocated\n"
        "known = drop_code(frozenset())\n"
        "known = drop_code(known)\n"
        "assert sqlite3.connect(':memory:').execute('select 1').fetchone() == (1,)\n"
        "import asyncio\n"
        "async def main():\n"
        "    server = grpc.aio.server(); port = server.add_insecure_port('127.0.0.1:0'); await server.start()\n"
        "    drop_code(drop_code(known))\n"
        "    async with grpc.aio.insecure_channel(f'127.0.0.1:{port}') as channel: await channel.channel_ready()\n"
        "    await server.stop(None)\n"
        "asyncio.run(main())\n"
        "from cryptography.hazmat.primitives.asymmetric import ec\n"
        "drop_code(drop_code(known)); ec.generate_private_key(ec.SECP256R1())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_mapping_is_left_alone_the_first_time_it_is_seen() -> None:
    code = (
        "import mmap, os, tempfile\n"
        "from meshagent.runtime.resident import drop_code\n"
        "file = tempfile.TemporaryFile(); file.write(b'x' * (4 << 20)); file.flush()\n"
        "pages = lambda: int(open('/proc/self/statm').read().split()[1])\n"
        "known = drop_code(drop_code(frozenset()))\n"
        "new = mmap.mmap(file.fileno(), 4 << 20, mmap.MAP_PRIVATE, mmap.PROT_READ); sum(new[::4096])\n"
        "before = pages(); known = drop_code(known); first = pages(); drop_code(known); second = pages()\n"
        "assert first > before - 900, (before, first)\n"
        "assert second < first - 900, (first, second)\n"
        "assert new[:1] == b'x'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_old_garbage_in_circles_is_found_where_it_is_looked_for_rarely() -> None:
    code = (
        "import asyncio, gc, weakref\n"
        "from meshagent.runtime.memory import collect_rarely\n"
        "from meshagent.runtime.resident import collect_all\n"
        "class Circle: pass\n"
        "async def story():\n"
        "    circle = Circle(); circle.itself = circle; gone = weakref.ref(circle)\n"
        "    gc.collect(1); gc.collect(1)\n"
        "    del circle\n"
        "    gc.collect(1); assert gone() is not None\n"
        "    collecting = asyncio.create_task(collect_all(0.01))\n"
        "    while gone() is not None: await asyncio.sleep(0.01)\n"
        "    collecting.cancel()\n"
        "collect_rarely()\n"
        "asyncio.run(asyncio.wait_for(story(), 20))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
