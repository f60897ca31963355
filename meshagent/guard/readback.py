"""What nft prints about our table, made comparable and countable. Pure; input is libnftables-json(5) as text."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Element = tuple[str, int, int, int]

#: The listing of a table that isn't there.
NOTHING = '{"nftables": []}'


def objects(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The listing as (kind, body) pairs: table, set, map, chain, rule."""
    found: list[tuple[str, dict[str, Any]]] = []
    for item in json.loads(text)["nftables"]:
        found.extend((kind, body) for kind, body in item.items() if kind != "metainfo")
    return found


def digest(text: str) -> str:
    """SHA-256 of the listing without names, handles, counters, timers and elements that the kernel itself adds.

    Equal digests mean equal rules, wherever counters stand; compare listings only, never with the text we wrote
    (nft prints it in its own words). Sets and chains come in the order in which they were made, which means nothing;
    rules of one chain keep theirs.
    """
    plain = [(kind, _comparable(body)) for kind, body in objects(text) if kind != "table"]
    plain.sort(key=lambda item: (item[0], item[1].get("chain", ""), item[1].get("name", "")))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _comparable(body: dict[str, Any]) -> dict[str, Any]:
    """Elements come in the order of the kernel's hash table, which is another for every set."""
    found = dict(_without_counts({key: value for key, value in body.items() if key != "table"}))
    if "elem" in found:
        found["elem"] = sorted(found["elem"], key=json.dumps)
    return found


def dynamic_elements(text: str, names: tuple[str, ...]) -> dict[str, list[Element]]:
    """Elements of dynamic sets: set name -> (key as nft writes it, packets, bytes, seconds left)."""
    result: dict[str, list[Element]] = {}
    for kind, body in objects(text):
        if kind == "set" and body["name"] in names:
            result[body["name"]] = [_element(item["elem"]) for item in body.get("elem", [])]
    return result


def _element(body: Mapping[str, Any]) -> Element:
    value, counter = body["val"], body.get("counter", {})
    parts = value["concat"] if isinstance(value, dict) else [value]
    key = " . ".join(str(part) for part in parts)
    return key, counter.get("packets", 0), counter.get("bytes", 0), max(1, body.get("expires", 1))


def _without_counts(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_counts(item) for item in value]
    if not isinstance(value, dict):
        return value
    dynamic = "timeout" in value and "elem" in value and "name" in value
    skip = {"handle", "packets", "bytes", "expires"} | ({"elem"} if dynamic else set())
    return {key: _without_counts(item) for key, item in value.items() if key not in skip}
