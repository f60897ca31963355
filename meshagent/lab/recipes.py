"""Legacy services as a distribution installs them, started on a lab host with data of their own.

Each recipe returns once the service answered a real request. Nothing of the machine's own services is used but the
programs: own configuration, data, sockets and keys, below the host's private directory.
"""

import fcntl
import grp
import os
import pwd
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from meshagent.lab.host import Host
from meshagent.lab.program import Program
from meshagent.lab.waiting import wait_until
from meshagent.machine import process


@dataclass(frozen=True, slots=True)
class Service:
    """A running legacy service: its program, port, and the directory with its data and local socket."""

    program: Program
    port: int
    directory: Path


def redis(host: Host, port: int = 6379, *, bind: str = "* -::*", options: tuple[str, ...] = ()) -> Service:
    """redis-server without persistence; ``bind`` as in redis.conf (a '-' in front: no error when it can't).

    Called again for the same port, after the first one has ended, it is a restart.
    """
    directory = directory_of(host, f"redis-{port}", "redis")
    argv = ["redis-server", "--port", str(port), "--bind", *bind.split(), "--dir", str(directory)]
    argv += ["--protected-mode", "no", "--save", "", "--appendonly", "no", *options]
    program = host.popen(argv, log=f"redis-{port}", user=_user("redis"))
    ping = ["redis-cli", "-h", _reachable(host, bind), "-p", str(port), "ping"]
    until(program, lambda: host.run(ping).stdout.strip() == "PONG")
    return Service(program, port, directory)


def _reachable(host: Host, bind: str) -> str:
    first = bind.split()[0].removeprefix("-")
    return {"*": host.address, "0.0.0.0": host.address4, "::": host.address6}.get(first, first)  # noqa: S104


_NGINX = """
daemon off; pid nginx.pid; error_log stderr warn; worker_processes 1; user {user} {group};
events {{ worker_connections 4096; }}
http {{
  access_log access.log combined; client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp;
  uwsgi_temp_path tmp; scgi_temp_path tmp; default_type text/plain; keepalive_requests 1000000;
  server {{
    listen {port}; {listen6}
    location / {{ root www; }}
    location = /who {{ return 200 "$remote_addr $http_x_forwarded_client_cert\\n"; }}
  }}
}}
"""


def nginx(host: Host, port: int = 80, *, pages: Mapping[str, str] | None = None) -> Service:
    """nginx that serves ``pages`` (path without slash -> text, default an index.html) and ``/who``.

    ``/who`` answers with the caller's address and its X-Forwarded-Client-Cert header, as the application sees them.
    """
    user = _user("www-data")
    directory = directory_of(host, f"nginx-{port}", user)
    www = directory / "www"
    www.mkdir(mode=0o755)
    for name, text in (pages or {"index.html": f"hello from {host.name}\n"}).items():
        (www / name).write_text(text)
    group = grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    listen6 = f"listen [::]:{port};" if Path("/proc/net/if_inet6").exists() else ""
    config = _NGINX.format(port=port, user=user, group=group, listen6=listen6)
    (directory / "nginx.conf").write_text(config)
    program = host.popen(["nginx", "-p", str(directory), "-c", "nginx.conf"], log=f"nginx-{port}")
    until(program, lambda: _accepts(host, host.address, port))
    return Service(program, port, directory)


def mariadb(host: Host, port: int = 3306, *, sql: str = "") -> Service:
    """MariaDB with a database, a user and a password ``app``, allowed from anywhere.

    ``sql`` (one statement per line) runs at its start.

    A local client as root: ``mariadb --socket <directory>/mariadb.sock``.
    """
    directory = directory_of(host, f"mariadb-{port}", "mysql")
    data = directory / "data"
    host.run(["cp", "-a", "--reflink=auto", str(_mariadb_template()), str(data)], timeout=60)  # there: it ends with it
    (directory / "start.sql").write_text(_MARIADB_START + sql + "\n")
    socket = directory / "mariadb.sock"
    argv = ["mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={socket}", f"--port={port}"]
    argv += [f"--pid-file={directory}/mariadb.pid", f"--init-file={directory}/start.sql", "--bind-address=*"]
    argv += ["--skip-name-resolve", "--skip-log-bin", "--user=mysql", *_MARIADB_SMALL]
    program = host.popen(argv, log=f"mariadb-{port}")
    check = ["mariadb", "--no-defaults", f"--socket={socket}", "--user=app", "--password=app", "app"]
    until(program, lambda: "1" in host.run([*check, "--execute=SELECT 1"]).stdout, timeout=60)
    return Service(program, port, directory)


