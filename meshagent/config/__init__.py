"""Files an operator writes -> frozen settings; every mistake reported at once, with file, line, path and remedy.

In: ``agent.yaml`` and ``services.d/*.yaml``. Out: ``AgentConfig`` and ``DeclaredService`` values, or ``ConfigError``
with all problems. ``read.py`` turns files into trees of plain values with line numbers, ``load.py`` and
``services.py`` check trees against what is allowed, ``child.py`` and ``follow.py`` do it for the daemon, ``edit.py``
changes files and keeps every comment. Read settings.py first.

Measured (Python 3.11, x86-64): pydantic costs 21 MB RSS and 110 ms, the checks here less than 1 MB, so it isn't used.
ruamel.yaml costs 4 MB alone and 1 MB that stays beside what the daemon holds anyway; a YAML parser run on a text
nobody has vetted doesn't belong in a root daemon, so a short-lived child (45 ms, limited memory and CPU) makes the
tree and the daemon only checks it. Without files no child is started.
"""
