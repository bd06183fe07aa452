"""Who is asking: the tenant that a key belongs to, and what the key may do."""

from dataclasses import dataclass, field

from schemas.keys import KeyLimits, Scope


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request."""

    tenant: str
    key_id: str
    scopes: frozenset[Scope]
    limits: KeyLimits = field(default_factory=KeyLimits)

    def may(self, scope: Scope) -> bool:
        """Whether the caller's key has a scope, of itself or as `admin`."""
        return scope in self.scopes or Scope.ADMIN in self.scopes
