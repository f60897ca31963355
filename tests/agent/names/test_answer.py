import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshagent.agent.names.answer import Answerer, Verdict, answer
from meshagent.model.names import NameEntry, NameTable
from tests.agent.names.test_table import TABLE, entry, index

BIG = NameTable({**TABLE.entries, "big.default.mesh.internal": entry(*[f"240.240.1.{i}" for i in range(200)])})
INDEX = index(BIG)


def ask(name: str, kind: str = "A", *, stream: bool = False, **options: object) -> dns.message.Message:
    query = dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]
    reply = answer(query.to_wire(), INDEX, stream=stream)
    assert isinstance(reply, bytes), reply
    message = dns.message.from_wire(reply)
    assert query.is_response(message)  # id, question and QR bit, judged by dnspython
    return message


def addresses(message: dns.message.Message) -> list[str]:
    return [row.to_text() for rrset in message.answer for row in rrset]


def test_both_address_types_are_answered_and_authoritative() -> None:
    assert addresses(ask("cache.mesh.internal", "A")) == ["240.240.0.1"]
    assert addresses(ask("cache.mesh.internal", "AAAA")) == ["2001:2::1"]
    assert addresses(ask("cache.mesh.internal", "ANY")) == ["240.240.0.1", "2001:2::1"]
    assert ask("cache.mesh.internal").flags & dns.flags.AA


@pytest.mark.parametrize("kind", ["MX", "TXT", "HTTPS", "SRV", "PTR", "NS"])
def test_other_types_of_a_mesh_name_are_empty_and_not_an_error(kind: str) -> None:
    message = ask("cache.mesh.internal", kind)
    assert (message.rcode(), message.answer) == (dns.rcode.NOERROR, [])
    assert [r.rdtype for r in message.authority] == [dns.rdatatype.SOA]


def test_aaaa_of_a_name_without_ipv6_is_empty_and_not_nxdomain() -> None:
    assert ask("db.prod.mesh.internal", "AAAA").rcode() == dns.rcode.NOERROR


def test_an_unknown_name_of_the_zone_is_nxdomain_with_the_zones_soa() -> None:
    message = ask("nosuch.default.mesh.internal")
    assert message.rcode() == dns.rcode.NXDOMAIN
    (soa,) = message.authority
    assert soa.name.to_text() == "mesh.internal." and soa[0].minimum == soa.ttl == 5


def test_the_zone_itself_has_a_soa_and_its_namespaces_exist() -> None:
    assert ask("mesh.internal", "SOA").answer[0].rdtype == dns.rdatatype.SOA
    assert ask("prod.mesh.internal").rcode() == dns.rcode.NOERROR


def test_the_case_of_the_question_comes_back_as_it_was_asked() -> None:
    assert ask("CaChE.mEsH.iNtErNaL").question[0].name.to_text() == "CaChE.mEsH.iNtErNaL."


@pytest.mark.parametrize("name", ["example.com", "a.global", "xmesh.internal", "."])
def test_a_foreign_name_goes_on(name: str) -> None:
    assert answer(dns.message.make_query(name, "A").to_wire(), INDEX) is Verdict.FORWARD


def test_other_opcodes_and_classes_go_on() -> None:
    update = dns.message.make_query("cache.mesh.internal", "A")
    update.set_opcode(dns.opcode.NOTIFY)
    assert answer(update.to_wire(), INDEX) is Verdict.FORWARD
    assert answer(dns.message.make_query("mesh.internal", "TXT", "CH").to_wire(), INDEX) is Verdict.FORWARD


def test_a_response_is_never_answered() -> None:
    query = dns.message.make_query("cache.mesh.internal", "A")
    assert answer(dns.message.make_response(query).to_wire(), INDEX) is Verdict.DROP


def test_edns_is_echoed_only_to_those_who_speak_it() -> None:
    assert ask("cache.mesh.internal").edns == -1
    message = ask("cache.mesh.internal", use_edns=0, payload=4096, want_dnssec=True)
    assert (message.edns, message.payload, bool(message.ednsflags & dns.flags.DO)) == (0, 1232, True)


def test_an_unknown_edns_version_is_told_so() -> None:
    query = dns.message.make_query("cache.mesh.internal", "A", use_edns=1)
    reply = answer(query.to_wire(), INDEX)
    assert isinstance(reply, bytes) and dns.message.from_wire(reply).rcode() == dns.rcode.BADVERS


