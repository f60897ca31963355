"""The ``meshagent`` command: thin. main.py names the commands, one module per group, render.py draws.

Commands talk to the daemon through its control socket and to the hub through its admin socket; nothing here decides.
"""
