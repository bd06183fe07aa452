"""A process of the service with one of its protections taken out: `python without.py fence worker.app`.

Each is a piece of the docket's SQL. What is taken out is all that is changed: the rest is the program as it is.
"""

import runpy
import sys

from sqlalchemy import TextClause, text

from infra import docket_sql

PROTECTIONS = {
    # Whoever held a shard once may write about it for ever.
    "fence": ("AND shards.lease_token = :token", "AND (shards.lease_token = :token OR true)"),
    # Nobody sees that a lease has run out.
    "sweeper": ("state = 'running' AND lease_until < now()", "state = 'running' AND false"),
    # A claim leaves no trace of having been made.
    "attempts": ("attempt = attempt + 1", "attempt = attempt"),
}
"""What is found, and what it is replaced by."""


def take_out(protection: str) -> None:
    """Change every statement of the docket that a protection stands in."""
    found, replaced = PROTECTIONS[protection]
    for name, statement in vars(docket_sql).items():
        if isinstance(statement, TextClause) and found in statement.text:
            setattr(docket_sql, name, text(statement.text.replace(found, replaced)))


if __name__ == "__main__":
    _, protection, module, *arguments = sys.argv
    take_out(protection)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
