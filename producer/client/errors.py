"""What a client raises, worded for a person."""

from schemas.comparison import Comparison
from schemas.problems import ProblemDocument


class ClientError(Exception):
    """Anything that a client raises about a call, worded for a person."""


class ServerProblem(ClientError):  # noqa: N818 - RFC 9457's own word; the names below say what is the matter
    """The server said no. `document` is what it sent, `status` the HTTP status, `code` a code that never changes."""

    def __init__(self, document: ProblemDocument) -> None:
        super().__init__(document)
        self.document, self.status, self.code = document, document.status, document.code

    def __str__(self) -> str:
        return f"{self.document.title}: {self.document.detail}"


class InvalidRequest(ServerProblem, ValueError):  # noqa: N818
    """The server would say no, so it was not asked: `document.errors` names each field at fault, in its words."""


class ServerUnreachable(ClientError):  # noqa: N818
    """Nothing answered, at any attempt."""


class UnexpectedAnswer(ClientError):  # noqa: N818
    """What answered was not nightcourt: another program, a proxy, or a server of another version."""


class NotDecided(ClientError, TimeoutError):  # noqa: N818
    """The time is up. The comparison stays filed; `comparison` is how it stood, with the id to go on waiting for."""

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison)
        self.comparison = comparison

    def __str__(self) -> str:
        return (
            f"{self.comparison.id} was still {self.comparison.status} when the time to wait was over. It stays filed "
            "and will be judged; wait for it again. Is a worker running? `nightcourt doctor` tells."
        )
