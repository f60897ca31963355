"""Who is there and what they serve: announcements in, one ``MeshState`` out.

``announced.py`` what a host says, ``admission.py`` which of it is accepted, ``leases.py`` who is gone, ``virtual.py``
addresses, ``assemble.py`` the mesh from all that and the resources (all pure); ``registry.py`` holds it, with
``live.py`` (streams and hosts) and ``publishing.py`` (when the mesh is built anew).
"""
