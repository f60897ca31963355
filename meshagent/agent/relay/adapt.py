"""What a stock Envoy must not see: the seam between a control plane's dialect and the proxy that runs here.

The hub writes for stock Envoy, so its resources pass untouched. A control plane that uses extensions of its own proxy
gets an ``Adapter`` of its own here; versions stay the control plane's, so ACKs need no translation.
"""

from collections.abc import Callable

from meshagent.protocol.entry import Entry

#: type URL, resource name, entry -> the entry to serve.
Adapter = Callable[[str, str, Entry], Entry]


def identity(type_url: str, name: str, entry: Entry) -> Entry:
    """The hub's dialect: nothing to adapt."""
    del type_url, name
    return entry
