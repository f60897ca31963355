"""Only text that can't touch any table but ours reaches the kernel."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshagent.guard import text
from meshagent.guard.wire import RequestError

GOOD = 'table inet meshagent {\n\tchain a {\n\t\ttcp dport 80 counter accept comment "it\'s { fine; #}"\n\t}\n}\n'


def test_one_block_of_our_own_table_is_accepted() -> None:
    text.require_table(GOOD, "meshagent")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "flush ruleset\n",
        GOOD + "flush ruleset\n",
        GOOD.removesuffix("\n") + "; flush ruleset }\n",
        GOOD.removesuffix("}\n") + "}\n}\ntable inet other {\n}\n",
        GOOD.replace("table inet meshagent", "table inet other"),
        GOOD.replace("table inet meshagent", "table ip meshagent"),
        GOOD.replace("\tchain a", '\tinclude "/etc/nftables.conf"\n\tchain a'),
        GOOD.replace("\tchain a", "\tdefine x = 1\n\tchain a"),
        GOOD.replace("80", "$port"),
        GOOD.replace("80", "80 # }"),
        GOOD.replace("80", "80\\\n"),
        GOOD.replace("80", "٨٠"),
        GOOD.replace('fine; #}"', "fine;"),
        GOOD.removesuffix("}\n"),
        "}\n" + GOOD,
        "table inet meshagent {\n}\n}\n{\n}\n",
    ],
)
def test_anything_else_is_refused(bad: str) -> None:
    with pytest.raises(RequestError) as refused:
        text.require_table(bad, "meshagent")
    assert refused.value.code == "refused-text"


@given(st.text(alphabet='{}"\n;a #$', max_size=40))
def test_whatever_is_put_inside_nothing_can_follow_our_block(inside: str) -> None:
    """The outermost brace closes at the very end, judged by a second, naive reading."""
    candidate = f"table inet meshagent {{\n{inside}}}\n"
    try:
        text.require_table(candidate, "meshagent")
    except RequestError:
        return
    depth, quoted = 0, False
    for position, letter in enumerate(candidate):
        quoted ^= letter == '"'
        if not quoted:
            depth += (letter == "{") - (letter == "}")
        assert depth > 0 or position < len("table inet meshagent ") or position >= len(candidate) - 2


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "add element inet meshagent claimed4 { 10.1.2.3 . 80 }\n",
        "flush map inet meshagent gate\nadd element inet meshagent gate { tcp : goto to_proxy, udp : goto x }\n",
        "delete element inet meshagent claimed6 { 2001:db8::1 . 80 }\n",
    ],
)
def test_element_changes_of_our_table_are_accepted(lines: str) -> None:
    text.require_updates(lines, "meshagent")


@pytest.mark.parametrize(
    "lines",
    [
        "flush ruleset\n",
        "flush table inet meshagent\n",
        "delete table inet meshagent\n",
        "add element inet other x { 10.0.0.1 }\n",
        "add element ip meshagent x { 10.0.0.1 }\n",
        "add element inet meshagent x { 10.0.0.1 }; flush ruleset\n",
        "add element inet meshagent x { 10.0.0.1 }",
        "add element inet meshagent x { 10.0.0.1 }\n\n",
        'add element inet meshagent x { "a" }\n',
        "add element inet meshagent x { 10.0.0.1 } } { flush ruleset }\n",
    ],
)
def test_any_other_command_is_refused(lines: str) -> None:
    with pytest.raises(RequestError):
        text.require_updates(lines, "meshagent")


def test_the_owner_flag_goes_into_the_first_line() -> None:
    assert text.with_owner(GOOD, "meshagent").startswith("table inet meshagent {\n\tflags owner;\n\tchain a {")


BEFORE = """table inet meshagent {
	map gate {
		type inet_proto : verdict
		elements = { tcp : goto captured }
	}
	set ports {
		type inet_service
		elements = { 80 }
	}
	set claimed4 {
		type ipv4_addr . inet_service
	}
	chain out {
		type nat hook output priority -100; policy accept;
		ip daddr . tcp dport @claimed4 meta l4proto vmap @gate
	}
	chain captured {
		meta l4proto tcp redirect to :15001
	}
	chain old {
		counter
	}
}
"""
AFTER = BEFORE.replace("{ 80 }", "{ 80, 81 }").replace("chain old", "chain new").replace("redirect", "counter redirect")


def test_what_is_in_both_stays_in_the_kernel_and_the_rest_is_exchanged() -> None:
    gone, come = text.exchanged(BEFORE, AFTER, ["claimed4"], "meshagent")
    assert gone.splitlines() == [
        "flush chain inet meshagent captured",
        "flush chain inet meshagent old",
        "delete set inet meshagent ports",
        "delete chain inet meshagent old",
    ]
    assert "goto captured" not in come, "what a gate flipped stays flipped"
    assert text.commands(come, "meshagent").splitlines() == [
        "add chain inet meshagent captured",
        "add chain inet meshagent new",
        "add set inet meshagent ports {",
        "\t\ttype inet_service",
        "\t\telements = { 80, 81 }",
        "\t}",
        "add rule inet meshagent captured meta l4proto tcp counter redirect to :15001",
        "add rule inet meshagent new counter",
    ]


def test_rules_that_stay_are_not_touched_unless_they_name_what_goes() -> None:
    gone, come = text.exchanged(BEFORE, BEFORE, ["claimed4"], "meshagent")
    assert gone == text.commands(come, "meshagent") == ""
    gone, _ = text.exchanged(BEFORE, BEFORE.replace("type ipv4_addr", "type ipv6_addr"), [], "meshagent")
    assert gone.splitlines() == ["flush chain inet meshagent out", "delete set inet meshagent claimed4"]
    gone, _ = text.exchanged(BEFORE, BEFORE, ["claimed4"], "meshagent", maps=False)
    assert gone.splitlines() == ["flush chain inet meshagent out", "delete map inet meshagent gate"]


def test_a_chain_at_another_hook_is_another_chain() -> None:
    gone, _ = text.exchanged(BEFORE, BEFORE.replace("priority -100", "priority -99"), ["claimed4"], "meshagent")
    assert "delete chain inet meshagent out\n" in gone and "captured" not in gone


def test_maps_are_the_same_whatever_else_differs() -> None:
    assert text.same_maps(BEFORE, AFTER)
    assert not text.same_maps(BEFORE, BEFORE.replace("tcp : goto", "udp : goto"))


def flat(body: str) -> list[str]:
    return text.commands(f"table inet meshagent {{\n\tchain a {{\n{body}\t}}\n}}\n", "meshagent").splitlines()


@pytest.mark.parametrize("between", ["\n\t\t", " ", ""])
def test_hook_policy_and_rules_become_commands_of_their_own_also_on_one_line(between: str) -> None:
    hook = "type filter hook prerouting priority mangle - 1;"
    rule = 'counter comment "one; rule"'
    assert flat(f"\t\t{hook}{between}policy accept;{between}tcp dport 80 accept;{between}{rule}\n") == [
        f"add chain inet meshagent a {{ {hook} policy accept; }}",
        "add rule inet meshagent a tcp dport 80 accept",
        f"add rule inet meshagent a {rule}",
    ]
    assert flat(f"\t\t{hook}{between}{rule}\n") == [
        f"add chain inet meshagent a {{ {hook} }}",
        f"add rule inet meshagent a {rule}",
    ]


def test_nothing_in_a_chain_becomes_a_command_of_its_own() -> None:
    lines = flat("\t\taccept; flush ruleset\n\t\ttype filter hook output priority 0; delete table ip x;\n")
    assert all(line.startswith(("add chain inet meshagent a", "add rule inet meshagent a ")) for line in lines)
    assert not any(";" in line for line in lines if line.startswith("add rule")), "nft would begin a new command there"


@pytest.mark.parametrize("kind", ["set", "map"])
def test_a_block_whose_braces_close_too_early_is_no_command(kind: str) -> None:
    early = f"\t{kind} a {{\n\t\ttype inet_service\n\t\t}}\n\t\tflush ruleset\n\t\t{kind} b {{\n\t}}\n"
    candidate = f"table inet meshagent {{\n{early}}}\n"
    text.require_table(candidate, "meshagent")
    with pytest.raises(RequestError, match=f"braces of {kind} a"):
        text.commands(candidate, "meshagent")
