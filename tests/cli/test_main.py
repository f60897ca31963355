"""What holds for every command: shared options, exit codes, the shape of errors, nothing but text for people."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.cli import shapes

ENTRY = [sys.executable, "-m", "meshagent.cli.entry"]
TOKEN = "ma1." + "a" * 52 + "." + "b" * 12 + "." + "s" * 52


def run(
    *args: str, input: bytes = b"", env: dict[str, str] | None = None, user: int | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*ENTRY, *args],
        input=input,
        capture_output=True,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **(env or {})},
        user=user,
        timeout=30,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def root() -> Iterator[Path]:
    """A root short enough for sockets below it."""
    with tempfile.TemporaryDirectory(prefix="ma-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


# --- shared options


@pytest.mark.parametrize(
    "line",
    [
        "-o json --root {root} hub token list",
        "hub -o json --root {root} token list",
        "hub token -o json list --root {root}",
        "hub token list --output=json --root={root}",
        "-o table --root /nowhere hub -o json token list --root {root}",
    ],
)
def test_shared_options_count_before_and_after_any_command_name_and_the_later_wins(line: str, root: Path) -> None:
    done = run(*line.format(root=root).split())
    assert done.returncode == 1
    assert str(root / "run/meshagent-hub") in json.loads(done.stderr)["error"]["message"]


def test_the_later_output_wins_also_when_it_is_table(root: Path) -> None:
    done = run("-o", "json", "status", "-o", "table", "--root", str(root))
    assert done.returncode == 3
    assert done.stderr.startswith("meshagent: this host is not enrolled")


def test_the_root_can_come_from_the_environment_and_an_option_wins(root: Path) -> None:
    by_environment = run("peers", env={"MESHAGENT_ROOT": str(root)})
    by_option = run("peers", "--root", "/run/other", env={"MESHAGENT_ROOT": str(root)})
    assert str(root) in by_environment.stderr
    assert "/run/other" in by_option.stderr


# --- every way to be wrong

WRONG: list[tuple[str, int, str]] = [
    ("", 2, "usage"),
    ("nonsense", 2, "usage"),
    ("status --nonsense", 2, "usage"),
    ("status surplus", 2, "usage"),
    ("-o xml status", 2, "usage"),
    ("hub", 2, "usage"),
    ("hub token create", 2, "usage"),
    ("hub token create --service-account a --uses 0", 2, "usage"),
    ("hub token create --service-account a", 1, "hub-down"),
    ("hub hosts", 1, "hub-down"),
    ("hub audit", 1, "hub-down"),
    ("hub audit --limit 0", 2, "usage"),
    ("hub ca status", 1, "hub-down"),
    ("hub host revoke x", 1, "hub-down"),
    ("hub apply -f /nowhere.yaml", 2, "no-file"),
    ("hub validate -f /", 2, "no-file"),
    ("hub run --trust-domain -a-", 2, "bad-name"),
    ("hub run --store mysql:x", 2, "bad-store"),
    ("hub run --listen nonsense:port", 2, ""),
    ("status", 3, "not-enrolled"),
    ("run", 3, "not-enrolled"),
    ("peers", 3, "not-enrolled"),
    ("certs", 3, "not-enrolled"),
    ("certs rotate", 3, "not-enrolled"),
    ("posture", 3, "not-enrolled"),
    ("posture strict", 3, "not-enrolled"),
    ("posture nonsense", 2, "usage"),
    ("posture --confirm 5", 2, "usage"),
    ("confirm", 3, "not-enrolled"),
    ("capture show", 3, "not-enrolled"),
    ("capture verify", 3, "not-enrolled"),
    ("plan --posture nonsense", 2, "usage"),
    ("enroll", 2, "usage"),
    ("enroll 127.0.0.1:1", 2, "no-token"),
    ("enroll 127.0.0.1:99999 t", 2, ""),
    ("enroll 127.0.0.1:1 file:/nowhere", 2, "no-token"),
    ("enroll 127.0.0.1:1 file:/", 2, "no-token"),
    ("enroll 127.0.0.1:1 nonsense", 1, "token-prefix"),
    (f"enroll 127.0.0.1:1 {TOKEN[:-3]}", 1, "token-truncated"),
    (f"enroll 127.0.0.1:1 {TOKEN}A", 1, "token-characters"),
    (f"enroll 127.0.0.1:1 {TOKEN}", 1, "hub-unreachable"),
    (f"enroll 127.0.0.1:1 {TOKEN} --name a_b", 2, "bad-name"),
    (f"enroll 127.0.0.1:1 {TOKEN} --confirm -1", 2, "usage"),
    ("service add a_b --port 80", 2, ""),
    ("service add a --port 0", 2, "usage"),
    ("service add a --port 80 --protocol nonsense", 2, "usage"),
    ("service add a --port 80 --check nonsense", 2, ""),
    ("service remove nothing", 2, ""),
]


@pytest.mark.parametrize(("line", "code", "word"), WRONG, ids=[line[:40] or "nothing" for line, _, _ in WRONG])
def test_a_wrong_command_ends_with_one_line_a_hint_and_its_exit_code(
    line: str, code: int, word: str, root: Path
) -> None:
    if os.geteuid() != 0 and "enroll" in line and code == 1:
        pytest.skip("enrolling needs root")
    words = ["--root", str(root), *line.split()]
    people = run(*words)
    programs = run(*words, "-o", "json") if line != "-o xml status" else run(*words[:2], "-o", "xml", "-o", "json")
    assert people.returncode == code, people
    if line != "hub":  # a group alone shows its help
        lines = people.stderr.splitlines()
        assert [lines[0][:11], lines[1][:6], len(lines)] == ["meshagent: ", "hint: ", 2], people.stderr
    if line == "status":
        assert (programs.returncode, json.loads(programs.stdout)) == (3, {"enrolled": False})
    elif line != "-o xml status":
        _is_json_error(programs, code, word)


def _is_json_error(done: subprocess.CompletedProcess[str], code: int, word: str) -> None:
    assert (done.returncode, done.stdout) == (code, "")
    answer = json.loads(done.stderr)
    assert not shapes.problems(answer, shapes.ERROR)
    assert answer["error"]["hint"]
    assert not word or answer["error"]["code"] == word


def test_the_token_is_never_repeated_in_an_error(root: Path) -> None:
    for token in (TOKEN, TOKEN + "x", TOKEN[:-1], "x" + TOKEN):
        done = run("--root", str(root), "enroll", "127.0.0.1:1", token)
        assert "ssss" not in done.stdout + done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root to show what others see")
@pytest.mark.parametrize("line", [f"enroll 127.0.0.1:1 {TOKEN}", "leave"])
def test_without_root_the_line_says_that_root_is_needed(line: str, root: Path) -> None:
    done = run("--root", str(root), *line.split(), user=65534)
    assert (done.returncode, done.stderr.splitlines()[0][-10:]) == (1, "needs root")


# --- output


@pytest.mark.parametrize("line", ["--help", "hub token create --help", "status", "plan", "hub validate -f {mesh}"])
@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1", "TERM": "xterm-256color"}], ids=["piped", "no-color"])
def test_without_a_terminal_there_are_no_escape_codes(line: str, env: dict[str, str], root: Path) -> None:
    mesh = root / "mesh.yaml"
    mesh.write_text("")
    done = run("--root", str(root), *line.format(mesh=mesh).split(), env=env)
    assert "\x1b" not in done.stdout + done.stderr


def test_a_reader_that_goes_away_ends_the_command_quietly(root: Path) -> None:
    words = " ".join([*ENTRY, "--root", str(root), "plan"])
    done = subprocess.run(["bash", "-c", f"{words} | head -n 0"], capture_output=True, check=False)
    assert done.stderr == b""


@pytest.mark.parametrize("line", ["plan", "plan -o json", "--help"])
def test_a_full_disk_under_stdout_is_named(line: str, root: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        argv = [*ENTRY, "--root", str(root), *line.split()]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert b"could not write the answer" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_defect_of_ours_is_one_line_and_a_traceback_only_on_request(root: Path) -> None:
    defect = (
        "import sys; from meshagent.cli import calls, main; "
        "calls.enrolled = lambda paths: 1 // 0; sys.exit(main.run(['--root', sys.argv[1], 'confirm']))"
    )
    argv: Sequence[str] = [sys.executable, "-c", defect, str(root)]
    plain = subprocess.run(argv, capture_output=True, text=True, check=False)
    asked = subprocess.run(
        argv, capture_output=True, text=True, env={**os.environ, "MESHAGENT_DEBUG": "1"}, check=False
    )
    assert plain.returncode == 1
    assert (
        plain.stderr.splitlines()[0] == "meshagent: unexpected: ZeroDivisionError: integer division or modulo by zero"
    )
    assert "Traceback" not in plain.stderr
    assert "Traceback" in asked.stderr


def test_ctrl_c_is_exit_130_in_both_outputs(root: Path) -> None:
    for output in ("table", "json"):
        argv = [*ENTRY, "--root", str(root), "-o", output, "enroll", "127.0.0.1:1", "-"]
        program = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        _until_it_reads_stdin(program.pid)
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=10)
        assert (program.returncode, out) == (130, "")
        assert (
            err.strip() == "meshagent: interrupted"
            if output == "table"
            else "interrupted" in json.loads(err)["error"]["code"]
        )


def test_ctrl_c_while_it_still_loads_is_exit_130_too() -> None:
    code = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'meshagent.cli.main': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from meshagent.cli import entry; entry.main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "plan"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "meshagent: interrupted\n")


def _until_it_reads_stdin(pid: int) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/syscall").read_text().split()[:2] != ["0", "0x0"]:  # read(0, …)
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- speed: measured with room for a busy machine; the benchmark has the real numbers


def test_version_and_help_of_a_missing_daemon_come_without_heavy_imports(root: Path) -> None:
    code = (
        "import sys; from meshagent.cli.main import run; run(['--root', sys.argv[1], 'status', '-o', 'json']);"
        "print(*sorted({m.split('.')[0] for m in sys.modules} & set(sys.argv[2].split())), file=sys.stderr)"
    )
    heavy = "grpc google cryptography pydantic pyroute2 rich ruamel structlog asyncio psutil dns"
    done = subprocess.run([sys.executable, "-c", code, str(root), heavy], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []
    version = "import sys; sys.argv = ['meshagent', '--version']; from meshagent.cli import entry\n"
    version += "try: entry.main()\nexcept SystemExit: print('click' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", version], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[1] == "False"
