"""Frozen values and Protocols that the parts share; no I/O, no asyncio. Read address.py and identity.py first."""
