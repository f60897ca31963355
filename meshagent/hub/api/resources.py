"""``hub apply``, ``get``, ``delete``, ``validate``: validated in a child, kept in one transaction, then in force.

An apply is all or nothing: with one error in a thousand documents nothing changes. Applies and deletes run one at a
time, so what is in force is always what the database says.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from meshagent.hub.registry.registry import Registry
from meshagent.hub.resources.checked import Checked, Report, SourceText, report_from_json
from meshagent.hub.resources.views import views_of
from meshagent.hub.resources.yamlwrite import to_yaml
from meshagent.hub.store.interface import Store, Transaction
from meshagent.hub.store.rows import ResourceRow
from meshagent.machine.process import ProgramError, run_async
from meshagent.model.errors import MeshagentError, UsageError
from meshagent.runtime.clock import Clock

#: As people may write a kind: in full, plural, Istio's short names.
KIND_NAMES = {
    alias: kind
    for kind, aliases in {
        "ServiceEntry": ("serviceentry", "serviceentries", "se"),
        "WorkloadEntry": ("workloadentry", "workloadentries", "we"),
        "PeerAuthentication": ("peerauthentication", "peerauthentications", "pa"),
    }.items()
    for alias in aliases
}
_VALIDATE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an apply did with one resource: ``created``, ``changed``, ``unchanged`` or ``deleted``."""

    kind: str
    namespace: str
    name: str
    action: str


@dataclass(frozen=True, slots=True)
class Resources:
    """The applied resources of one hub."""

    store: Store
    clock: Clock
    registry: Registry
    root_namespace: str
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def validate(self, sources: Sequence[SourceText], namespace: str) -> Report:
        """Every error and warning of ``sources``; raises ``MeshagentError`` only when it can't be found out."""
        request = {
            "files": [{"name": source.name, "text": source.text} for source in sources],
            "namespace": namespace,
            "root_namespace": self.root_namespace,
        }
        try:
            # -P: whatever lies in the working directory is not imported
            argv = [sys.executable, "-P", "-m", "meshagent.hub.resources"]
            done = await run_async(argv, input=json.dumps(request), timeout=_VALIDATE_SECONDS, limit=64 << 20)
        except ProgramError as error:
            hint = "split the files into smaller ones"
            raise MeshagentError("validation-failed", "the files could not be validated", hint=hint) from error
        return report_from_json(json.loads(done.stdout))

    async def apply(self, sources: Sequence[SourceText], namespace: str) -> tuple[Report, tuple[Outcome, ...]]:
        """Put all of ``sources`` in force. With errors nothing changes: raises ``UsageError``."""
        report = await self.validate(sources, namespace)
        if report.errors:
            raise report.error()
        async with self._one_at_a_time:
            outcomes = await self.store.transact(lambda tx: tuple(self._keep(tx, item) for item in report.resources))
            await self.load()
        return report, outcomes

    def _keep(self, tx: Transaction, item: Checked) -> Outcome:
        now = self.clock.now()
        known = tx.resource(item.kind, item.namespace, item.name)
        spec, labels = _json(item.spec), _json(item.labels)
        if known and (known.spec, known.labels, known.api_version) == (spec, labels, item.api_version):
            return Outcome(item.kind, item.namespace, item.name, "unchanged")
        version, created = (known.version + 1, known.created) if known else (1, now)
        tx.put_resource(
            ResourceRow(item.kind, item.namespace, item.name, item.api_version, spec, labels, version, created, now)
        )
        return Outcome(item.kind, item.namespace, item.name, "changed" if known else "created")

    async def delete(self, kind: str, namespace: str, name: str) -> Outcome:
        """Take one resource out of force; raises ``MeshagentError`` (``not-found``)."""
        kind = kind_of(kind)
        async with self._one_at_a_time:
            if not await self.store.transact(lambda tx: tx.drop_resource(kind, namespace, name)):
                raise not_found(kind, namespace, name)
            await self.load()
        return Outcome(kind, namespace, name, "deleted")

    async def get(self, kind: str, namespace: str, name: str) -> list[dict[str, Any]]:
        """Resources as one would write them, by namespace and name; empty ``namespace`` or ``name`` = all."""
        kind = kind_of(kind)
        rows = await self.store.read(lambda tx: tx.resources())
        found = [
            _shown(row)
            for row in sorted(rows, key=lambda row: (row.namespace, row.name))
            if row.kind == kind and namespace in ("", row.namespace) and name in ("", row.name)
        ]
        if name and not found:
            raise not_found(kind, namespace, name)
        return found

    async def load(self) -> None:
        """Put what is kept in force."""
        await self.registry.set_resources(views_of(await self.store.read(lambda tx: tx.resources())))


def kind_of(text: str) -> str:
    """The kind a person means."""
    kind = KIND_NAMES.get(text.lower())
    if kind is None:
        kinds = ", ".join(sorted(set(KIND_NAMES.values())))
        raise UsageError("unknown-kind", f"there is no kind {text[:80]!r}", hint=f"the hub has {kinds}")
    return kind


def not_found(kind: str, namespace: str, name: str) -> MeshagentError:
    where = f" in namespace {namespace}" if namespace else ""
    return MeshagentError("not-found", f"there is no {kind} {name}{where}", hint=f"see: meshagent hub get {kind}")


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _shown(row: ResourceRow) -> dict[str, Any]:
    manifest = _manifest(row)
    return {
        "kind": row.kind,
        "namespace": row.namespace,
        "name": row.name,
        "version": row.version,
        "manifest": manifest,
        "yaml": to_yaml(manifest),
    }


def _manifest(row: ResourceRow) -> dict[str, Any]:
    labels = json.loads(row.labels)
    return {
        "apiVersion": row.api_version,
        "kind": row.kind,
        "metadata": {"name": row.name, "namespace": row.namespace, **({"labels": labels} if labels else {})},
        "spec": json.loads(row.spec),
    }
