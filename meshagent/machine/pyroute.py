"""The three things we use of pyroute2, without the rest of it.

``import pyroute2`` loads everything the library can do (databases of links, IPVS, wireless): 13.6 MB. Loaded one by one
from a package whose ``__init__`` was not run, what we use takes 7.1 MB (pyroute2 0.9.7, Python 3.11). The daemon's
memory is budgeted. Import where it is used: most commands need none of it.
"""

import importlib.util
import sys
import types
from typing import Any


def iproute() -> Any:
    """The class ``IPRoute``: addresses, links, routes and rules."""
    _prepare()
    from pyroute2.iproute.linux import IPRoute

    return IPRoute


def diag_socket() -> Any:
    """The class ``DiagSocket``: sockets as the kernel lists them (sock_diag(7))."""
    _prepare()
    from pyroute2.netlink.diag import DiagSocket

    return DiagSocket


def netlink_error() -> Any:
    """The class ``NetlinkError``: the kernel said no; ``args`` are errno and text."""
    _prepare()
    from pyroute2.netlink.exceptions import NetlinkError

    return NetlinkError


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
