"""The hub's own TLS context: a fresh certificate at each start and again at half its life. Its key is never on disk.

New connections take the newest context; open ones keep theirs.
"""

import asyncio
import ssl
from datetime import datetime

import structlog

from meshagent.hub.authority.roots import TrustRoots, issue_hub_certificate
from meshagent.runtime.clock import Clock
from meshagent.transport.listener import server_context

log = structlog.get_logger()

#: The wall clock is looked at this often, so that a clock that jumped doesn't leave an expired certificate in place.
CHECK_SECONDS = 600.0


class HubTls:
    """``context`` is what the next connection gets; ``run`` keeps it fresh until cancelled."""

    def __init__(self, roots: TrustRoots, trust_domain: str, clock: Clock) -> None:
        self._roots = roots
        self._trust_domain = trust_domain
        self._clock = clock
        self._renew_at, self.context = self._fresh()

    def _fresh(self) -> tuple[datetime, ssl.SSLContext]:
        made = issue_hub_certificate(self._roots, self._trust_domain, self._clock.now())
        context = server_context(chain_pem=made.chain_pem, key_pem=made.key_pem, roots_pem=self._roots.bundle_pem)
        return made.not_before + (made.not_after - made.not_before) / 2, context

    def renew_if_due(self) -> bool:
        """True when there is a new certificate; a failure keeps the old one, and raises."""
        if self._clock.now() < self._renew_at:
            return False
        self._renew_at, self.context = self._fresh()
        log.info("hub-certificate-renewed", renew_at=self._renew_at.isoformat())
        return True

    async def run(self) -> None:
        """Renew in time."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self.renew_if_due()
