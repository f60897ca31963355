"""``status --watch``: a new document when something changed and only then, until Ctrl-C."""

import itertools
import json
import signal
from typing import Any

import pytest

from meshagent.lab import Program, wait_until
from meshagent.lab.waiting import stays_false
from tests.cli.conftest import Mesh, is_ready

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cli-mesh")]


def documents(program: Program) -> list[dict[str, Any]]:
    """Every line is one whole document; after Ctrl-C a line of its own keeps what follows off the terminal's ^C."""
    return [json.loads(line) for line in program.text().splitlines() if line]


def is_quiet(program: Program) -> bool:
    """Nothing is said for as long as two looks and a half take."""
    seen = len(documents(program))
    return stays_false(lambda: len(documents(program)) > seen, 2.5)


def has_extra(document: dict[str, Any]) -> bool:
    return "extra" in [service["name"] for service in document["services"]]


def test_watch_prints_one_document_per_change_and_ends_politely(mesh: Mesh) -> None:
    watch = mesh.db.start_meshagent("status", "--watch", "-o", "json", log="watch")
    try:
        wait_until(lambda: documents(watch), what="the first document")
        wait_until(lambda: is_quiet(watch), timeout=20, what="two looks without a new document: nothing happened")
        mesh.db.meshagent("service", "add", "extra", "--port", "6400", "--protocol", "tcp")
        wait_until(lambda: has_extra(documents(watch)[-1]), timeout=15, what="the new service in a new document")
    finally:
        mesh.db.meshagent("service", "remove", "extra", check=False)
    wait_until(lambda: not has_extra(documents(watch)[-1]), timeout=15, what="a document without it")
    watch.send_signal(signal.SIGINT)
    assert watch.wait(20) == 130
    *told, last = documents(watch)
    assert last == {"error": {"code": "interrupted", "message": "interrupted", "hint": ""}}
    assert all(new != old for old, new in itertools.pairwise(told))
    assert {document["host"] for document in told} == {"db"}
    wait_until(lambda: is_ready(mesh.db), timeout=15, what="db as before")


def test_watch_for_people_ends_with_one_line(mesh: Mesh) -> None:
    watch = mesh.db.start_meshagent("status", "--watch", log="watch-people")
    wait_until(lambda: "control plane" in watch.text(), what="the first screen")
    watch.send_signal(signal.SIGINT)
    assert watch.wait(20) == 130
    assert watch.text().splitlines()[-1] == "meshagent: interrupted"
    assert "Traceback" not in watch.text()


def test_watch_on_a_host_that_is_not_enrolled_says_so(mesh: Mesh) -> None:
    outsider = mesh.hub
    watch = outsider.start_meshagent("status", "--watch", "-o", "json", log="watch-outsider")
    wait_until(lambda: documents(watch), what="the first document")
    watch.send_signal(signal.SIGINT)
    assert watch.wait(20) == 130
    assert documents(watch)[0] == {"enrolled": False}
