"""The administrators' socket: a table of methods over the store, the registry and the CA.

Who may connect is the socket's file mode (root and group ``meshagent``) and the server's check of the caller.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from meshagent.hub.api import shapes
from meshagent.hub.api.params import Params
from meshagent.hub.api.resources import Outcome, Resources
from meshagent.hub.authority import tokens
from meshagent.hub.authority.enrolment import Signer, end_host
from meshagent.hub.authority.issue import serial_hex
from meshagent.hub.registry.registry import Registry
from meshagent.hub.resources.checked import Problem, SourceText
from meshagent.hub.store.interface import Store, Transaction
from meshagent.hub.store.rows import AuditRow, HostRow, HostStatus
from meshagent.model.condition import Condition
from meshagent.model.errors import MeshagentError
from meshagent.runtime.clock import Clock
from meshagent.runtime.latest import Latest
from meshagent.transport.local_server import Method, caller


@dataclass(frozen=True, slots=True)
class Admin:
    """``advertise`` is the ``HOST:PORT`` that join lines carry, ``listen`` where the TLS port really is.

    ``refused_by`` tells what a host's Envoy or agent refuses to take now, by the host's name.
    """

    store: Store
    clock: Clock
    registry: Registry
    signer: Signer
    resources: Resources
    refused_by: Callable[[str], Iterable[shapes.Refused]]
    conditions: Latest[tuple[Condition, ...]]
    advertise: str
    listen: tuple[str, ...]
    version: str

    def methods(self) -> dict[str, Method]:
        """Method name -> handler, for ``transport.local_server``."""
        return {
            "status": self.status,
            "token.create": self.token_create,
            "token.list": self.token_list,
            "token.revoke": self.token_revoke,
            "resource.apply": self.resource_apply,
            "resource.validate": self.resource_validate,
            "resource.get": self.resource_get,
            "resource.delete": self.resource_delete,
            "hosts": self.hosts,
            "host.revoke": self.host_revoke,
            "services": self.services,
            "audit": self.audit,
            "ca.status": self.ca_status,
        }

    async def status(self, given: dict[str, Any]) -> dict[str, Any]:
        """Who gets an answer at all knows that the hub can serve: its socket opens last."""
        Params(given).end()
        state = self.registry.state.value
        return {
            "ready": True,
            "version": self.version,
            "advertise": self.advertise,
            "listen": list(self.listen),
            "trust_domain": state.trust_domain,
            "zone": state.zone,
            "root_namespace": state.root_namespace,
            "hosts": len(state.hosts),
            "connected": sum(host.connected for host in state.hosts),
            "services": len(state.services),
            "conditions": [shapes.condition(each) for each in self.conditions.value],
        }

    # --- tokens

    async def token_create(self, given: dict[str, Any]) -> dict[str, Any]:
        """``ttl`` in seconds; answers the token itself, once."""
        params = Params(given)
        ask = tokens.TokenAsk(
            service_account=params.text("service_account", None),
            namespace=params.text("namespace", "default"),
            uses=params.integer("uses", 1),
            ttl=timedelta(seconds=params.seconds("ttl", 3600)),
            host=params.text("host"),
            cidrs=params.texts("cidr") or (),
            services=params.texts("services") or None,
            replace=params.flag("replace"),
        )
        params.end()
        row, token = tokens.new_token(ask, self.signer.roots.ca_hash, self.signer.trust_domain, self.clock.now())
        entry = self._audit("token-create", row.id, f"{row.namespace}/{row.service_account}")

        def work(tx: Transaction) -> None:
            tx.put_token(row)
            tx.add_audit(entry)

        await self.store.transact(work)
        text = token.reveal()
        return {
            "id": row.id,
            "token": text,
            "command": f"meshagent enroll {self.advertise} {text}",
            "expires_at": shapes.time_text(row.expires),
            "uses": row.uses,
        }

    async def token_list(self, given: dict[str, Any]) -> dict[str, Any]:
        Params(given).end()
        pairs = await self.store.read(lambda tx: [(row, tx.token_uses(row.id)) for row in tx.tokens()])
        now = self.clock.now()
        return {"tokens": [shapes.token(row, uses, now) for row, uses in pairs]}

    async def token_revoke(self, given: dict[str, Any]) -> dict[str, Any]:
        params = Params(given)
        token_id = params.text("id", None)
        params.end()
        now, entry = self.clock.now(), self._audit("token-revoke", token_id)

        def work(tx: Transaction) -> bool:
            tx.add_audit(entry)
            return tokens.revoke(tx, token_id, now)

        if not await self.store.transact(work):
            raise MeshagentError("not-found", f"there is no token {token_id}", hint="see: meshagent hub token list")
        return {"id": token_id, "revoked": True}

    # --- resources

    async def resource_apply(self, given: dict[str, Any]) -> dict[str, Any]:
        params = Params(given)
        source = SourceText(params.text("name", "-"), params.document("text"))
        namespace = params.text("namespace", "default")
        params.end()
        report, outcomes = await self.resources.apply([source], namespace)
        await self._record("apply", f"{len(outcomes)} resources")
        return {"applied": [_outcome(o) for o in outcomes], "warnings": [str(w) for w in report.warnings]}

    async def resource_validate(self, given: dict[str, Any]) -> dict[str, Any]:
        """Errors are an answer here, not a failure."""
        params = Params(given)
        source = SourceText(params.text("name", "-"), params.document("text"))
        namespace = params.text("namespace", "default")
        params.end()
        report = await self.resources.validate([source], namespace)
        return {
            "valid": not report.errors,
            "resources": len(report.resources),
            "errors": [_problem(e) for e in report.errors],
            "warnings": [str(w) for w in report.warnings],
        }

    async def resource_get(self, given: dict[str, Any]) -> dict[str, Any]:
        params = Params(given)
        kind, namespace, name = params.text("kind", None), params.text("namespace"), params.text("name")
        params.end()
        return {"resources": await self.resources.get(kind, namespace, name)}

    async def resource_delete(self, given: dict[str, Any]) -> dict[str, Any]:
        params = Params(given)
        kind, namespace, name = (
            params.text("kind", None),
            params.text("namespace", "default"),
            params.text("name", None),
        )
        params.end()
        outcome = await self.resources.delete(kind, namespace, name)
        await self._record("delete", f"{outcome.kind} {namespace}/{name}")
        return _outcome(outcome)

    # --- hosts, services, the rest

    async def hosts(self, given: dict[str, Any]) -> dict[str, Any]:
        Params(given).end()
        domain, now = self.signer.trust_domain, self.clock.now()
        rows = [shapes.host(live, domain, now, self.refused_by(live.row.name)) for live in self.registry.hosts()]
        return {"hosts": rows}

    async def host_revoke(self, given: dict[str, Any]) -> dict[str, Any]:
        """The host's certificates are worth nothing here from now on, its endpoints go, its name is free."""
        params = Params(given)
        name = params.text("name", None)
        params.end()
        entry = self._audit("host-revoke", name)

        def work(tx: Transaction) -> HostRow | None:
            tx.add_audit(entry)
            return end_host(tx, name, HostStatus.REVOKED)

        ended = await self.store.transact(work)
        if ended is None:
            raise MeshagentError("not-found", f"there is no host {name}", hint="see: meshagent hub hosts")
        self.registry.ended(ended.id, "revoked")
        return {"name": name, "revoked": True}

    async def services(self, given: dict[str, Any]) -> dict[str, Any]:
        Params(given).end()
        return {"services": [shapes.service(service) for service in self.registry.state.value.services]}

    async def audit(self, given: dict[str, Any]) -> dict[str, Any]:
        """Newest first."""
        params = Params(given)
        limit = max(1, min(params.integer("limit", 100), 10_000))
        params.end()
        rows = await self.store.read(lambda tx: tx.audit(limit))
        return {"audit": [shapes.audit(row) for row in rows]}

    async def ca_status(self, given: dict[str, Any]) -> dict[str, Any]:
        Params(given).end()
        root = self.signer.roots.active.certificate
        return {
            "trust_domain": self.signer.trust_domain,
            "ca_hash": self.signer.roots.ca_hash,
            "serial": serial_hex(root.serial_number),
            "not_before": shapes.time_text(root.not_valid_before_utc),
            "not_after": shapes.time_text(root.not_valid_after_utc),
            "certificate": self.signer.roots.active.pem,
        }

    def _audit(self, action: str, subject: str, detail: str = "") -> AuditRow:
        who = caller.get(None)
        source = f"uid {who.uid} pid {who.pid}" if who else "local"
        return AuditRow(self.clock.now(), action, "ok", subject, source, detail)

    async def _record(self, action: str, subject: str) -> None:
        row = self._audit(action, subject)
        await self.store.transact(lambda tx: tx.add_audit(row))


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "kind": outcome.kind,
        "namespace": outcome.namespace,
        "name": outcome.name,
        "action": outcome.action,
    }


def _problem(problem: Problem) -> dict[str, Any]:
    return {"file": problem.file, "line": problem.line, "field": problem.field, "message": problem.message}
