"""The hub's start and stop, told in one place: store, CA, registry, discovery, and last the doors.

Ready means that it can serve: the database is open, the CA signs, the registry knows again what was known, the port is
bound. The administrators' socket opens last, so whoever gets an answer there knows it; systemd is told as well.
"""

import asyncio
import contextlib
import grp
from collections.abc import Callable

import structlog

from meshagent import __version__
from meshagent.hub.api.admin import Admin
from meshagent.hub.api.announce import AnnounceService
from meshagent.hub.api.resources import Resources
from meshagent.hub.authority.enrolment import Signer, caller
from meshagent.hub.authority.hub_tls import HubTls
from meshagent.hub.authority.ratelimit import RateLimit
from meshagent.hub.authority.roots import open_roots
from meshagent.hub.authority.service import AuthorityService
from meshagent.hub.discovery.fanout import Fanout
from meshagent.hub.discovery.rejections import Rejections
from meshagent.hub.discovery.server import Caller, CallerOf, Discovery
from meshagent.hub.health import Health
from meshagent.hub.metrics import Exposed
from meshagent.hub.registry.registry import Registry, RegistrySettings
from meshagent.hub.resources.views import views_of
from meshagent.hub.settings import HubSettings
from meshagent.hub.state import MeshState
from meshagent.hub.store.interface import Store
from meshagent.hub.store.sqlite import SqliteStore, open_store
from meshagent.hub.store.trouble import corrupt
from meshagent.hub.storewatch import watch_store
from meshagent.machine.files import make_dir
from meshagent.machine.limits import raise_descriptor_limit
from meshagent.machine.notify import notify
from meshagent.machine.notifying import keep_notified
from meshagent.observe.pages import PageServer
from meshagent.runtime.clock import Clock, SystemClock
from meshagent.runtime.resident import collect_all
from meshagent.runtime.stopping import stop_on_signals
from meshagent.runtime.tasks import Supervisor
from meshagent.transport.ads_server import AdsServer
from meshagent.transport.front_limits import Limits
from meshagent.transport.grpc_server import Handler, add_methods, bind_loopback, new_server
from meshagent.transport.listener import TlsFront
from meshagent.transport.local import MAX_HUB_REQUEST
from meshagent.transport.local_server import LocalServer
from meshagent.transport.unix import Access, refuse_if_live

__all__ = ["HubSettings", "run_hub"]

log = structlog.get_logger()

#: The group whose members may administer the hub, where it exists.
ADMIN_GROUP = "meshagent"
#: An agent has one connection, at times two, each of which is three descriptors here (its own, both ends on loopback).
DESCRIPTORS = 3 * Limits().connections + 256
#: How long calls that are under way may take when the hub stops; streams end, agents come back by themselves.
STOP_SECONDS = 1.0


