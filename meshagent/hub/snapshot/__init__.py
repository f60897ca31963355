"""What one host's Envoy, resolver and kernel rules are told: resources built from the mesh's state; pure.

In: ``hub.state.MeshState`` and a host's name. Out: a ``protocol.entry.Snapshot`` (type -> name -> version and bytes).
A resource that is the same for many hosts is built and serialised once and shared. Read build.py first, then
listeners.py (client side) and routes.py (server side); view.py says what of the mesh concerns one host.
"""
