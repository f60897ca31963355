"""A whole mesh on this machine, told and checked: real Envoy, nginx, Redis and MariaDB on hosts that are namespaces.

story.py tells it; one module per step; world.py is the stage. Everything is driven through the command line, as a
person would; a step fails by raising, with the evidence in the message.
"""
