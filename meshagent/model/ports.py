"""Well-known ports of the mesh; Istio's numbers, so that firewalls and habits carry over."""

OUTBOUND = 15001
INBOUND = 15006
BRIDGED = 15002  # not Istio's: containers come in here
HBONE = 15008
CONTROL_PLANE = 15012
METRICS = 15020
DNS = 15053
PROXY_METRICS = 15090
HUB_HTTP = 15080

#: Ports on which only our own proxy or agent listens on this host; direct hits from others are refused.
OWN_LOCAL_PORTS = (OUTBOUND, INBOUND, DNS, PROXY_METRICS)
