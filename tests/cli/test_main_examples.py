"""Every command's help ends with an example, and every example does what it shows on lab hosts, in a useful order."""

import re
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from meshagent.cli.main import root
from meshagent.lab import Host, wait_until
from tests.cli.conftest import Mesh, is_ready

MESH_YAML = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: default}
spec: {mtls: {mode: PERMISSIVE}}
"""

#: Not run here: the demo makes its own lab; its own tests run it, with and without --keep.
ELSEWHERE = {"meshagent demo --keep"}


def commands(command: click.Command, path: str = "meshagent") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, f"{path} {name}")


def examples() -> set[str]:
    return {str(command.epilog).removeprefix("Example: ") for _, command in commands(root)}


@pytest.mark.parametrize(
    ("path", "command"), list(commands(root)), ids=lambda value: value if isinstance(value, str) else ""
)
def test_help_says_what_the_command_does_and_ends_with_an_example(path: str, command: click.Command) -> None:
    assert command.help, path
    assert str(command.epilog).startswith(f"Example: {path.split()[0]} "), path
    text = command.get_help(click.Context(command, info_name=path))
    assert "Example: meshagent" in text.splitlines()[-1] or "Example: meshagent" in text.splitlines()[-2]


@dataclass
class Stage:
    """Runs examples, and remembers which."""

    seen: set[str]

    def run(self, host: Host, example: str, *, replace: dict[str, str] | None = None) -> str:
        done = host.run(self._argv(host, example, replace), cwd=str(host.private), timeout=60)
        return done.stdout

    def start(self, host: Host, example: str, log: str) -> "Running":
        return Running(host.popen(self._argv(host, example, None), log=log, cwd=str(host.private)))

    def _argv(self, host: Host, example: str, replace: dict[str, str] | None) -> list[str]:
        self.seen.add(example)
        words = [(replace or {}).get(word, word) for word in shlex.split(example)]
        return host.meshagent_argv(*words[1:])


class Running:
    """A command that goes on until it is interrupted."""

    def __init__(self, program: object) -> None:
        self.program = program

    def interrupt(self, what: object, expected: tuple[int, ...]) -> None:
        wait_until(what, timeout=30)  # type: ignore[arg-type]
        wait_until(lambda: _hears(self.program.pid, signal.SIGINT), what="a program that hears Ctrl-C")  # type: ignore[attr-defined]
        self.program.send_signal(signal.SIGINT)  # type: ignore[attr-defined]
        assert self.program.wait() in expected  # type: ignore[attr-defined]


def _hears(pid: int, number: signal.Signals) -> bool:
    """Whether the program has a handler of its own for the signal (proc(5), SigCgt)."""
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(found and int(found[1], 16) >> (number - 1) & 1)


@pytest.mark.root
@pytest.mark.xdist_group("cli-mesh")
def test_every_example_runs(mesh: Mesh) -> None:
    stage = Stage(set())
    _hub_examples(stage, mesh)
    _host_examples(stage, mesh)
    _joining_and_leaving(stage, mesh)
    _second_hub(stage, mesh)
    assert stage.seen | ELSEWHERE == examples()


def _hub_examples(stage: Stage, mesh: Mesh) -> None:
    (mesh.hub.private / "mesh.yaml").write_text(MESH_YAML)
    for example in (
        "meshagent hub token create --service-account web",
        "meshagent hub token create --service-account db --namespace shop --ttl 15m",
        "meshagent hub token list",
        "meshagent hub validate -f mesh.yaml",
        "meshagent hub apply -f mesh.yaml",
        "meshagent hub get serviceentry",
        "meshagent hub delete peerauthentication strict --namespace default",
        "meshagent hub status",
        "meshagent hub backup hub.backup",
        "meshagent hub hosts",
        "meshagent hub services",
        "meshagent hub audit --limit 20",
        "meshagent hub ca status",
    ):
        stage.run(mesh.hub, example)
    made = mesh.hub.meshagent_json("hub", "token", "create", "--service-account", "nobody")
    said = stage.run(mesh.hub, "meshagent hub token revoke 4f2a91c0", replace={"4f2a91c0": made["id"]})
    assert made["id"] in said


def _host_examples(stage: Stage, mesh: Mesh) -> None:
    for example in (
        "meshagent peers -o json",
        "meshagent plan --posture strict",
        "meshagent capture show",
        "meshagent capture verify",
        "meshagent capture off",
        "meshagent capture on --confirm 60",
        "meshagent certs rotate",
        "meshagent proxy show",
        "meshagent proxy config --section listeners",
        "meshagent proxy clusters",
        "meshagent proxy log-level warning",
        "meshagent proxy restart",
        "meshagent service add orders --port 8080 --protocol http --check http:/healthz",
        "meshagent service add cache --port 6379 --protocol redis",
        "meshagent service list",
        "meshagent service remove cache",
        "meshagent posture strict --confirm 60",
        "meshagent confirm",
    ):
        stage.run(mesh.db, example)
    mesh.db.meshagent("service", "remove", "orders")
    mesh.db.meshagent("posture", "permissive", "--confirm", "0")
    watching = stage.start(mesh.db, "meshagent status --watch", "watch")
    watching.interrupt(lambda: "control plane" in watching.program.text(), (130,))  # type: ignore[attr-defined]


def _joining_and_leaving(stage: Stage, mesh: Mesh) -> None:
    late = mesh.late
    late.run(["mount", "-t", "tmpfs", "tmpfs", "/root"])
    late.path("/root/token").write_text(mesh.token("late"))
    stage.run(late, "meshagent enroll hub.example:15012 file:/root/token")
    stage.run(late, "meshagent enroll hub.example:15012 file:/root/token --confirm 120")  # enrolled already: the same
    running = stage.start(late, "meshagent run", "agent")
    running.interrupt(lambda: is_ready(late), (0,))
    stage.run(late, "meshagent leave --drain 60")
    stage.run(
        mesh.late,
        "meshagent enroll hub.example:15012 file:/root/token --confirm 120",
        replace={"file:/root/token": mesh.token("web")},
    )
    name = mesh.hub.meshagent_json("hub", "hosts")["hosts"][-1]["name"]
    stage.run(mesh.hub, "meshagent hub host revoke web", replace={"web": name})
    late.meshagent("leave")


def _second_hub(stage: Stage, mesh: Mesh) -> None:
    (mesh.late.private / "hub.backup").write_bytes((mesh.hub.private / "hub.backup").read_bytes())
    said = stage.run(mesh.late, "meshagent hub restore hub.backup --force")
    assert "restored the hub of mesh.internal" in said
    for example, log in (
        ("meshagent hub run --listen 0.0.0.0:15012", "hub-listen"),
        ("meshagent hub run --advertise hub.example:15012", "hub-advertise"),
    ):
        hub = stage.start(mesh.late, example, log)
        hub.interrupt(lambda: mesh.late.meshagent_json("hub", "ca", "status"), (0,))
