"""What all tables stand on: how Python types and constraint names become Postgres's."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import DateTime, Float, Integer, LargeBinary, MetaData, Sequence, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase

Moment = DateTime(timezone=True)


class Base(DeclarativeBase):
    """The base of all tables, with one way of naming constraints so that migrations can find them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as a class attribute
        str: Text,
        int: Integer,
        float: Float(53),
        datetime: Moment,
        UUID: Uuid,
        bytes: LargeBinary,
        Any: JSONB,
    }


LEASE_TOKENS = Sequence("lease_tokens", metadata=Base.metadata)
"""Where fencing tokens come from: each claim takes the next, so no two leases ever share one."""
