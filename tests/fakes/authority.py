"""A certificate authority as a hub has one: root with trust domain, hub leaf, workload leaves. Real certificates."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshagent.model.identity import Identity, SpiffeId

DAY = timedelta(days=1)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, none)


@dataclass
class Authority:
    """``ca=False`` and the like make the broken ones that tests need; ``valid_from``/``valid_for`` shift validity."""

    trust_domain: str = "mesh.internal"
    ca: bool = True
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mesh root")])
        self.root = self._certificate(
            self.key, name, [x509.UniformResourceIdentifier(f"spiffe://{self.trust_domain}")], ca=self.ca
        )
        self.root_pem = self.root.public_bytes(serialization.Encoding.PEM).decode()

    def hub(self, name: str = "", valid_from: timedelta = -DAY, valid_for: timedelta = 2 * DAY) -> tuple[str, bytes]:
        """(chain PEM with the root last, key PEM) of the hub's TLS server."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(name or f"hub.{self.trust_domain}")]
        leaf = self._certificate(key, x509.Name([]), names, valid_from=valid_from, valid_for=valid_for)
        return leaf.public_bytes(serialization.Encoding.PEM).decode() + self.root_pem, _pem(key)

    def identity(
        self,
        account: str = "web",
        serial: int | None = None,
        valid_from: timedelta = -DAY,
        valid_for: timedelta = 2 * DAY,
    ) -> Identity:
        """A workload's identity."""
        key = ec.generate_private_key(ec.SECP256R1())
        spiffe_id = SpiffeId(self.trust_domain, "default", account)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(spiffe_id))]
        leaf = self._certificate(key, x509.Name([]), names, serial=serial, valid_from=valid_from, valid_for=valid_for)
        return Identity(
            spiffe_id=spiffe_id,
            serial=f"{leaf.serial_number:x}",
            not_before=leaf.not_valid_before_utc,
            not_after=leaf.not_valid_after_utc,
            chain_pem=leaf.public_bytes(serialization.Encoding.PEM).decode(),
            bundle_pem=self.root_pem,
            key_pem=_pem(key),
        )

    def _certificate(
        self,
        key: ec.EllipticCurvePrivateKey,
        subject: x509.Name,
        names: list[x509.GeneralName] | list[x509.UniformResourceIdentifier],
        *,
        ca: bool | None = None,
        serial: int | None = None,
        valid_from: timedelta = -DAY,
        valid_for: timedelta = 2 * DAY,
    ) -> x509.Certificate:
        start = datetime.now(UTC) + valid_from
        root = ca is not None
        usage = x509.KeyUsage(not root, False, False, False, False, bool(ca), bool(ca), False, False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if root else self.root.subject)
            .public_key(key.public_key())
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + valid_for)
            .add_extension(x509.BasicConstraints(bool(ca), None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=not root and not list(subject))
        )
        # key identifiers as RFC 5280 section 4.2.1.1 wants them; Python 3.13 refuses certificates without
        own = self.key.public_key()
        if root:
            builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(own), critical=False)
        else:
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(own)
            builder = builder.add_extension(issuer, critical=False)
            both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        return builder.sign(self.key, hashes.SHA256())
