"""Real services on a real host: their own files are found, wherever their command line says they are."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from meshagent.lab import Host, Lab, recipes, trusting

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Lab(families=(4,)) as lab:
        made = lab.host("db")
        trusting.postgresql(made, 5432, hba=["host all web 192.0.2.7/32 trust"])
        trusting.postgresql(made, 5433, hba=["host all web 192.0.2.7/32 trust"], listen="localhost")
        trusting.postfix(made, networks="127.0.0.0/8 192.0.2.0/24")
        made.path("/etc/redis/redis.conf").write_text("protected-mode yes\n")
        recipes.redis(made)
        yield made


def planned(host: Host, *options: str, check: bool = True) -> tuple[int, dict[str, Any], str]:
    done = host.meshagent("plan", "-o", "json", *options, check=check)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_the_plan_finds_the_rules_by_address_of_each_service_and_says_that_they_keep_their_meaning(host: Host) -> None:
    _, plan, _ = planned(host)
    found = {(row["program"], row["port"], row["rule"]): row for row in plan["address_trust"]}
    for key in (
        ("postgresql", 5432, "host all web 192.0.2.7/32 trust"),
        ("postfix", 25, "mynetworks = 127.0.0.0/8 192.0.2.0/24"),
        ("redis", 6379, "protected-mode yes"),
    ):
        assert found[key]["keeps"] and "keeps its meaning" in found[key]["text"]
    hidden = found["postgresql", 5433, "host all web 192.0.2.7/32 trust"]
    assert not hidden["keeps"] and "loses its meaning" in hidden["text"]
    assert hidden["file"].endswith("pg_hba.conf") and hidden["line"] == 4


def test_a_declared_service_whose_rules_lose_their_meaning_is_refused_by_name(host: Host) -> None:
    host.meshagent("service", "add", "inside", "--port", "5433")
    code, _, error = planned(host, check=False)
    assert code == 5
    said = json.loads(error)["error"]
    assert said["code"] == "refused-address-trust" and "pg_hba.conf line 4" in said["message"]
    assert "--accept address-trust" in said["hint"]
    assert planned(host, "--accept", "address-trust")[1]["risks"][0]["risk"] == "address-trust"
    assert planned(host, "--posture", "outbound")[0] == 0  # nobody comes in
    refused = host.meshagent("enroll", "192.0.2.1:15012", "token", check=False)  # before anything is sent anywhere
    assert refused.returncode == 5 and not (host.root / "var/lib/meshagent").exists()
    host.meshagent("service", "remove", "inside")


def test_on_an_enrolled_host_a_service_that_would_lose_its_rules_is_not_even_declared(host: Host) -> None:
    enrolment = host.root / "var/lib/meshagent/enrolment.json"
    enrolment.parent.mkdir(parents=True)
    enrolment.write_text("{}")  # it is there: that is all that makes a host an enrolled one
    add = ("service", "add", "inside", "--port", "5000", "--target-port", "5433")
    try:
        done = host.meshagent(*add, check=False)
        assert done.returncode == 5 and "pg_hba.conf line 4" in done.stderr
        assert host.meshagent_json("service", "list")["services"] == []
        host.meshagent(*add, "--accept", "address-trust")
        host.meshagent("service", "add", "pg", "--port", "5432")  # sees its callers' own addresses
        for name in ("inside", "pg"):
            host.meshagent("service", "remove", name)
    finally:
        enrolment.unlink()
        enrolment.parent.rmdir()


def test_without_cap_net_admin_there_is_nothing_to_capture_with(host: Host) -> None:
    host.meshagent("service", "add", "pg", "--port", "5432")
    words = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", *host.meshagent_argv("plan")]
    done = host.run(words, check=False, timeout=60)
    assert done.returncode == 1 and "neither nftables nor legacy iptables can be used here" in done.stderr
    assert planned(host)[0] == 0
    host.meshagent("service", "remove", "pg")
