"""New connections without pause, while something happens to the rules: who answered each of them."""

import sys
import threading
from collections import Counter

from meshagent.lab.host import Host
from meshagent.lab.program import Program
from meshagent.lab.waiting import wait_until

_ANSWERING = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=1024)
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    connection.sendall(sys.argv[3].encode())
    connection.close()
"""


def answering(host: Host, address: str, port: int, word: str) -> Program:
    """A server that says ``word`` to everybody and closes."""
    program = host.popen([sys.executable, "-c", _ANSWERING, address, str(port), word], log=f"answering-{word}")
    wait_until(lambda: "listening" in program.text(), 5)
    return program


class Callers:
    """Threads that dial one address until stopped. ``answers``: how often who answered, or which error came."""

    def __init__(self, host: Host, address: str, port: int, threads: int = 1) -> None:
        self._host, self._address, self._port = host, address, port
        self._stopped = threading.Event()
        self.answers: Counter[str] = Counter()
        self._threads = [threading.Thread(target=host.inside, args=(self._run,), daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with self._host.connect(self._address, self._port, timeout=5) as client:
                    self.answers[client.recv(16).decode()] += 1
            except OSError as error:
                self.answers[repr(error)] += 1

    def more(self, count: int, timeout: float = 20.0) -> None:
        """Wait for so many further answers."""
        target = self.answers.total() + count
        wait_until(lambda: self.answers.total() >= target, timeout, f"{count} more answers")

    def stop(self) -> Counter[str]:
        self._stopped.set()
        for thread in self._threads:
            thread.join(10)
        return self.answers
