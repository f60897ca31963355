"""Tells people which resources are refused: one condition per resource, one log line per reason."""

from collections.abc import Mapping

import structlog

from meshagent.model.condition import ConditionSink

log = structlog.get_logger()

CONDITION = "config-rejected"

#: So many refused resources get a condition of their own; beyond, the log has them.
MAX_CONDITIONS = 50


class Rejections:
    """Keeps the conditions equal to what is refused now."""

    def __init__(self, conditions: ConditionSink) -> None:
        self._conditions = conditions
        self._shown: dict[tuple[str, str], str] = {}

    def show(self, kind: str, reasons: Mapping[str, str]) -> None:
        """All refusals of one kind (``Cluster``, ``Listener`` …): resource name -> reason."""
        for shown_kind, name in list(self._shown):
            if shown_kind == kind and name not in reasons:
                del self._shown[kind, name]
                self._conditions.clear(CONDITION, key=f"{kind}/{name}")
        for name, reason in reasons.items():
            if self._shown.get((kind, name)) != reason:
                self._tell(kind, name, reason)

    def _tell(self, kind: str, name: str, reason: str) -> None:
        log.warning("configuration refused", kind=kind, name=name, reason=reason)
        if len(self._shown) >= MAX_CONDITIONS and (kind, name) not in self._shown:
            return
        self._shown[kind, name] = reason
        text = f"{kind} {name} was refused: {reason}; the previous one stays in use"
        self._conditions.set(CONDITION, text, key=f"{kind}/{name}")
