"""Istio-shaped resources: ServiceEntry, WorkloadEntry, PeerAuthentication. YAML in, validated values out; all pure.

``yamltext.py`` reads YAML with line numbers and bounds, ``schema.py`` says which fields there are, ``validate.py``
finds every error and warning of a set of files, ``views.py`` turns the kept JSON into what the registry uses, and
``precedence.py`` decides between PeerAuthentications. The first three import pydantic and ruamel.yaml (15 MB): the hub
runs them in a short-lived child (``python -m meshagent.hub.resources``) and itself only reads kept JSON.
"""
