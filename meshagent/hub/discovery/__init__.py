"""ADS of the hub: who may have which host's snapshot, one change fanned out to many streams, what clients refused.

Comes in: the registry's ``Latest[MeshState]`` and streams of ``transport.ads_server``; goes out: snapshots. Read
server.py first (one stream), then fanout.py (all of them).
"""
