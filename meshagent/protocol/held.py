"""What one client has of one type: name -> version, most of it shared with all clients that have the same."""

from collections.abc import Mapping, Set

#: The client was told that this name does not exist. No content hash is empty.
ABSENT = ""

#: So many names of a client's own are worth a look whether it has what others have.
_MANY = 64


class Held:
    """A layer of its own above a shared one. A thousand clients with a thousand resources of a type would keep and
    compare a million versions: where all have the same it is one map, and the comparison one of identity."""

    __slots__ = ("_gone", "_own", "_shared")

    def __init__(self, shared: Mapping[str, str] | None = None) -> None:
        self._shared: Mapping[str, str] = {} if shared is None else shared
        self._own: dict[str, str] = {}
        self._gone: set[str] = set()  # in the shared layer, but not here

    def get(self, name: str) -> str | None:
        """The version held, ``ABSENT``, or None: nothing was said of the name."""
        found = self._own.get(name)
        if found is None and name not in self._gone:
            return self._shared.get(name)
        return found

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def put(self, versions: Mapping[str, str]) -> None:
        """These are held now."""
        self._own.update(versions)

    def drop(self, name: str) -> str | None:
        """Forget the name; what was held."""
        found = self.get(name)
        self._own.pop(name, None)
        if name in self._shared:
            self._gone.add(name)
        return found

    def names(self) -> Set[str]:
        """Names of which something was said; not to be changed while iterating."""
        if not self._own and not self._gone:
            return self._shared.keys()
        return (self._shared.keys() - self._gone) | self._own.keys()

    def equals(self, versions: Mapping[str, str]) -> bool:
        """Exactly these are held; then they are the shared layer from now on."""
        if not self._own and not self._gone:
            if self._shared is not versions and self._shared != versions:
                return False
        elif self.names() != versions.keys() or any(self.get(n) != v for n, v in versions.items()):
            return False
        self.share(versions)
        return True

    def share(self, versions: Mapping[str, str]) -> None:
        """Known to be exactly these."""
        self._shared, self._own, self._gone = versions, {}, set()

    @property
    def wide(self) -> bool:
        """Much of it is this client's own."""
        return len(self._own) + len(self._gone) > _MANY
