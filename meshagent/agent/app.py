"""The agent's parts: they meet here and nowhere else. ``start.py`` tells what was started before.

The order keeps what works working: what was last known good is served to Envoy before the control plane is reached,
the guard is found again before one is started, rules change only when Envoy can take what they send.
"""

import asyncio
import contextlib

import structlog

from meshagent import __version__
from meshagent.agent.asked import Asked
from meshagent.agent.capture import verify
from meshagent.agent.capture.controller import CaptureController, Inputs
from meshagent.agent.capture.suspension import Suspension
from meshagent.agent.control.methods import Methods, Parts
from meshagent.agent.control.status import Known
from meshagent.agent.derived import Derived, Sources
from meshagent.agent.firewallwatch import FirewallWatch
from meshagent.agent.first import First, report_failure
from meshagent.agent.gates import Gates
from meshagent.agent.guarding import ensure_guard, replace_guard
from meshagent.agent.heard import Heard
from meshagent.agent.here import Here
from meshagent.agent.identity.hubclock import HubClock
from meshagent.agent.identity.keys import WorkloadKeyKind
from meshagent.agent.identity.rotator import Rotator
from meshagent.agent.kept import Kept
from meshagent.agent.lastknown import LastKnown
from meshagent.agent.metrics import Exposed
from meshagent.agent.names.server import NamesServer
from meshagent.agent.ports import Taken, on_port
from meshagent.agent.portwatch import PortWatch
from meshagent.agent.reports import Reports, status_line
from meshagent.agent.services.announce import Announcer as Announcing
from meshagent.agent.services.declared import Declared
from meshagent.agent.services.locate import Locator
from meshagent.agent.services.probe import Prober
from meshagent.agent.speaking import Speaker
from meshagent.agent.surroundings import Surroundings
from meshagent.agent.upstream.announce import Announcer
from meshagent.agent.upstream.dial import ALONE_SECONDS, CONNECT_SECONDS, Dialer
from meshagent.agent.upstream.session import Session
from meshagent.agent.upstream.signer import Signer
from meshagent.config.settings import AgentConfig
from meshagent.guard.client import GuardClient
from meshagent.machine import files, sockets, state
from meshagent.machine.notifying import keep_notified
from meshagent.model.errors import MeshagentError
from meshagent.model.ports import DNS, HBONE, OUTBOUND
from meshagent.observe.pages import PageServer
from meshagent.protocol.node import NodeId, Workload, build_node
from meshagent.protocol.pb.meshagent_v1_pb2 import Announcement
from meshagent.protocol.subscriber import Subscriber
from meshagent.protocol.types import CDS, HOST_POLICY, LDS, NDS
from meshagent.runtime.latest import Latest, remembered
from meshagent.runtime.resident import forget_start
from meshagent.runtime.tasks import Supervisor
from meshagent.transport.local_server import LocalServer

log = structlog.get_logger()


