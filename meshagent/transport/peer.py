"""Who is at the other end of a gRPC call, as handlers see it; knows nothing of how the connection was made."""

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

# ``cryptography`` (25 ms of modules) is imported where a certificate is read: an agent's own servers see none.
if TYPE_CHECKING:
    from datetime import datetime

    from cryptography import x509

_LOCAL = "unix"


@dataclass(frozen=True)
class Peer:
    """Who is at the other end. ``certificate`` is DER and verified against the front's roots, None = none shown."""

    address: str
    certificate: bytes | None = None

    @classmethod
    def local(cls) -> "Peer":
        """A process of this host on a Unix socket."""
        return cls(_LOCAL)

    @functools.cached_property
    def _parsed(self) -> "x509.Certificate | None":
        from cryptography import x509

        return x509.load_der_x509_certificate(self.certificate) if self.certificate else None

    @property
    def serial(self) -> str:
        """The certificate's serial number, lower-case hex without leading zeros; '' without a certificate."""
        return f"{self._parsed.serial_number:x}" if self._parsed else ""

    @property
    def not_after(self) -> "datetime | None":
        """When the certificate expires; None without one. Raises ``ValueError`` for one that can't be read."""
        return self._parsed.not_valid_after_utc if self._parsed else None

    @property
    def certificate_pem(self) -> str:
        """The certificate as PEM; '' without one."""
        from cryptography.hazmat.primitives.serialization import Encoding

        return self._parsed.public_bytes(Encoding.PEM).decode() if self._parsed else ""

    @property
    def uris(self) -> tuple[str, ...]:
        """URI SANs (SPIFFE IDs)."""
        if self._parsed is None:
            return ()
        from cryptography import x509

        with contextlib.suppress(x509.ExtensionNotFound, ValueError):
            names = self._parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            return tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
        return ()
