"""The plain way, for comparison: one ORM insert and one Celery task a comparison, and an ORM update in the task.

Run as a Celery worker by `benchmarks/throughput.py`: `celery -A benchmarks.plain worker`, with BENCH_DATABASE and
BENCH_BROKER in the environment.
"""

import os
from typing import Any

from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from infra.filed import from_request
from schemas.verdict import Order
from worker import ballots, prompts
from worker.engines.simulated import SimulatedEngine

DATABASE = os.environ["BENCH_DATABASE"]  # noqa: TID251 - a program of the benchmark, not of the service
BROKER = os.environ["BENCH_BROKER"]  # noqa: TID251

app = Celery("plain", broker=BROKER)
app.conf.update(task_ignore_result=True, task_acks_late=True, worker_prefetch_multiplier=4)
database = create_engine(DATABASE.replace("postgresql:", "postgresql+psycopg:"))
engine = SimulatedEngine()

ORDERS: tuple[Order, ...] = ("ab", "ba")


class Base(DeclarativeBase):
    """The base of the one table."""


class Job(Base):
    """A comparison and its verdict in one row."""

    __tablename__ = "plain_jobs"

    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[Any] = mapped_column(JSONB)
    verdict: Mapped[Any | None] = mapped_column(JSONB)


@app.task(name="plain.judge")  # type: ignore[untyped-decorator]
def judge(job_id: int) -> None:
    """Judge one comparison."""
    with Session(database) as session:
        job = session.get_one(Job, job_id)
        question = from_request(job.body, line=0)
        scores = engine.score([engine.encode(prompts.build(question, order)) for order in ORDERS])
        cast = [ballots.ballot(order, score.log_odds, score.mass) for order, score in zip(ORDERS, scores, strict=True)]
        job.verdict = ballots.count(cast, temperature=1.0, tie_margin=None)
        session.commit()
