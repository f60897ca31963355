"""Validation without a hub: for ``hub validate`` and whoever else has a text in hand. Pure."""

from meshagent.hub.resources.checked import Report, SourceText
from meshagent.hub.resources.validate import validate


def parse_resources(text: str, path: str, *, root_namespace: str = "istio-system") -> Report:
    """The valid resources and warnings of one file; raises ``UsageError`` that holds every error, one per line."""
    report = validate([SourceText(path, text)], root_namespace=root_namespace)
    if report.errors:
        raise report.error()
    return report
