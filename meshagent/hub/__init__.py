"""The embedded control plane: CA, registry, resources, ADS. Comes in: announcements and resources; goes out: what each
host's Envoy runs. Read ``state.py`` (what a mesh is) and ``app.py`` (the start and the stop) first.
"""
