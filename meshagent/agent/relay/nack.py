"""Which resources Envoy's refusal means.

Envoy answers one error text for a whole response. Clusters and listeners are applied one by one and the bad ones
named (``Error adding/updating cluster(s) a: why, b: why``; ``Error adding/updating listener(s) a: why``), the rest of
that response is in use. Any other refusal (a message that fails validation, a bad route or endpoint set) stops in the
middle: nobody knows what was applied, so what is not to blame has to be sent again.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from meshagent.protocol.types import CDS, LDS

_PREFIX = {CDS: "Error adding/updating cluster(s) ", LDS: "Error adding/updating listener(s) "}

#: A reason is shown to people and sent upstream; Envoy's may quote a whole resource.
MAX_REASON = 500

_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Blame:
    """``bad``: names Envoy refused. ``applied``: the others of the response are known to be in use."""

    bad: frozenset[str]
    applied: bool
    reason: str


def blame(type_url: str, error: str, suspects: Collection[str]) -> Blame:
    """Judge ``suspects`` (names of the refused response that were new to Envoy) by Envoy's text."""
    reason = _CONTROL.sub(" ", error).strip()[:MAX_REASON] or "refused without a reason"
    if len(suspects) == 1:
        return Blame(frozenset(suspects), applied=True, reason=reason)
    prefix = _PREFIX.get(type_url)
    if prefix is not None and prefix in error:
        found = _named(error.partition(prefix)[2], suspects, follow=":")
        return Blame(found, applied=bool(found), reason=reason)
    return Blame(_named(error, suspects, follow=""), applied=False, reason=reason)


def is_port_taken(reason: str) -> bool:
    """Envoy could not bind a listener: nothing is wrong with the configuration (EADDRINUSE, as strerror(3) says it)."""
    return "cannot bind" in reason and "Address already in use" in reason


def _named(text: str, suspects: Collection[str], follow: str) -> frozenset[str]:
    """Names that occur as whole words, where needed followed by a colon; ``a.b`` is not found in ``a.b.c``."""
    return frozenset(
        name
        for name in suspects
        if name in text and re.search(rf"(?<![\w.|-]){re.escape(name)}(?![\w.|-]){follow}", text)
    )
