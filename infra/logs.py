"""One way of logging for everything in a process: our own lines, uvicorn's, Celery's and any library's.

Event names are static, and values are ids, sizes and times: a prompt, a response, a key or a secret never reaches a
line. Of what libraries log, the fixed words and the numbers are kept: their texts may quote a message or a header,
and so may the message of an exception or of a warning, of which its kind and place are kept. Libraries that would
log contents at debug level are kept at warning.
"""

import logging
import sys
import threading
import warnings
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, TextIO

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
    "redis",
    "opentelemetry",
    "urllib3",
)


def configure(*, process: str, level: str, style: Literal["auto", "console", "json"]) -> None:
    """Set up logging for this process, on standard error. The composition root calls it first.

    Args:
        process: which process this is; stands in every line.
        level: "debug", "info", "warning" or "error".
        style: "console" for people, "json" for programs, "auto" to tell by whether standard error is a terminal.
    """

    def name_process(_logger: Any, _method: str, event: EventDict) -> EventDict:
        # Not bound to the context, which no other thread would see.
        event["process"] = process
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        name_process,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    on_terminal = style == "console" or (style == "auto" and sys.stderr.isatty())
    renderer: list[Processor] = (
        [_one_text, structlog.dev.ConsoleRenderer()] if on_terminal else [structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_fixed_words, *shared],
            use_get_message=False,
            pass_foreign_args=True,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _plain_exception, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
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
    _catch_the_rest()


def _fixed_words(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Keep the fixed words of a library's line and the numbers among its arguments.

    Celery quotes whole messages that way, and its `extra` repeats their arguments, which is why no `extra` is read.
    Only the first line is kept: asyncio writes what it choked on below it.
    """
    arguments = event.pop("positional_args", None)
    words = event["event"]
    if arguments:
        with suppress(TypeError, ValueError, KeyError):  # the words alone, then
            words %= (
                {name: _number(value) for name, value in arguments.items()}
                if isinstance(arguments, Mapping)
                else tuple(_number(value) for value in arguments)
            )
    event["event"] = words.strip().partition("\n")[0]
    return event


def _number(value: object) -> object:
    if isinstance(value, BaseException):
        return type(value).__name__
    return value if isinstance(value, int | float) else "..."


def _catch_the_rest() -> None:
    """Log what Python itself would print to standard error: uncaught exceptions and warnings."""
    log = structlog.get_logger("python")

    def uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error or kind(), trace)
        else:
            log.critical("uncaught_exception", exc_info=(kind, error, trace))

    def warned(
        message: Warning | str,  # noqa: ARG001 - pydantic's quote the value
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG001
        line: str | None = None,  # noqa: ARG001
    ) -> None:
        log.warning("python_warning", category=category.__name__, where=f"{filename}:{lineno}")

    def in_a_thread(caught: threading.ExceptHookArgs) -> None:
        if caught.exc_type is not SystemExit:
            uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)

    sys.excepthook = uncaught
    sys.unraisablehook = lambda caught: uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)
    threading.excepthook = in_a_thread
    warnings.showwarning = warned


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


def _one_text(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Put the frames of an exception below its name, as people read them."""
    frames = event.pop("frames", None)
    if frames:
        event["exception"] = "\n  ".join([event["exception"], *frames])
    return event
