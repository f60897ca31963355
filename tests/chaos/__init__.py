"""``make chaos``: every fault we know of, one after another, in a mesh under load, and a table of what its users saw.

``stage.py`` builds the mesh, ``faults.py`` names the faults and what each may cost, ``run.py`` injects them in an order
that the seed decides, ``table.py`` shows what came of it. Start reading at ``run.py``.
"""
