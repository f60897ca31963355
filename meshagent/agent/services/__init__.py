"""What this host offers the mesh: declared in services.d, located on the machine, checked, announced.

In: ``services.d/*.yaml``, the listening sockets, the host's addresses. Out: one ``Announced`` value for the control
plane, and health for ``status``. ``declared.py`` follows the files, ``target.py`` decides where a process is reached,
``locate.py`` keeps that up to date, ``check.py`` is one check, ``hysteresis.py`` what a row of checks means,
``probe.py`` runs them, ``announce.py`` puts it together. Read announce.py first.
"""
