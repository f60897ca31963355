"""Names of the mesh, answered on this host; everything else is passed on untouched.

In: the control plane's name table, the host's namespace and zone, resolv.conf. Out: DNS answers on 127.0.0.1 and ::1,
UDP and TCP, port 15053 (queries for port 53 are brought there by capture). ``table.py`` makes an index of what to
answer, ``answer.py`` turns one query into one reply or says "forward", ``server.py`` holds the sockets,
``forward.py`` (UDP) and ``stream.py`` (TCP) talk to the real nameservers, ``resolver.py`` knows which those are.
Read answer.py first. Terms are those of RFC 1035 and RFC 8499.
"""
