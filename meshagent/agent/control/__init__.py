"""The command line's socket of the agent: methods.py answers, status.py and peers.py put answers together (pure)."""
