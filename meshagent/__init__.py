"""meshagent puts a legacy Linux host in a service mesh with one command, and takes it out again without a trace."""

__version__ = "0.1.0"
