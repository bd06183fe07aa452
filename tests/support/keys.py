"""Keys for tests, made straight in a database, and the header that each is sent in."""

from collections.abc import Collection
from typing import Any

from infra.database import connect
from producer import keys
from schemas.keys import Scope


def a_key(
    database_url: str, *, tenant: str = "default", scopes: Collection[Scope] = (Scope.ADMIN,), **more: Any
) -> str:
    """Make a key; what more `producer.keys.create` takes may be given."""
    database = connect(database_url, application="test", pool_size=1)
    try:
        with database.begin() as connection:
            return keys.create(connection, tenant=tenant, scopes=scopes, **more).key
    finally:
        database.dispose()


def bearer(key: str) -> dict[str, str]:
    """The header that a key is sent in."""
    return {"Authorization": f"Bearer {key}"}
