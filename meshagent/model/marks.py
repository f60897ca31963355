"""Numbers by which our packets, routes and rules are told from everybody else's.

0x6d61 is "ma". One place, because kernel rules, the proxy's listeners and ip rules must agree.
"""

#: SO_MARK of the agent's own DNS forwarding and probes (the agent is root: exempting its uid would exempt every
#: root program).
AGENT_MARK = 0x6D610002

#: Mark of the proxy's upstream sockets that carry a remote client's source address (Envoy original_src.mark),
#: saved as ct mark so that the application's answers come back to the proxy.
CLIENT_SOURCE_MARK = 0x6D610001

#: SO_MARK of all other upstream sockets of the proxy (set in its bootstrap). The conntrack zone goes by mark, not uid:
#: once Envoy has closed a socket, what still waits in its send buffer has no owner, `meta skuid` no longer matches,
#: the packet looks new in the wrong zone and is dropped (measured: 113 KB of 1.5 MB arrived); the mark stays.
PROXY_MARK = 0x6D610003

#: Mark of answers to such sockets that come in from outside: those of a container whose port is published here. Not
#: CLIENT_SOURCE_MARK, because a rule for packets of this host's own must not hold for them, see ROUTE_TABLE.
PUBLISHED_MARK = 0x6D610004

#: ip rule fwmark CLIENT_SOURCE_MARK or PUBLISHED_MARK -> this table, which holds 'local default dev lo' for each
#: family. Where marks count in the reverse-path filter (IPv4, src_valid_mark 1) the kernel asks the same rules for the
#: way back to the container, as for a packet of its own (iif lo), and "here" would mean that its source is forged: so a
#: rule before ours leads that question to the main table.
ROUTE_TABLE = 28001
RULE_PRIORITY = 28001

#: rtm_protocol of every route and rule of ours (/etc/iproute2/rt_protos leaves 64..185 mostly unused).
ROUTE_PROTOCOL = 109

#: Conntrack zones: the proxy's own packets (stale entries of captured connections must not catch them),
#: and the agent's own DNS queries to the real resolvers.
PROXY_ZONE = 28001
DNS_ZONE = 28002
#: Captured UDP queries have a zone of their own too: an open flow of a long-lived resolver is captured at once when
#: capture goes on, and is free at once when it goes off, without touching conntrack entries.
DNS_CAPTURED_ZONE = 28003

#: Name of the rule tables, the route for virtual addresses goes over lo.
TABLE = "meshagent"
ANCHOR_TABLE = "meshagent_anchor"
#: Beside a rule table that nobody owns: owned by the guard, so that a flush takes neither NAT nor the way back along.
HOLD_TABLE = "meshagent_hold"

#: Legacy iptables has no tables of one's own: our chains are told by their names, in upper case there.
CHAIN_PREFIX = "MESHAGENT_"
