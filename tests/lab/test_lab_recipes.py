"""Legacy services on lab hosts answer real clients from another host, over each family."""

import pytest

from meshagent.lab import Lab, recipes
from meshagent.machine import process

pytestmark = pytest.mark.root


def test_redis_answers(lab_of_one_family: Lab) -> None:
    web, cache = lab_of_one_family.host("web"), lab_of_one_family.host("cache")
    recipes.redis(cache)
    assert web.run(["redis-cli", "-h", cache.address, "set", "key", "value"]).stdout == "OK\n"


def test_nginx_tells_who_calls(lab_of_one_family: Lab) -> None:
    client, web = lab_of_one_family.host("client"), lab_of_one_family.host("web")
    service = recipes.nginx(web, 8080)
    name = f"http://web.lab.test:{service.port}"
    assert client.run(["curl", "-s", f"{name}/"]).stdout == "hello from web\n"
    assert client.run(["curl", "-s", f"{name}/who"]).stdout.split() == [client.address]


def test_mariadb_sees_who_calls(lab: Lab) -> None:
    web, db = lab.host("web"), lab.host("db")
    recipes.mariadb(db)
    query = ["mariadb", "--no-defaults", "--user=app", "--password=app", "-N", "-e", "SELECT USER()", "app"]
    for address in db.addresses:
        seen = web.run([*query, f"--host={address}"]).stdout.strip()
        assert seen.removeprefix("app@") in web.addresses


def test_sshd_takes_its_own_key(lab: Lab) -> None:
    admin, server = lab.host("admin"), lab.host("server")
    service = recipes.sshd(server, 2222)
    assert admin.run(recipes.ssh_argv(service, server.address, "hostname")).stdout == "server\n"


def test_a_service_that_can_not_start_says_why(lab: Lab) -> None:
    cache = lab.host("cache")
    with pytest.raises(process.ProgramError, match="Bad directive"):
        recipes.redis(cache, options=("--no-such-setting", "1"))
