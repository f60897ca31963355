"""Every condition of an agent: code, severity, title, what to do, how long it must last before it shows. Pure data.

``delay`` (seconds) keeps a restart or a routine reconnect from crying wolf. ``depends_on`` names causes: while one of
them holds, this one is its consequence and isn't shown. Severity ``error`` makes ``status`` exit 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from meshagent.model.condition import Severity

WARNING, ERROR = Severity.WARNING, Severity.ERROR


@dataclass(frozen=True, slots=True)
class ConditionSpec:
    """One kind of condition; ``remedy`` is one line that says what to do, often a command."""

    code: str
    severity: Severity
    title: str
    remedy: str
    delay: float = 0.0
    depends_on: tuple[str, ...] = ()


_ALL = (
    # control plane
    ConditionSpec(
        "hub-unreachable",
        WARNING,
        "the control plane can't be reached",
        "check the hub and the way to it; this host keeps serving from its last known state",
        delay=15.0,  # a hub restarts in seconds, and reconnects with jitter take up to ten
    ),
    ConditionSpec(
        "hub-refused",
        ERROR,
        "the control plane refuses this host",
        "see `meshagent hub hosts` on the hub; enroll again if the host was revoked",
    ),
    ConditionSpec(
        "hub-misbehaves",
        ERROR,
        "the control plane breaks the rules of its own protocol",
        "this host keeps what it had; look at the hub's version and log, and whether it is the hub at all",
    ),
    ConditionSpec(
        "clock-skew",
        WARNING,
        "this host's clock differs from the hub's",
        "synchronise the clock (timedatectl set-ntp true); the proxy judges certificates by it",
        delay=5.0,
    ),
    ConditionSpec(
        "config-too-old",
        ERROR,
        "what this host knows of the mesh is older than agent.yaml allows",
        "bring the control plane back; until then nothing new is captured (with policy closed everything goes on)",
        delay=5.0,  # who was off for long needs a moment to reach it
    ),
    ConditionSpec(
        "config-rejected",
        WARNING,
        "the proxy rejected configuration from the control plane",
        "the previous good version stays; mend the named resource on the hub",
    ),
    ConditionSpec(
        "cache-damaged",
        WARNING,
        "the last known state on disk was damaged and set aside",
        "nothing to do while the hub is reachable: it is rebuilt; check the disk if it comes again",
    ),
    ConditionSpec(
        "cache-not-saved",
        WARNING,
        "the last known state can't be saved",
        "free space on, or remount, the file system of /var/lib/meshagent",
    ),
    ConditionSpec(
        "state-unknown-format",
        WARNING,
        "a state file was written by a newer version and set aside",
        "upgrade meshagent again, or let it be rebuilt from the hub",
    ),
    ConditionSpec(
        "state-not-writable",
        ERROR,
        "state can't be written to disk",
        "free space on, or remount, the file system of /var/lib/meshagent",
    ),
    # identity
    ConditionSpec(
        "cert-renewal-failing",
        WARNING,
        "the certificate could not be renewed",
        "the valid one stays in use; `meshagent certs rotate` tries again now",
        delay=60.0,  # the first retry comes within seconds; a week is left
        depends_on=("hub-unreachable", "hub-refused", "cert-expired"),
    ),
    ConditionSpec(
        "cert-expired",
        ERROR,
        "the certificate of this host has expired",
        "bring the hub back or check the clock; the host rejoins by its own key",
    ),
    # proxy
    ConditionSpec(
        "proxy-not-running",
        ERROR,
        "the proxy is not serving",
        "it is started again by itself; `meshagent proxy show` says how it ended",
        delay=2.0,  # a crash is mended in 150 ms
        depends_on=("proxy-crash-loop", "envoy-version", "envoy-missing"),
    ),
    ConditionSpec(
        "proxy-crash-loop",
        ERROR,
        "the proxy keeps crashing",
        "look at `meshagent proxy show` and its last lines in the log; `meshagent capture off` takes traffic off it",
    ),
    ConditionSpec(
        "proxy-hung",
        ERROR,
        "the proxy hangs",
        "it is ended and started again by itself; new connections go around it where the policy allows",
    ),
    ConditionSpec(
        "proxy-unmanaged",
        WARNING,
        "the proxy serves but can't be asked",
        "`meshagent proxy restart` brings a new one beside it",
    ),
    ConditionSpec(
        "proxy-memory",
        ERROR,
        "the proxy has used up its memory and takes no new connections",
        "raise proxy.memory in agent.yaml, or the limit of its cgroup, then `meshagent proxy restart`",
    ),
    ConditionSpec(
        "proxy-upgrade-available",
        WARNING,
        "another Envoy is installed than the one that runs",
        "`meshagent proxy restart` takes it in; no connection is lost",
    ),
    ConditionSpec(
        "port-taken",
        ERROR,
        "another program holds a port of the mesh",
        "stop that program or move it to another port; the port is taken as soon as it is free",
        delay=1.0,  # a port given back within a second is no news
    ),
    ConditionSpec(
        "envoy-version",
        ERROR,
        "this Envoy version is not supported",
        "install a supported one, or name it in proxy.allow_version of agent.yaml",
    ),
    ConditionSpec(
        "envoy-missing",
        ERROR,
        "no Envoy binary was found",
        "install the package with Envoy, or set proxy.binary in agent.yaml",
    ),
    # capture
    ConditionSpec(
        "guard-down",
        ERROR,
        "the guard that holds the capture rules is not running",
        "start it: systemctl start meshagent-guard",
        delay=1.0,
    ),
    ConditionSpec(
        "capture-failed",
        ERROR,
        "capture rules could not be applied",
        "`meshagent plan` shows what would be applied and what stands in the way",
        depends_on=("guard-down",),
    ),
    ConditionSpec(
        "capture-waiting",
        WARNING,
        "part of what agent.yaml wants captured is not captured yet",
        "the text says what it waits for; what is not captured goes direct",
        delay=10.0,  # a new proxy has its listeners within a second, a restarted unit its cgroup too
        depends_on=("guard-down", "capture-failed", "proxy-not-running", "hub-unreachable"),
    ),
    ConditionSpec(
        "capture-drift",
        WARNING,
        "someone changed the capture rules",
        "they are restored by themselves; `meshagent capture verify` shows the difference",
        delay=1.0,  # healing takes less: what still shows did not heal
        depends_on=("guard-down", "capture-failed"),
    ),
    ConditionSpec(
        "capture-contested",
        WARNING,
        "another program insists on having its iptables rules before ours",
        "what its rules accept is neither captured nor refused; `iptables-legacy-save` shows them: "
        "let it append (-A), or insert once and not again",
    ),
    ConditionSpec(
        "capture-suspended",
        WARNING,
        "capture is switched off on this host",
        "`meshagent capture on` resumes it",
    ),
    ConditionSpec(
        "confirm-pending",
        WARNING,
        "a change waits for confirmation",
        "`meshagent confirm` keeps it; else it is undone when the time is up",
    ),
    ConditionSpec(
        "rolled-back",
        ERROR,
        "a change was not confirmed and was undone",
        "`meshagent plan` shows what was meant; set the posture again and confirm it",
    ),
    ConditionSpec(
        "conntrack-nearly-full",
        WARNING,
        "the kernel's table of connections is nearly full",
        "when it is full the kernel drops new connections: sysctl -w net.netfilter.nf_conntrack_max=NUMBER raises it",
    ),
    ConditionSpec(
        "firewall-blocks",
        WARNING,
        "this host's firewall keeps mesh peers out",
        "`meshagent plan` shows all firewalls of this host; gone by itself once peers are let in",
    ),
    # names
    ConditionSpec(
        "names-failed",
        ERROR,
        "mesh names can't be served on this host",
        "see who holds the port: ss -lnp sport = :15053",
    ),
    ConditionSpec(
        "dns-upstream-down",
        WARNING,
        "the nameservers of this host don't answer",
        "check the nameserver lines of /etc/resolv.conf; mesh names still resolve",
        delay=5.0,
    ),
    ConditionSpec(
        "metrics-port-taken",
        WARNING,
        "metrics and health can't be served",
        "see who holds the port (ss -ltnp), or set metrics.listen in agent.yaml; nothing else depends on it",
        delay=2.0,  # a restarted agent may meet its predecessor's socket
    ),
    # what the operator wrote
    ConditionSpec(
        "config-file-invalid",
        WARNING,
        "agent.yaml is not valid and was not taken",
        "mend the named lines; the last good settings stay",
    ),
    ConditionSpec(
        "services-file-invalid",
        WARNING,
        "a file of services.d is not valid and was not taken",
        "mend the named lines; what it declared before stays",
    ),
    # services
    ConditionSpec(
        "service-unhealthy",
        WARNING,
        "a service of this host fails its health check",
        "look at the service itself; the mesh sends its callers elsewhere where it can",
        delay=2.0,  # after a boot the agent may be up before the services
    ),
    ConditionSpec(
        "announcement-refused",
        ERROR,
        "the control plane refuses a service of this host",
        "rename the service, or use a token that may announce it",
    ),
    ConditionSpec(
        "no-address",
        ERROR,
        "this host has no address that others can reach",
        "set advertise in agent.yaml, or check the network",
        delay=5.0,
    ),
)

#: Code -> specification, in the order in which conditions of one severity are shown.
CONDITIONS: Mapping[str, ConditionSpec] = MappingProxyType({spec.code: spec for spec in _ALL})


def spec_of(code: str) -> ConditionSpec:
    """The specification of ``code``; one that is missing here must not take the daemon down (a test finds it)."""
    return CONDITIONS.get(code) or ConditionSpec(
        code, WARNING, code.replace("-", " "), "see the log for what led to it"
    )
