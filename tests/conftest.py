"""Where tests may run: never in the network of this machine.

Before the first test the test process moves into a network namespace of its own (only loopback), so that no rule,
route or address a test sets by mistake can reach the machine. Tests marked ``root`` need that and root; without they
are left out with a note, except under CI, where a missing tool or right is a failure: a green run that tested half
is worse than a red one.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

# On a busy machine one example may take longer than hypothesis' 200 ms; pytest's own time-out finds what hangs.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

_CLONE_NEWNET = 0x40000000
#: What tests marked root run; Debian's package names are in the Makefile.
_TOOLS = (
    *("ip", "nft", "nsenter", "unshare", "setpriv", "tcpdump", "tshark", "dig", "conntrack", "cc"),
    *("iptables-legacy-save", "ufw", "firewalld", "dbus-daemon", "psql", "postfix", "curl", "openssl"),
    "systemd-analyze",
)

_missing: list[str] = []


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # A shell that runs this in the background has SIGINT ignored, and programs under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Tests run beside each other, and CI machines are shared: a deadline of the lab tells a hang, not a slow machine.
    os.environ.setdefault("MESHAGENT_LAB_PATIENCE", "4")
    _shorten_temporary_paths(config)
    problem = _leave_the_machines_network()
    _missing.extend([problem] if problem else [])
    _missing.extend(f"{tool} is not installed" for tool in _TOOLS if not shutil.which(tool))
    if not envoy_binary().exists():
        _missing.append(f"there is no Envoy at {envoy_binary()} (MESHAGENT_ENVOY)")
    if _missing and os.environ.get("CI") == "true":
        raise pytest.UsageError(f"in CI nothing is left out, but: {'; '.join(_missing)}")


def _plain_tracebacks() -> None:
    """structlog's own default shows the variables of every frame: with a message of 17 MB in one of them a single
    line of the log took 166 s and 460 MB. Our programs set their log up themselves (``observe.log``)."""
    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(), console])


def _shorten_temporary_paths(config: pytest.Config) -> None:
    """A socket's path holds 107 bytes; pytest's own directories take 60 of them, with xdist 70."""
    if config.option.basetemp is None and not hasattr(config, "workerinput"):
        top = Path(tempfile.mkdtemp(prefix="t.", dir="/tmp"))
        config.option.basetemp = str(top / "b")
        config.add_cleanup(lambda: shutil.rmtree(top, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _missing and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason=f"left out: {'; '.join(_missing)}"))
        if item.get_closest_marker("long") and not os.environ.get("MESHAGENT_TEST_LONG"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; make test-long runs it"))


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:
    if _missing:
        terminalreporter.write_line(f"note: tests marked root were left out: {'; '.join(_missing)}", yellow=True)


def _leave_the_machines_network() -> str:
    """Why tests with namespaces can't run here; empty when they can, and then this process is in one of its own."""
    if os.geteuid() != 0:
        return "not root"
    before = _network()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        return f"no right to make a network namespace ({os.strerror(ctypes.get_errno())})"
    if shutil.which("ip"):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return "" if _network() != before else "could not leave the machine's network namespace"


def _network() -> int:
    return Path("/proc/self/ns/net").stat().st_ino


def envoy_binary() -> Path:
    """The Envoy under test: MESHAGENT_ENVOY, else the unpacked one in the build cache."""
    cache = os.environ.get("MESHAGENT_CACHE", "/var/cache/meshagent-build")
    return Path(os.environ.get("MESHAGENT_ENVOY", f"{cache}/envoy/1.40.0/envoy"))


@pytest.fixture(scope="session")
def envoy() -> Path:
    """The Envoy binary; programs that the test starts find it through MESHAGENT_ENVOY."""
    os.environ["MESHAGENT_ENVOY"] = str(envoy_binary())
    return envoy_binary()


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A root, token or debug switch in the developer's shell must not steer a test."""
    for name in ("MESHAGENT_ROOT", "MESHAGENT_TOKEN", "MESHAGENT_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    yield
