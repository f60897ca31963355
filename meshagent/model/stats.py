"""What the proxy's listeners and filters count under: named by the control plane, picked by the proxy's bootstrap.

Envoy (1.40.0) makes 100 numbers for each service unless told not to: with 1,000 services a third of what its start
costs. So listeners and filters of services share a name, of which few numbers are kept. What a service was used for is
told by its endpoints, which have numbers of their own (``agent/envoy/upstreams.py``).
"""

#: Listeners and filters that take what leaves this host.
OUTBOUND = "outbound"
#: Those that take what comes in.
INBOUND = "inbound"
#: Of a port that is sorted: what became of a connection. The port follows behind a dot.
INBOUND_PLAIN, INBOUND_MUTUAL_TLS, INBOUND_REFUSED = "inbound_plain", "inbound_mutual_tls", "inbound_refused"
SORTED = (INBOUND_PLAIN, INBOUND_MUTUAL_TLS, INBOUND_REFUSED)