class Agent:
    """Everything one agent consists of."""

    def __init__(self, first: First, last_known: LastKnown, stop: asyncio.Event) -> None:
        self.paths, self._stop = first.paths, stop
        self.clock, self.tracker = first.clock, first.tracker
        self.keystore, self.enrolment, self.footprint = first.keystore, first.enrolment, first.footprint
        self.config, self.proxy = first.config, first.proxy
        self.identity, self.relay = last_known.identity, last_known.relay
        self.cache, self._restored = last_known.cache, last_known.restored
        self.guard = GuardClient(self.paths.guard_socket)
        self.suspension = Suspension(self.paths.suspended, self.tracker)

    async def start(self, down: contextlib.AsyncExitStack) -> None:
        """Bring everything up; ``down`` undoes what must not outlive the agent, in reverse."""
        config = self.config.config.value
        hubs = config.hub or self.enrolment.hub_addresses
        self.here = Here(hubs, self.footprint.uid, config.advertise)
        await self.here.start()
        self.suspension.refresh()  # before the first apply: what a person switched off stays off
        self._wire(config)
        control = LocalServer(self.paths.control_socket, self._methods().table())
        await control.start()
        down.push_async_callback(control.close)
        # Declared services are known before the first apply: rules of theirs that are in the kernel must never go.
        guard = asyncio.to_thread(ensure_guard, self.paths)
        await asyncio.gather(guard, self.declared.refresh(), self.proxy.prepare(), self.ports.look())
        await self.kept.start()
        await self.asked.start()
        await self._start_names(down)
        self.derived.refresh()
        tasks = await down.enter_async_context(Supervisor(report_failure))
        self._start_tasks(tasks)
        await self._arm_pending()

    # --- making the parts

    def _wire(self, config: AgentConfig) -> None:
        self.derived = Derived(self.enrolment, config)
        self.names_served: Latest[bool] = Latest(False)
        self.taken: Latest[tuple[Taken, ...]] = Latest(())
        self._wire_identity(config)
        self._wire_relay(config)
        self._wire_services()
        self._wire_capture(config)
        self.ports = PortWatch(
            self.footprint.uid,
            self.tracker,
            self.taken,
            self.proxy.state,
            self.relay.unbound,
            self.names_served,
            self._bind_again,
        )
        self.gates = Gates(
            self.guard,
            self.proxy.state,
            self.names_served,
            remembered((*self.wishes.all(), self.capture.status), lambda: self.capture.decide().fail_open),
            lambda: bool(on_port(self.taken.value, OUTBOUND)),
        )
        self.capture.arm = self.gates.arm
        self.derived.connect(
            Sources(
                self.config.config,
                self.here,
                self.relay.taps.names,
                self.prober.health,
                self.proxy.state,
                self.capture.status,
                self.names_served,
                self.taken,
                self.relay.taps.doors,
                self.kept.policy,
            )
        )
        self.reports = Reports(self.tracker, self.session.state, self.hub_clock, self.announcer.result)

    def _wire_identity(self, config: AgentConfig) -> None:
        hubs = config.hub or self.enrolment.hub_addresses
        self.hub_clock = HubClock(self.clock)
        patience = CONNECT_SECONDS if len(hubs) > 1 else ALONE_SECONDS
        self.dialer = Dialer(self.enrolment.server_name, patience=patience)
        signer = Signer(self.dialer.create_certificate, hubs, self.identity)
        self.rotator = Rotator(
            self.identity,
            signer,
            self.keystore,
            self.hub_clock,
            self.tracker,
            key_kind=WorkloadKeyKind(config.identity.key_type.value.removeprefix("ecdsa-").replace("-", "")),
        )

    def _wire_relay(self, config: AgentConfig) -> None:
        hubs = config.hub or self.enrolment.hub_addresses
        self.kept = Kept(self.paths.captured, self.guard, self.relay.taps, self.relay.settled, self.taken)
        subscriber = Subscriber(build_node(self._workload(config)), (CDS, LDS, NDS, HOST_POLICY))
        subscriber.restore(self._restored)
        self.session = Session(
            subscriber,
            self.relay.offer,
            self.relay.wanted,
            self.dialer.ads,
            hubs,
            self.identity,
            self.clock,
            own=self.here.addresses,
        )
        self.heard = Heard(self.paths.heard, self.here.boot_id, self.session.state, self.config.config, self.tracker)
        self.heard.start(self.cache.saved_at.value)

    def _workload(self, config: AgentConfig) -> Workload:
        enrolment, addresses = self.enrolment, self.here.addresses.value
        if not addresses:
            raise MeshagentError("no-address", "this host has no address that others could reach", hint="ip address")
        return Workload(
            NodeId(addresses[0], enrolment.host_name, enrolment.namespace, enrolment.zone),
            enrolment.service_account,
            addresses=addresses,
            labels=dict(config.labels),
            agent_version=__version__,
        )

    def _wire_services(self) -> None:
        self.declared = Declared(self.paths.services_dir, self.tracker)
        self.locator = Locator(self.declared.services, self.here.addresses, sockets.listeners)
        self.prober = Prober(self.locator.check_address, self.tracker)

    def _wire_capture(self, config: AgentConfig) -> None:
        derived = self.derived
        self.asked = Asked(derived.capture_config, self.kept.policy, self.here.facts, self.guard)
        message: Latest[Announcement] = Latest(Announcement())
        self.wishes = Inputs(
            facts=self.here.facts,
            posture=derived.posture,
            config=derived.capture_config,
            services=self.declared.services,
            policy=self.kept.policy,
            mesh=self.kept.mesh,
            unserved=self.kept.unserved,
            shut=self.kept.shut,
            doors=self.kept.doors,
            ports=self.kept.ports,
            capture_dns=derived.capture_dns,
            suspended=self.suspension.suspended,
            too_old=self.heard.too_old,
        )
        self.capture = CaptureController(self.wishes, self.guard, self.tracker, self._restart_guard)
        self.names = NamesServer(derived.names, derived.dns, self.tracker)
        self.announcing = Announcing(
            derived.host,
            self.declared.services,
            self.locator.targets,
            derived.health,
            self.tracker.latest,
        )
        self.announcer = Announcer(
            message,
            self.dialer.announce,
            config.hub or self.enrolment.hub_addresses,
            self.identity,
            self.clock,
            own=self.here.addresses,
            first=self.session.state,
            heard_time=self.hub_clock.heard,
        )
        self.speaker = Speaker(self.announcing, self.announcer, message, self.declared.services)

    # --- starting them

    async def _start_names(self, down: contextlib.AsyncExitStack) -> None:
        """Names are answered from last-known-good before the first query is captured; without them capture goes on."""
        self.derived.refresh_names()
        down.push_async_callback(self.names.close)
        await self._try_names()

    async def _try_names(self) -> None:
        try:
            await self.names.start()
        except MeshagentError as error:
            if error.code != "names-port-taken":  # of that the port watch speaks, and it knows by whom
                self.tracker.set("names-failed", error.message)
            log.error("names are not served", code=error.code, error=error.message)
            return
        self.tracker.clear("names-failed")
        self.names_served.set(True)

    async def _bind_again(self) -> None:
        """Whoever held a port of ours may have gone."""
        taken = self.taken.value
        if len(on_port(taken, OUTBOUND)) + len(on_port(taken, HBONE)) < len(self.relay.unbound.value):
            self.relay.bind_again()
        if not self.names_served.value and not on_port(taken, DNS):
            await self._try_names()

    def _start_tasks(self, tasks: Supervisor) -> None:
        work = {
            "conditions": self.tracker.run,
            "config": self.config.run,
            "here": self.here.run,
            "asked": self.asked.run,
            "derived": self.derived.run,
            "cache": self.relay.run,
            "kept": self.kept.run,
            "ports": self.ports.run,
            "memory": forget_start,
            "session": self.session.run,
            "heard": self.heard.run,
            "rotator": self.rotator.run,
            "declared": self.declared.run,
            "locator": self.locator.run,
            "prober": lambda: self.prober.run(self.declared.services),
            "announcing": self.announcing.run,
            "speaker": self.speaker.run,
            "suspension": self.suspension.run,
            "surroundings": Surroundings(self.tracker).run,
            "firewalls": FirewallWatch(self._serves_peers, self.tracker).run,
            "capture": self.capture.run,
            "gates": self.gates.run,
            "reports": self.reports.run,
        }
        listen = self.config.config.value.metrics.listen
        if listen is not None:
            work["metrics"] = PageServer(listen, self._exposed().pages(), self.tracker, "metrics-port-taken").run
        work["notify"] = lambda: keep_notified(self._status_line)
        for name, run in work.items():
            tasks.start(name, run)

    def _serves_peers(self) -> bool:
        return self.derived.posture.value.serves_inbound and bool(self.declared.services.value)

    def _status_line(self) -> str:
        return status_line(
            len(self.declared.services.value),
            len(self.relay.taps.names.value.entries),
            self.session.state.value,
            self.tracker.latest.value,
        )

    def _exposed(self) -> Exposed:
        return Exposed(
            known=self._known,
            guard=self.guard.state,
            queries=lambda: self.names.counts,
            admin=lambda: self.proxy.admin,
            version=__version__,
        )

    async def _arm_pending(self) -> None:
        """The first capture after ``enroll --confirm`` waits for a confirmation; asked for once.

        While capture is switched off there is nothing to wait for: ``capture on`` asks anew.
        """
        if self.suspension.suspended.value:
            return
        found = state.read_state(self.paths.pending)
        files.remove_file(self.paths.pending)
        seconds = (found.data or {}).get("seconds")
        if isinstance(seconds, int) and seconds > 0:
            await self.capture.begin_trial(seconds, {"posture": self.derived.posture.value.value})

    async def _restart_guard(self) -> None:
        await asyncio.to_thread(replace_guard, self.paths)

    # --- the control socket

    def _methods(self) -> Methods:
        return Methods(
            Parts(
                config_path=self.paths.config,
                config=self.config,
                posture=self.derived.posture,
                capture=self.capture,
                suspension=self.suspension,
                pending_path=self.paths.pending,
                guard=self.guard,
                relay=self.relay,
                kept=self.kept,
                rotator=self.rotator,
                announcer=self.announcer,
                proxy=self.proxy,
                known=self._known,
                stop=self._stop,
                hub_addresses=lambda: self.here.facts.value.hub_addresses,
                asked_names=self.names.asked,
            )
        )

    async def _known(self) -> Known:
        try:
            listing = await asyncio.to_thread(self.guard.listing)
        except MeshagentError:
            listing = None  # the guard is away: its condition says so
        return Known(
            enrolment=self.enrolment,
            identity=self.identity.value,
            renew_at=self.rotator.due,
            posture=self.derived.posture.value,
            upstream=self.session.state.value,
            capture=self.capture.status.value,
            suspended_since=self.suspension.since,
            proxy=self.proxy.state.value,
            services=self.declared.services.value,
            health=self.derived.health.value,
            announced=self.announcer.result.value,
            callers=verify.callers(listing),
            around_proxy=verify.around_proxy(listing),
            conditions=self.tracker.conditions(),
            config_age=self.heard.age,
            now=self.clock.now(),
        )
