"""The host's Envoy: its bootstrap, the process that outlives the agent, and its admin interface.

In: a binary, a node, the sockets of the relay and of SDS. Out: ``Latest[ProxyState]``. Read ``bootstrap.py`` for what
Envoy is told, ``epochs.py`` for adopt-or-start, ``process.py`` for the supervisor.
"""
