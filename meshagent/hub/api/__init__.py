"""The hub's doors beside discovery: announcement streams of hosts (``announce.py``), and the local socket of
administrators (``admin.py``: tokens, hosts, audit; ``resources.py``: apply, get, delete, validate).
"""
