"""What we use of pyroute2, to change routes and rules, without the rest of it.

``import pyroute2`` loads everything the library can do (databases of links, IPVS, wireless): 13.6 MB. Loaded one by one
from a package whose ``__init__`` was not run, what we use takes 7.1 MB (pyroute2 0.9.7, Python 3.11), so it is imported
where it is used: most commands, and an agent without routes of its own, need none of it. Two modules that it names at
import and that nothing of ours reaches (``ssl`` for its probes, ``unittest.mock`` for its tests) get a stand-in.
"""

import contextlib
import importlib.util
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

_importing = threading.Lock()


def iproute() -> Any:
    """The class ``IPRoute``: addresses, links, routes and rules."""
    with _prepared():
        from pyroute2.iproute.linux import IPRoute

    return IPRoute


def netlink_error() -> Any:
    """The class ``NetlinkError``: the kernel said no; ``args`` are errno and text."""
    with _prepared():
        from pyroute2.netlink.exceptions import NetlinkError

    return NetlinkError


@contextlib.contextmanager
def _prepared() -> Iterator[None]:
    with _importing:
        _prepare()
        added = [name for name in ("ssl", "unittest", "unittest.mock") if sys.modules.get(name) is None]
        before = {name: sys.modules.get(name, added) for name in added}
        if added:
            sys.modules.update(_stand_ins(added))
        try:
            yield
        finally:
            for name, module in before.items():
                if module is added:
                    del sys.modules[name]
                else:
                    sys.modules[name] = module  # type: ignore[assignment]  # None: may not be imported here


def _stand_ins(names: list[str]) -> dict[str, types.ModuleType]:
    found = {name: types.ModuleType(name) for name in names}
    mock = found.get("unittest.mock")
    if mock is not None:
        mock.Mock = object  # type: ignore[attr-defined]  # made once, as the value of a class attribute
        found.get("unittest", sys.modules.get("unittest")).mock = mock  # type: ignore[union-attr]
    return found


def _prepare() -> None:
    """Stand in for the package, unless somebody has imported all of it already."""
    if "pyroute2" in sys.modules:
        return
    spec = importlib.util.find_spec("pyroute2")
    if spec is None or spec.submodule_search_locations is None:
        return  # the import that follows says that it is missing
    package = types.ModuleType("pyroute2")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    sys.modules.setdefault("pyroute2", package)
