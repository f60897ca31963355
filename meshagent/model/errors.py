"""The one error type that reaches a person: what could not be done and why, and apart from it what to do.

Every command maps a ``MeshagentError`` to one line on stderr, a ``hint:`` line and the exit code of the
command-line contract. Anything else that escapes is a defect in this program.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the ``meshagent`` command (docs/cli.md)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_ENROLLED = 3
    UNHEALTHY = 4
    REFUSED = 5
    INTERRUPTED = 130


class MeshagentError(Exception):
    """Something could not be done.

    ``code`` is a stable kebab-case word for programs, ``message`` one line for people that says what could
    not be done and why, ``hint`` one line that says what to do, ``exit_code`` what the command returns.
    """

    def __init__(self, code: str, message: str, *, hint: str = "", exit_code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def as_dict(self) -> dict[str, str]:
        """The ``-o json`` shape: ``{"code", "message", "hint"}``."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class UsageError(MeshagentError):
    """Wrong usage or an invalid file (exit 2)."""

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(code, message, hint=hint, exit_code=ExitCode.USAGE)


class NotEnrolledError(MeshagentError):
    """This root holds no enrolment (exit 3)."""

    def __init__(self, root: str = "") -> None:
        where = f" (root {root})" if root else ""
        super().__init__(
            "not-enrolled",
            f"this host is not enrolled{where}",
            hint="join a mesh with: meshagent enroll HUB TOKEN",
            exit_code=ExitCode.NOT_ENROLLED,
        )


class RefusedError(MeshagentError):
    """Refused for safety (exit 5); ``risk`` is the word that ``--accept`` takes."""

    def __init__(self, risk: str, message: str, *, hint: str = "") -> None:
        super().__init__(
            f"refused-{risk}", message, hint=hint or f"to accept it: --accept {risk}", exit_code=ExitCode.REFUSED
        )
        self.risk = risk
