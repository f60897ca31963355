"""``meshagent hub backup`` and ``hub restore``."""

from dataclasses import asdict
from pathlib import Path

import click

from meshagent.cli.context import emit, settings, shared_options

_STORE = click.option(
    "--store", metavar="sqlite:PATH", help="The database [default: sqlite:<root>/var/lib/meshagent-hub/hub.db]"
)
_FILE = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


@click.command(epilog="Example: meshagent hub backup hub.backup")
@_FILE
@_STORE
@shared_options
def backup(file: Path, store: str | None) -> None:
    """The whole hub in one FILE (0600), also while it runs. It holds the CA's key: guard it like one."""
    from meshagent.hub.backup import Place, back_up
    from meshagent.hub.settings import database_of

    made = back_up(Place(settings().paths, database_of(store)), file)
    if settings().json:
        emit({"file": str(file), **_told(asdict(made))})
        return
    click.echo(f"{file}: the hub of {made.trust_domain} with {made.hosts} host(s), as of {made.made_at}")
    click.echo("it holds the key of the CA: whoever reads it can issue certificates that the mesh trusts", err=True)


@click.command(epilog="Example: meshagent hub restore hub.backup --force")
@_FILE
@click.option("--force", is_flag=True, help="Put a hub that is there aside first.")
@_STORE
@shared_options
def restore(file: Path, force: bool, store: str | None) -> None:
    """Lay the hub of a backup down, where none runs. Its hosts come back by themselves."""
    from meshagent.hub.backup import Place
    from meshagent.hub.backup import restore as lay_down
    from meshagent.hub.settings import database_of

    done = lay_down(file, Place(settings().paths, database_of(store)), force=force)
    if settings().json:
        aside = str(done.set_aside) if done.set_aside else None
        emit({**_told(asdict(done.manifest)), "tokens_revoked": done.tokens_revoked, "set_aside": aside})
        return
    made = done.manifest
    click.echo(f"restored the hub of {made.trust_domain} with {made.hosts} host(s), as of {made.made_at}")
    if done.set_aside:
        click.echo(f"the hub that was here is in {done.set_aside}")
    if done.tokens_revoked:
        click.echo(f"{done.tokens_revoked} token(s) that may have been used since are revoked; make new ones")
    click.echo("what was revoked or enrolled after that moment isn't in it: revoke or enroll again")


def _told(manifest: dict[str, object]) -> dict[str, object]:
    return {key: manifest[key] for key in ("made_at", "version", "trust_domain", "ca_hash", "hosts")}