def test_a_big_answer_is_truncated_to_what_the_client_takes_and_whole_over_tcp() -> None:
    small = ask("big.mesh.internal")
    assert small.flags & dns.flags.TC and not small.answer
    assert ask("big.mesh.internal", use_edns=0, payload=1232).flags & dns.flags.TC
    assert len(addresses(ask("big.mesh.internal", use_edns=0, payload=4096))) == 200
    assert len(addresses(ask("big.mesh.internal", stream=True))) == 200


@pytest.mark.parametrize(
    "defect",
    [
        b"\x12\x34\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00",  # no question
        b"\x12\x34\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01",  # says two, has one
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01",  # a name pointing at itself
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05cache",  # cut off
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + b"\x3f" + b"a" * 63 + b"\x40",  # a label of 64
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + (b"\x3f" + b"a" * 63) * 4 + b"\x00\x00\x01\x00\x01",
    ],
)
def test_an_unreadable_question_is_formerr(defect: bytes) -> None:
    reply = answer(defect, INDEX)
    assert isinstance(reply, bytes) and reply[:2] == defect[:2] and reply[3] & 0xF == dns.rcode.FORMERR


def test_a_second_opt_record_of_a_mesh_name_is_formerr() -> None:
    wire = bytearray(dns.message.make_query("cache.mesh.internal", "A", use_edns=0).to_wire())
    wire[11] = 2
    reply = answer(bytes(wire) + bytes(wire[-11:]), INDEX)
    assert isinstance(reply, bytes) and reply[3] & 0xF == dns.rcode.FORMERR


def test_what_is_shorter_than_a_header_is_dropped() -> None:
    assert answer(b"", INDEX) is answer(b"\0" * 11, INDEX) is Verdict.DROP


def test_a_remembered_reply_is_the_same_but_for_the_id() -> None:
    answerer = Answerer(INDEX)
    query = dns.message.make_query("cache.mesh.internal", "A").to_wire()
    first = answerer.udp(query)
    again = answerer.udp(b"\xab\xcd" + query[2:])
    assert isinstance(first, bytes) and again == b"\xab\xcd" + first[2:]


NAMES = st.sampled_from(["cache.mesh.internal", "nosuch.mesh.internal", "big.mesh.internal", "example.com"])


@given(st.binary(max_size=600))
def test_no_bytes_crash_it_and_replies_are_responses_with_the_same_id(data: bytes) -> None:
    reply = Answerer(INDEX).udp(data)
    if isinstance(reply, bytes):
        assert reply[:2] == data[:2] and reply[2] & 0x80


@given(
    NAMES,
    st.integers(0, 0xFFFF),
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=6),
    st.booleans(),
)
def test_a_damaged_query_is_answered_readably_or_not_at_all(
    name: str, kind: int, damage: list[tuple[int, int]], edns: bool
) -> None:
    wire = bytearray(dns.message.make_query(name, kind, use_edns=0 if edns else -1).to_wire())
    for place, value in damage:
        wire[place % len(wire)] = value
    reply = answer(bytes(wire), INDEX)
    if isinstance(reply, bytes):
        dns.message.from_wire(reply)


def test_entries_without_addresses_answer_empty() -> None:
    reply = answer(
        dns.message.make_query("x.y.mesh.internal", "A").to_wire(),
        index(NameTable({"x.y.mesh.internal": NameEntry(())})),
    )
    assert isinstance(reply, bytes) and dns.message.from_wire(reply).rcode() == dns.rcode.NOERROR


def test_before_the_first_name_table_a_name_of_the_zone_is_not_denied_but_asked_for_again() -> None:
    """ "No such name" would be remembered by resolvers, and may be wrong."""
    query = dns.message.make_query("cache.default.mesh.internal", "A")
    reply = answer(query.to_wire(), index(NameTable(known=False)))
    assert isinstance(reply, bytes)
    message = dns.message.from_wire(reply)
    assert (message.rcode(), message.authority) == (dns.rcode.SERVFAIL, [])
    outside = dns.message.make_query("example.org", "A")
    assert answer(outside.to_wire(), index(NameTable(known=False))) is Verdict.FORWARD
