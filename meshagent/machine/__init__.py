"""The only package that touches this machine: programs, files, sockets, addresses, users, long-lived processes.

In: arguments (paths, addresses, process ids). Out: frozen facts, or a ``MeshagentError`` with a hint. Nothing here
knows what a mesh is. Read process.py first (the only way to run a program), then files.py and services.py.
"""
