"""gRPC over TLS or Unix sockets, and the small local protocol of the command line; no domain decisions.

Agent side: tls.py (look at a hub before trusting it) and channel.py (then talk to it). Hub side: listener.py (the TLS
front that asks for an optional client certificate), grpc_server.py, ads_server.py (also the agent's relay).
methods.py lists every method path with its messages. local.py / local_server.py: JSON lines over a Unix socket;
the client imports nothing but the standard library, so that ``meshagent status`` starts quickly.
"""
