"""System users are made once, with numbers to keep, and go without a trace."""

import json
import sys
from pathlib import Path

import pytest

from meshagent.lab import Lab, wait_until
from meshagent.lab.snapshot import diff

pytestmark = pytest.mark.root

CODE = """
import dataclasses, json, sys
from meshagent.machine import users
print(json.dumps(eval(sys.argv[1]), default=dataclasses.asdict))
"""


def test_a_user_is_made_once_and_removed_without_a_trace(lab: Lab) -> None:
    web = lab.host("web")
    before = web.snapshot()
    first = json.loads(web.python(CODE, "users.ensure_user('ma-proxy')"))
    second = json.loads(web.python(CODE, "users.ensure_user('ma-proxy')"))
    assert first["created"]
    assert not second["created"]
    assert (first["uid"], first["gid"]) == (second["uid"], second["gid"])
    assert web.run(["getent", "passwd", "ma-proxy"]).stdout.endswith(":/nonexistent:/usr/sbin/nologin\n")
    for _ in range(2):
        web.python(CODE, "users.remove_user('ma-proxy')")
    assert diff(before, web.snapshot()) == []


def test_a_group_that_is_there_already_is_used_and_groups_alone_can_be_made(lab: Lab) -> None:
    web = lab.host("web")
    before = web.snapshot()
    gid, created = json.loads(web.python(CODE, "users.ensure_group('ma-proxy')"))
    assert created
    assert json.loads(web.python(CODE, "users.ensure_group('ma-proxy')")) == [gid, False]
    assert json.loads(web.python(CODE, "users.ensure_user('ma-proxy')"))["gid"] == gid
    web.python(CODE, "users.remove_user('ma-proxy')")
    assert diff(before, web.snapshot()) == []


def test_a_user_goes_even_while_a_process_elsewhere_has_its_number(lab: Lab) -> None:
    web, other = lab.host("web"), lab.host("other")
    before = web.snapshot()
    made = json.loads(web.python(CODE, "users.ensure_user('ma-proxy')"))
    program = other.popen(["setpriv", f"--reuid={made['uid']}", "--clear-groups", "sleep", "1000"])
    wait_until(lambda: Path(f"/proc/{program.pid}").stat().st_uid == made["uid"])
    web.python(CODE, "users.remove_user('ma-proxy')")
    assert program.alive
    assert diff(before, web.snapshot()) == []


def test_a_name_that_can_not_be_is_an_error_that_shows_the_command(lab: Lab) -> None:
    done = lab.host("web").run([sys.executable, "-c", CODE, "users.ensure_user('a:b')"], check=False)
    assert "useradd" in done.stderr
