"""Between the control plane and Envoy: one session upstream, one ADS server on a Unix socket, and a memory on disk.

In: responses of the control plane (``Relay.offer``). Out: Envoy's verdict on each, the names to ask for next, and
``Latest`` values for the parts of the agent that follow the same configuration (``taps``). Read ``ledger.py`` for
what is served when something is refused, then ``relay.py``.
"""
