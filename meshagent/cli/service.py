"""``meshagent service``: what this host offers to the mesh (files in services.d)."""

import click

from meshagent.cli import render
from meshagent.cli.calls import call_agent
from meshagent.cli.context import emit, settings, shared_options
from meshagent.cli.plan import accept_option
from meshagent.cli.straight import enrolled
from meshagent.model.service import ServiceProtocol


@click.group(epilog="Example: meshagent service add orders --port 8080 --protocol http --check http:/healthz")
@shared_options
def service() -> None:
    """Services that this host offers to the mesh."""


@service.command("list", epilog="Example: meshagent service list")
@shared_options
def list_() -> None:
    """Declared services; with the agent running also how they are doing."""
    from meshagent.config.services import load_services

    paths = settings().paths
    loaded = load_services(paths.services_dir)
    live = {}
    if enrolled(paths) and paths.control_socket.exists():
        live = {s["name"]: s for s in call_agent("status")["services"]}
    rows = [
        {
            "name": s.name,
            "host": live.get(s.name, {}).get("host", ""),
            "port": s.port,
            "target_port": s.target_port,
            "protocol": s.protocol.value,
            "healthy": live.get(s.name, {}).get("healthy"),
            "reason": live.get(s.name, {}).get("reason", ""),
        }
        for s in loaded.services
    ]
    errors = [str(error) for error in loaded.errors]
    if settings().json:
        emit({"services": rows, "errors": errors})
        return
    health = {True: "healthy", False: "unhealthy", None: "-"}
    render.table(
        ("NAME", "HOST", "PORT", "LISTENS ON", "PROTOCOL", "HEALTH"),
        [(r["name"], r["host"], r["port"], r["target_port"], r["protocol"], health[r["healthy"]]) for r in rows],
        "no service is declared",
    )
    for error in errors:
        click.echo(f"error: {error}", err=True)


@service.command(epilog="Example: meshagent service add cache --port 6379 --protocol redis")
@click.argument("name")
@click.option("--port", type=click.IntRange(1, 65535), required=True, help="Port that the mesh calls.")
@click.option("--target-port", type=click.IntRange(1, 65535), help="Port the process listens on, when another.")
@click.option("--protocol", type=click.Choice([p.value for p in ServiceProtocol]), default="tcp", show_default=True)
@click.option("--check", metavar="SPEC", help="tcp (default) or http:/path")
@accept_option
@shared_options
def add(
    name: str, port: int, target_port: int | None, protocol: str, check: str | None, accept: tuple[str, ...]
) -> None:
    """Declare a service (writes one file in services.d; the agent picks it up)."""
    from meshagent.config.edit import add_service

    paths = settings().paths
    if enrolled(paths):  # else enrolling asks
        from meshagent.agent.judge.risks import require_accepted
        from meshagent.agent.plan import service_risks

        require_accepted(service_risks(paths, name, target_port or port), accept)
    path = add_service(paths, name, port=port, target_port=target_port, protocol=protocol, check=check)
    if settings().json:
        emit({"name": name, "file": str(path)})
    else:
        click.echo(f"declared {name} on port {port} in {path}")


@service.command(epilog="Example: meshagent service remove cache")
@click.argument("name")
@shared_options
def remove(name: str) -> None:
    """Withdraw a service (removes it from its file in services.d)."""
    from meshagent.config.edit import remove_service

    path = remove_service(settings().paths, name)
    if settings().json:
        emit({"name": name, "file": str(path)})
    else:
        click.echo(f"withdrew {name} (was in {path})")
