"""One way of logging for everything in a process: our own lines, uvicorn's, Celery's and any library's.

Event names are static, and values are ids, sizes and times: a prompt, a response, a key or a secret never reaches a
line. Libraries that would log contents at debug level are kept at warning.
"""

import logging
import sys
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor

REQUEST_ID = "request_id"
"""The name under which a request's id is bound, in the HTTP process and later in the worker's lines."""

# At debug level these print message bodies, statement parameters or wire traffic: other people's text.
_DISCREET = (
    "kombu",
    "amqp",
    "celery.app.trace",
    "sqlalchemy",
    "psycopg",
    "httpcore2",
    "httpx2",
    "asyncio",
    "alembic",
)


def _drop_colour_message(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Drop uvicorn's second copy of each message, made for terminals."""
    event.pop("color_message", None)
    return event


def configure(*, process: str, level: str, style: Literal["auto", "console", "json"]) -> None:
    """Set up logging for this process, on standard error. The composition root calls it first.

    Args:
        process: which process this is; stands in every line.
        level: "debug", "info", "warning" or "error".
        style: "console" for people, "json" for programs, "auto" to tell by whether standard error is a terminal.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _drop_colour_message,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    on_terminal = style == "console" or (style == "auto" and sys.stderr.isatty())
    renderer: list[Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if on_terminal
        else [_plain_exception, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _DISCREET:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "celery"):
        library = logging.getLogger(name)
        library.handlers = []
        library.propagate = True
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(process=process)


def _plain_exception(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Write an exception as its type and where it was raised, without its message.

    A library's message may quote what it choked on: a database error repeats the row.
    """
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    if isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    if isinstance(info, tuple) and info[0] is not None:
        frames = []
        trace = info[2]
        while trace is not None:
            code = trace.tb_frame.f_code
            frames.append(f"{code.co_filename}:{trace.tb_lineno} {code.co_name}")
            trace = trace.tb_next
        event["exception"] = f"{info[0].__module__}.{info[0].__qualname__}"
        event["frames"] = frames[-12:]
    return event
