"""A patched map tells a stream the same as a plain one, whatever the client did meanwhile."""

import random

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest
from google.rpc.status_pb2 import Status

from meshagent.protocol.entry import Entry, Patched, Snapshot
from meshagent.protocol.publisher import Publisher, Reaction
from meshagent.protocol.types import CDS, EDS

NAMES = [f"n{i}" for i in range(12)]


def _changed(dice: random.Random, before: Patched) -> Patched:
    """A few names put, a few gone."""
    put = {name: Entry(str(dice.random()), b"x") for name in dice.sample(NAMES, dice.randrange(3))}
    gone = set(dice.sample(NAMES, dice.randrange(3))) - put.keys()
    left = {name: each for name, each in before.items() if name not in gone} | put
    # as a builder may skip a state, or start anew, some maps don't follow the one before
    after = before.mark if dice.random() < 0.8 else None
    return Patched(left, after, gone | put.keys())


def _request(dice: random.Random, nonces: list[tuple[str, str]]) -> DeltaDiscoveryRequest:
    """An answer to something that was sent, or a wish."""
    if nonces and dice.random() < 0.7:
        type_url, nonce = nonces.pop(dice.randrange(len(nonces)))
        error = Status(code=3, message=f"bad {dice.choice(NAMES)}") if dice.random() < 0.3 else None
        return DeltaDiscoveryRequest(type_url=type_url, response_nonce=nonce, error_detail=error)
    names = dice.sample(NAMES, dice.randrange(1, 5))
    kind = "resource_names_subscribe" if dice.random() < 0.7 else "resource_names_unsubscribe"
    return DeltaDiscoveryRequest(type_url=dice.choice([CDS, EDS]), **{kind: names})  # type: ignore[arg-type]


def _versions(maps: dict[str, Patched], dice: random.Random) -> dict[str, dict[str, str]]:
    """What a client holds: all there is, or not quite."""
    held = {type_url: {name: each.version for name, each in entries.items()} for type_url, entries in maps.items()}
    for versions in held.values():
        if dice.random() < 0.4:
            versions[dice.choice(NAMES)] = dice.choice(["", "old"])
        if versions and dice.random() < 0.3:
            del versions[dice.choice(list(versions))]
    return held


@pytest.mark.parametrize("forgetful", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_over_any_history_the_responses_are_those_of_plain_maps(seed: int, forgetful: bool) -> None:
    dice = random.Random(seed)
    patched, plain = Publisher(forgetful=forgetful), Publisher(forgetful=forgetful)
    maps = {CDS: Patched({}), EDS: Patched({})}
    copies: dict[str, dict[str, Entry]] = {CDS: {}, EDS: {}}
    nonces: list[tuple[str, str]] = []

    def both(one: Reaction, other: Reaction) -> None:
        assert one == other
        nonces.extend((response.type_url, response.nonce) for response in one.responses)

    for first in (DeltaDiscoveryRequest(type_url=CDS), DeltaDiscoveryRequest(type_url=EDS)):
        both(patched.on_request(first), plain.on_request(first))
    for _ in range(80):
        if dice.random() < 0.5:
            type_url = dice.choice([CDS, EDS])
            maps[type_url] = _changed(dice, maps[type_url])
            snapshot: Snapshot = dict(maps)
            copies[type_url] = dict(maps[type_url])
            both(patched.on_snapshot(snapshot), plain.on_snapshot(dict(copies)))
        elif dice.random() < 0.15:  # the client comes back with what it has, on a new stream
            held: dict[str, dict[str, str]] = {CDS: {}, EDS: {}} if dice.random() < 0.3 else _versions(maps, dice)
            patched, plain = Publisher(forgetful=forgetful), Publisher(forgetful=forgetful)
            nonces.clear()
            both(patched.on_snapshot(dict(maps)), plain.on_snapshot(dict(copies)))
            for type_url, names in ((CDS, ["*"]), (EDS, NAMES if dice.random() < 0.5 else list(maps[EDS]))):
                first = DeltaDiscoveryRequest(
                    type_url=type_url, resource_names_subscribe=names, initial_resource_versions=held[type_url]
                )
                both(patched.on_request(first), plain.on_request(first))
        else:
            request = _request(dice, nonces)
            both(patched.on_request(request), plain.on_request(request))
    assert patched.settled == plain.settled