# One statement per line, or the server ignores the file. Users without a name, which the installation makes, would win
# over app@% for local callers.
_MARIADB_START = """\
DELETE FROM mysql.global_priv WHERE User = '';
FLUSH PRIVILEGES;
CREATE DATABASE app;
CREATE USER 'app'@'%' IDENTIFIED BY 'app';
GRANT ALL ON app.* TO 'app'@'%';
"""
_MARIADB_SMALL = ("--innodb-log-file-size=4M", "--innodb-buffer-pool-size=8M", "--aria-pagecache-buffer-size=1M")


def _mariadb_template() -> Path:
    """An empty data directory, made once per version of MariaDB: making one takes seconds, copying it little."""
    version = process.run(["mariadbd", "--version"]).stdout.split()[2].partition("-")[0]
    cache = Path(os.environ.get("MESHAGENT_CACHE", "/var/cache/meshagent-build"))
    cache.mkdir(parents=True, exist_ok=True)
    template = cache / f"mariadb-{version}"
    with (cache / "mariadb.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            made = cache / f"mariadb-{version}.new"
            shutil.rmtree(made, ignore_errors=True)
            argv = ["mariadb-install-db", "--no-defaults", f"--datadir={made}", "--user=mysql", "--skip-test-db"]
            argv += ["--auth-root-authentication-method=normal", "--skip-name-resolve", *_MARIADB_SMALL]
            process.run(argv, timeout=120)
            made.rename(template)
    return template


_SSHD = """
Port {port}
HostKey {directory}/host_key
PidFile {directory}/sshd.pid
AuthorizedKeysFile {directory}/client_key.pub
PasswordAuthentication no
PermitRootLogin yes
StrictModes no
UsePAM no
"""


def sshd(host: Host, port: int = 22) -> Service:
    """sshd with keys of its own; log in from any host with ``ssh_argv``."""
    directory = directory_of(host, f"sshd-{port}", "root")
    for name in ("host_key", "client_key"):
        process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)])
    config = directory / "sshd_config"
    config.write_text(_SSHD.format(port=port, directory=directory))
    host.path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    program = host.popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], log=f"sshd-{port}")
    until(program, lambda: _banner(host, port).startswith(b"SSH-2.0"))
    return Service(program, port, directory)


def ssh_argv(service: Service, address: str, *command: str) -> list[str]:
    """The command that logs in as root at an ``sshd`` of this lab, for ``Host.run`` or ``Host.popen``."""
    options = ["-i", str(service.directory / "client_key"), "-p", str(service.port), "-F", "none"]
    for option in ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "LogLevel=ERROR"):
        options += ["-o", option]
    return ["ssh", *options, f"root@{address}", *command]


def _banner(host: Host, port: int) -> bytes:
    with host.connect(host.address, port, timeout=2) as client:
        return client.recv(64)


def _accepts(host: Host, address: str, port: int) -> bool:
    host.connect(address, port, timeout=2).close()
    return True


def until(program: Program, ready: Callable[[], bool], timeout: float = 20.0) -> None:
    """Wait until a service answers; a program that ended meanwhile is an error at once, with its last words."""

    def look() -> bool:
        return not program.alive or ready()

    wait_until(look, timeout=timeout, what=f"{program.argv[0]} answering", interval=0.03)
    if not program.alive:
        raise process.ProgramError(
            "service-failed", program.argv, f"ended: {program.tail()}", returncode=program.wait()
        )


def directory_of(host: Host, name: str, owner: str) -> Path:
    """A directory for a service's data, made below the host's private one; owned by the user that ``owner`` is here."""
    path = host.private / name
    path.mkdir(mode=0o755, exist_ok=True)
    user = pwd.getpwnam(_user(owner))
    os.chown(path, user.pw_uid, user.pw_gid)
    return path


def _user(wanted: str) -> str:
    """The package's own user; where the distribution has none, nobody."""
    try:
        return pwd.getpwnam(wanted).pw_name
    except KeyError:
        return "nobody"
