"""The load generators: their command lines, and reading one number out of what they print. Pure but for nothing."""

import csv
import io
import json
import re

#: wrk prints times with their unit.
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class UnreadableError(ValueError):
    """A load generator printed something else than a result, or errors beside it."""


def wrk(address: str, port: int, connections: int, seconds: float, *, close: bool = False) -> list[str]:
    """HTTP/1.1 GETs of a small page, as fast as they are answered."""
    argv = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{max(1, round(seconds))}s"]
    argv += ["--latency", "--timeout", "5s", *(["--header", "Connection: close"] if close else [])]
    return [*argv, f"http://{_bracketed(address)}:{port}/"]


def read_wrk(text: str) -> tuple[float, float]:
    """Requests per second and median latency in seconds; raises ``UnreadableError`` when requests failed."""
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.MULTILINE)
    half = re.search(r"^\s+50%\s+([\d.]+)(us|ms|s)$", text, re.MULTILINE)
    if "Non-2xx" in text or re.search(r"Socket errors: (?!connect 0, read 0, write 0, timeout 0)", text):
        raise UnreadableError(f"wrk saw errors: {text}")
    if not rate or not half:
        raise UnreadableError(f"no result of wrk: {text}")
    return float(rate[1]), float(half[1]) * _SECONDS[half[2]]


def redis_benchmark(address: str, port: int, connections: int, requests: int, pipeline: int = 1) -> list[str]:
    """GETs of one small value."""
    argv = ["redis-benchmark", "-h", address, "-p", str(port), "-c", str(connections), "-n", str(requests)]
    return [*argv, "-P", str(pipeline), "-t", "get", "--csv"]


def read_redis_benchmark(text: str) -> tuple[float, float]:
    """Requests per second and median latency in seconds."""
    start = text.find('"test"')
    rows = list(csv.DictReader(io.StringIO(text[start:]))) if start >= 0 else []
    if not rows:
        raise UnreadableError(f"no result of redis-benchmark: {text}")
    return float(rows[0]["rps"]), float(rows[0]["p50_latency_ms"]) / 1e3


def iperf(address: str, port: int, seconds: float) -> list[str]:
    """One TCP stream, as much as goes through, from the client to the server."""
    return ["iperf3", "--client", address, "--port", str(port), "--time", str(max(1, round(seconds))), "--json"]


def read_iperf(text: str) -> float:
    """Mbit/s that arrived at the server."""
    try:
        return float(json.loads(text)["end"]["sum_received"]["bits_per_second"]) / 1e6
    except (ValueError, KeyError, TypeError):
        raise UnreadableError(f"no result of iperf3: {text}") from None


def dnsperf(address: str, port: int, queries: str, seconds: float) -> list[str]:
    """The queries of a file over and over, a hundred under way."""
    argv = ["dnsperf", "-s", address, "-p", str(port), "-d", queries, "-l", str(max(1, round(seconds)))]
    return [*argv, "-c", "4", "-T", "1", "-q", "100"]


def read_dnsperf(text: str) -> float:
    """Answers per second; raises ``UnreadableError`` when more than one in a hundred queries was lost."""
    rate = re.search(r"Queries per second:\s+([\d.]+)", text)
    lost = re.search(r"Queries lost:\s+\d+ \(([\d.]+)%\)", text)
    if not rate or not lost or float(lost[1]) > 1.0:
        raise UnreadableError(f"no result of dnsperf: {text}")
    return float(rate[1])


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
