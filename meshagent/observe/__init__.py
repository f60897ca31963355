"""What the daemons say of themselves: log lines (log.py) and counters (metrics.py)."""
