"""The ledger against an Envoy that refuses: every interleaving ends with the good in use and the bad named."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from meshagent.agent.relay.ledger import Ledger
from meshagent.agent.relay.nack import is_port_taken
from meshagent.protocol.entry import Entry
from meshagent.protocol.types import CDS, EDS, LDS

GOOD, BAD = b"good", b"bad"


class StubbornEnvoy:
    """Applies what it is sent unless a body is BAD; in ``named`` style it applies the rest and names the bad ones."""

    def __init__(self, type_url: str, named: bool) -> None:
        self.type_url, self.named = type_url, named
        self.held: dict[str, str] = {}  # as its publisher believes
        self.using: dict[str, Entry] = {}

    def sync(self, ledger: Ledger, portion: int) -> bool:
        """One response with up to ``portion`` differences, and its verdict. False when there is nothing to send."""
        served = ledger.served
        changed = sorted(n for n, e in served.items() if self.held.get(n) != e.version)[:portion]
        removed = sorted(n for n in self.held if n not in served)[:portion]
        if not changed and not removed:
            return False
        resources = {name: served[name].version for name in changed}
        self.held.update(resources)
        for name in removed:
            del self.held[name]
            self.using.pop(name, None)
        bad = [name for name in changed if served[name].body == BAD]
        if not bad or self.named:
            self.using.update({name: served[name] for name in changed if name not in bad})
        if not bad:
            ledger.accepted(resources, removed)
        elif self.named:
            text = "Error adding/updating cluster(s) " + ", ".join(f"{n}: why" for n in bad)
            ledger.refused(resources, removed, text)
        else:
            ledger.refused(resources, removed, "Proto constraint validation failed")
        return True

    def reconnect(self, ledger: Ledger) -> None:
        """A new stream: it claims what it uses."""
        self.held = {name: entry.version for name, entry in self.using.items()}
        ledger.reconnected()
        ledger.claimed(dict(self.held))


def settle(ledger: Ledger, envoy: StubbornEnvoy, portion: int) -> None:
    for _ in range(10_000):
        if not envoy.sync(ledger, portion):
            return
    raise AssertionError("does not settle")


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    count=st.integers(1, 40),
    share=st.floats(0, 1),
    portion=st.integers(1, 50),
    named=st.booleans(),
)
def test_whatever_is_offered_the_good_is_in_use_and_exactly_the_bad_is_refused(
    seed: int, count: int, share: float, portion: int, named: bool
) -> None:
    dice = random.Random(seed)
    type_url = CDS if named else EDS
    ledger, envoy = Ledger(type_url), StubbornEnvoy(type_url, named)
    wanted: dict[str, Entry] = {}
    for step in range(4):
        names = [f"c{i}" for i in range(count) if dice.random() < 0.7]
        news = {n: Entry(f"{n}.{step}", BAD if dice.random() < share else GOOD) for n in names}
        gone = [n for n in wanted if n not in news and dice.random() < 0.2]
        ledger.offer(news, gone)
        wanted = {n: e for n, e in {**wanted, **news}.items() if n not in gone}
        if dice.random() < 0.5:
            envoy.sync(ledger, portion)  # news arrive in the middle of trials
        elif dice.random() < 0.3:
            envoy.sync(ledger, portion)
            envoy.reconnect(ledger)
        else:
            settle(ledger, envoy, portion)
    settle(ledger, envoy, portion)
    assert set(ledger.reasons) == {n for n, e in wanted.items() if e.body == BAD}
    assert {n for n, e in wanted.items() if e.body == GOOD} <= set(ledger.proven)
    assert not ledger.waiting(wanted)
    for name, entry in wanted.items():
        if entry.body == GOOD:
            assert envoy.using[name] == entry == ledger.served[name]
        elif name in ledger.proven:
            assert envoy.using[name] == ledger.proven[name] == ledger.served[name]
            assert ledger.proven[name].body == GOOD


def test_a_refused_form_offered_again_is_refused_at_once_and_a_new_form_is_tried() -> None:
    ledger = Ledger(CDS)
    bad = Entry("2", BAD)
    ledger.offer({"a": Entry("1", GOOD)}, ())
    ledger.accepted({"a": "1"})
    ledger.offer({"a": bad}, ())
    assert ledger.refused({"a": "2"}, (), "no")
    assert ledger.served["a"].version == "1"
    assert ledger.offer({"a": bad}, ()) == {"a": "no"}
    assert ledger.offer({"a": Entry("3", GOOD)}, ()) == {}
    assert ledger.served["a"].version == "3"


def test_the_cache_keeps_what_was_proven_before_what_is_merely_offered() -> None:
    ledger = Ledger(CDS)
    ledger.offer({"a": Entry("1", GOOD), "new": Entry("1", GOOD)}, ())
    ledger.accepted({"a": "1"})
    ledger.offer({"a": Entry("2", GOOD)}, ())
    assert {name: entry.version for name, entry in ledger.good.items()} == {"a": "1", "new": "1"}


def test_a_removal_takes_effect_at_once() -> None:
    ledger = Ledger(CDS)
    ledger.restore({"a": Entry("1", GOOD)})
    ledger.offer({}, ["a", "never seen"])
    assert ledger.served == ledger.proven == {}


# --- what Envoy says it holds


def test_an_offer_of_what_envoy_claimed_before_is_proven_without_being_sent() -> None:
    """After a restart with an empty memory the claim often overtakes the offer."""
    ledger = Ledger(LDS)
    ledger.reconnected()
    ledger.claimed({"a": "1", "b": "1"})
    ledger.offer({"a": Entry("1", GOOD), "b": Entry("2", GOOD)}, ())
    assert set(ledger.proven) == {"a"}
    assert set(ledger.used) == {"a", "b"}, "of b an older version is in use"
    assert ledger.waiting(["a", "b"]) == {"b"}
    assert ledger.judged


def test_news_that_envoy_has_already_are_proven_though_an_older_version_was_on_disk() -> None:
    ledger = Ledger(LDS)
    ledger.restore({"a": Entry("1", GOOD)})
    ledger.reconnected()
    ledger.claimed({"a": "2"})
    ledger.offer({"a": Entry("2", GOOD)}, ())
    assert ledger.proven["a"].version == "2"
    assert not ledger.waiting(["a"])


def test_a_claim_is_good_for_one_stream_and_until_envoy_was_told_otherwise() -> None:
    ledger = Ledger(LDS)
    ledger.claimed({"a": "1", "b": "1", "c": "1"})
    ledger.accepted({}, removed=["a"])
    ledger.offer({"a": Entry("1", GOOD), "b": Entry("2", GOOD)}, ())
    assert set(ledger.used) == {"b"}
    ledger.accepted({"b": "2"})
    ledger.offer({"b": Entry("1", GOOD)}, ())
    assert ledger.waiting(["a", "b"]) == {"a", "b"}
    ledger.reconnected()
    ledger.offer({"c": Entry("1", GOOD)}, ())
    assert ledger.waiting(["c"]) == {"c"}


def test_what_was_restored_from_disk_is_served_but_in_use_only_when_envoy_says_so() -> None:
    ledger = Ledger(LDS)
    ledger.restore({"a": Entry("1", GOOD)})
    assert set(ledger.served) == {"a"}
    assert not ledger.used
    assert not ledger.judged
    ledger.accepted({"a": "1"})
    assert set(ledger.used) == {"a"}
    assert ledger.judged


# --- ports that somebody else holds

TAKEN = "Error adding/updating listener(s) a: cannot bind '127.0.0.1:15001': Address already in use"


def test_a_listener_whose_port_is_taken_is_kept_and_offered_again_until_it_is_in_use() -> None:
    ledger = Ledger(LDS)
    ledger.offer({"a": Entry("1", GOOD), "b": Entry("1", GOOD)}, ())
    assert set(ledger.refused({"a": "1", "b": "1"}, (), TAKEN)) == {"a"}
    assert set(ledger.served) == set(ledger.used) == {"b"}
    assert set(ledger.good) == {"a", "b"}, "nothing is wrong with it: the next start begins with it"
    assert not ledger.try_again(lambda reason: "no such reason" in reason)
    assert ledger.try_again(is_port_taken)
    assert set(ledger.served) == {"a", "b"}
    ledger.accepted({"a": "1"})
    assert set(ledger.used) == {"a", "b"}
    assert not ledger.try_again(is_port_taken)


def test_what_an_earlier_envoy_had_proven_is_lost_when_this_one_refuses_it_by_name() -> None:
    ledger = Ledger(LDS)
    ledger.restore({"a": Entry("1", GOOD), "b": Entry("1", GOOD)})
    ledger.accepted({"a": "1", "b": "1"})
    ledger.reconnected()
    assert set(ledger.refused({"a": "1", "b": "1"}, (), TAKEN)) == {"a"}
    assert set(ledger.used) == set(ledger.served) == {"b"}
    assert set(ledger.good) == {"a", "b"}
    assert ledger.try_again(is_port_taken)
    ledger.accepted({"a": "1"})
    assert set(ledger.used) == {"a", "b"}
    assert not ledger.reasons


@given(st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_what_is_served_is_a_patch_of_what_was_served_that_names_every_difference(seed: int) -> None:
    dice = random.Random(seed)
    ledger, envoy = Ledger(CDS), StubbornEnvoy(CDS, named=dice.random() < 0.5)
    ledger.restore({f"n{n}": Entry("0", GOOD) for n in range(dice.randrange(6))})
    before = ledger.served
    for number in range(30):
        names = [f"n{n}" for n in dice.sample(range(12), dice.randrange(1, 5))]
        match dice.randrange(5):
            case 0 | 1:
                body = BAD if dice.random() < 0.4 else GOOD
                ledger.offer({name: Entry(str(number), body) for name in names}, ())
            case 2:
                ledger.offer({}, names)
            case 3:
                envoy.sync(ledger, dice.randrange(1, 8))
            case _:
                envoy.reconnect(ledger)
                ledger.try_again(lambda _: True)
        now = ledger.served
        assert dict(now) == {name: slot.served for name, slot in ledger._slots.items() if slot.served is not None}
        assert now is before or now.after is before.mark
        assert {name for name in now.keys() | before.keys() if now.get(name) != before.get(name)} <= now.touched
        before = now
