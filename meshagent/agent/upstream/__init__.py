"""The host's connections to its control plane: the ADS session, the CSR client, the announcement stream.

In: where the control plane is, who we are (``Latest[Identity]``), what to announce. Out: configuration for the relay,
certificates for the rotator, results of announcements. Read ``session.py`` first; ``dial.py`` is where sockets are.
"""
