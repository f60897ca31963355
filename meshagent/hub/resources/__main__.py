"""The short-lived child that validates: JSON on standard input, a report as JSON on standard output.

A process of its own because what it imports would cost the hub 15 MB for good, and because whatever a hostile file
does to a parser, it does it here, within 512 MB and 30 s of CPU.
"""

import json
import resource
import sys

MEMORY = 512 << 20
CPU_SECONDS = 30


def main() -> None:
    """``{"files": [{"name", "text"}], "namespace", "root_namespace"}`` in, ``Report.as_json`` out."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    from meshagent.hub.resources.checked import SourceText
    from meshagent.hub.resources.validate import validate

    request = json.load(sys.stdin)
    sources = [SourceText(item["name"], item["text"]) for item in request["files"]]
    report = validate(sources, namespace=request["namespace"], root_namespace=request["root_namespace"])
    json.dump(report.as_json(), sys.stdout)


if __name__ == "__main__":
    main()
