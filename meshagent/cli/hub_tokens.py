"""``meshagent hub token``: each token enrols one host, once (or as often as it says)."""

from typing import Any

import click

from meshagent.cli import render
from meshagent.cli.calls import call_hub
from meshagent.cli.context import emit, say, settings, shared_options


@click.group(epilog="Example: meshagent hub token create --service-account web")
@shared_options
def token() -> None:
    """Tokens: each enrols one host, once."""


@token.command(epilog="Example: meshagent hub token create --service-account db --namespace shop --ttl 15m")
@click.option("--service-account", required=True, help="Identity of the host that enrols.")
@click.option("--namespace", default="default", show_default=True)
@click.option("--uses", type=click.IntRange(1, 1000), default=1, show_default=True)
@click.option("--ttl", default="1h", show_default=True, help="15m, 1h, 2d")
@click.option("--host", help="Only for a host of this name.")
@click.option("--replace", is_flag=True, help="May take over a host name that is taken.")
@click.option("--cidr", multiple=True, help="Only from these source addresses.")
@click.option("--services", help="What the host may announce, comma-separated.")
@shared_options
def create(**options: Any) -> None:
    """Make a token and print the line that enrols a host with it."""
    options["services"] = [name for name in (options["services"] or "").split(",") if name]
    options["cidr"] = list(options["cidr"])
    answer = call_hub("token.create", **options)
    if settings().json:
        emit(answer)
        return
    click.echo(answer["command"])
    click.echo(f"good until {answer['expires_at']}, {answer['uses']} use(s); id {answer['id']}", err=True)


@token.command("list", epilog="Example: meshagent hub token list")
@shared_options
def list_tokens() -> None:
    """Tokens that were made; never their secrets."""
    answer = call_hub("token.list")
    if settings().json:
        emit(answer)
        return
    rows = [
        (t["id"], f"{t['namespace']}/{t['service_account']}", f"{t['used']}/{t['uses']}", t["expires_at"], t["state"])
        for t in answer["tokens"]
    ]
    render.table(("ID", "IDENTITY", "USED", "EXPIRES", "STATE"), rows, "no tokens")


@token.command(epilog="Example: meshagent hub token revoke 4f2a91c0")
@click.argument("token_id", metavar="ID")
@shared_options
def revoke(token_id: str) -> None:
    """Make a token useless."""
    say(call_hub("token.revoke", id=token_id), f"revoked token {token_id}")