async def run_hub(
    settings: HubSettings,
    *,
    clock: Clock | None = None,
    stop: asyncio.Event | None = None,
    loaded: Callable[[], None] = lambda: None,
) -> None:
    """Run a hub until SIGTERM or SIGINT (or ``stop`` is set), then stop it in order.

    ``loaded`` is called when all that it begins with is in memory, before it serves. Raises ``MeshagentError`` when it
    can't start; then nothing is left listening.
    """
    clock = clock or SystemClock()
    stop = stop or stop_on_signals()
    async with contextlib.AsyncExitStack() as down:
        raise_descriptor_limit(DESCRIPTORS)
        refuse_if_live(settings.paths.hub_socket)  # a second hub on this root stops here, before it touches anything
        make_dir(settings.paths.hub_state, mode=0o700)
        make_dir(settings.paths.hub_run, mode=0o755)
        store = await _closing_last(down, await open_store(settings.store))
        roots = await open_roots(store, settings.ca_directory, settings.trust_domain, clock.now())
        signer = Signer(roots, settings.trust_domain)
        registry = await _registry(settings, store, clock)
        down.push_async_callback(registry.stop)
        tls = HubTls(roots, settings.trust_domain, clock)
        fanout, rejections = Fanout(registry.state), Rejections()
        supervisor = await down.enter_async_context(Supervisor(_task_failed, clock=clock))
        health = Health(clock)
        supervisor.start("store", lambda: watch_store(store, health, registry.write_postponed))
        supervisor.start("leases", registry.run)
        supervisor.start("fanout", fanout.run)
        supervisor.start("hub-certificate", tls.run)
        supervisor.start("memory", collect_all)
        discovery = Discovery(fanout, _caller_of(store), rejections, clock)
        ads = AdsServer(discovery.open)
        handlers: list[Handler] = [
            *AuthorityService(store, clock, signer, settings.zone, RateLimit(), registry.enrolled).handlers(),
            *AnnounceService(store, clock, registry).handlers(),
            *ads.handlers(),
        ]
        loaded()
        front = await _listen(settings, tls, handlers, down)
        resources = Resources(store, clock, registry, settings.root_namespace)
        listen = tuple(str(address) for address in front.addresses)
        admin = Admin(
            store,
            clock,
            registry,
            signer,
            resources,
            rejections.of,
            health.latest,
            str(settings.advertise),
            listen,
            __version__,
        )
        await _open_socket(settings, admin, down)
        if settings.http is not None:
            exposed = Exposed(
                registry.state,
                health.latest,
                streams=lambda: ads.streams,
                connections=lambda: front.connections,
                refused=lambda: len(rejections.hosts()),
                root_expires=roots.active.certificate.not_valid_after_utc.timestamp,
                version=__version__,
            )
            supervisor.start("http", PageServer(settings.http, exposed.pages(), health, "metrics-port-taken").run)
        log.info("hub-ready", listen=listen, advertise=str(settings.advertise))
        notify("READY=1")
        supervisor.start("notify", lambda: keep_notified(lambda: _status_line(registry.state.value, health, settings)))
        await stop.wait()
        log.info("hub-stopping")
        notify("STOPPING=1")


def _status_line(state: MeshState, health: Health, settings: HubSettings) -> str:
    """What ``systemctl status`` shows."""
    connected = sum(host.connected for host in state.hosts)
    serving = f"{connected} of {len(state.hosts)} hosts connected, {len(state.services)} services"
    wrong = "".join(f", {condition.title}" for condition in health.latest.value)
    return f"serving {settings.trust_domain} at {settings.advertise}: {serving}{wrong}"


async def _closing_last(down: contextlib.AsyncExitStack, store: SqliteStore) -> SqliteStore:
    down.push_async_callback(store.close)
    return store


async def _registry(settings: HubSettings, store: Store, clock: Clock) -> Registry:
    """The registry, knowing again what was known when the last hub on this database stopped."""
    wanted = RegistrySettings(settings.trust_domain, settings.zone, settings.root_namespace, settings.grace)
    registry = Registry(store, clock, wanted)
    rows = await store.read(lambda tx: tx.resources())
    try:
        views = views_of(rows)
    except (ValueError, LookupError, TypeError, AssertionError) as error:  # they were validated before they were kept
        raise corrupt(settings.store, f"an applied resource can't be read: {error}") from error
    await registry.start(views)
    return registry


async def _listen(
    settings: HubSettings, tls: HubTls, handlers: list[Handler], down: contextlib.AsyncExitStack
) -> TlsFront:
    """The one TLS port: the front asks for client certificates, gRPC behind it serves."""
    server = new_server()
    front = TlsFront(settings.listen, lambda: tls.context, bind_loopback(server))
    add_methods(server, handlers, front.peer_of)
    await server.start()
    down.push_async_callback(server.stop, STOP_SECONDS)
    await front.start()
    down.push_async_callback(front.close)
    return front


async def _open_socket(settings: HubSettings, admin: Admin, down: contextlib.AsyncExitStack) -> None:
    local = LocalServer(settings.paths.hub_socket, admin.methods(), _access(), MAX_HUB_REQUEST)
    await local.start()
    down.push_async_callback(local.close)


def _access() -> Access:
    """Root and, where there is one, the group of administrators."""
    try:
        return Access(0o660, gid=grp.getgrnam(ADMIN_GROUP).gr_gid)
    except KeyError:
        return Access(0o600)


def _caller_of(store: Store) -> CallerOf:
    async def caller_of(serial: str) -> Caller:
        host = await store.read(lambda tx: caller(tx, serial))
        return Caller(host.name, host.namespace, host.service_account)

    return caller_of


def _task_failed(name: str, error: Exception, retry_in: float) -> None:
    log.error("hub-task-failed", task=name, retry_in=round(retry_in, 1), exc_info=error)
