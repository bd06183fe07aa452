"""What dead and slow receivers cost the others.

How long first attempts take with all receivers alive, and with a fifth of them dead or hanging, in one run on one
stack.

A thousand receivers are a thousand loopback addresses, each an origin with a circuit of its own. Per round each is owed
one callback; both arms begin with receivers that nobody knows yet. The time is that from the transaction that ended a
comparison to the arrival at its receiver, over the same 800 receivers in both arms. Arms take turns, so that a noisy
machine is noisy for both.
"""

import asyncio
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, text

from infra import callback_secrets, docket, settings
from infra.addresses import Allowed
from infra.database import connect
from infra.filed import Filed
from infra.local.ports import free_port
from infra.local.supervisor import Stack
from infra.outcomes import Outcome
from infra.sealing import Seals
from producer import callback_endpoints
from schemas.ids import SINGLE_LINE, new_filing_id
from schemas.problems import OutcomeError
from schemas.states import Lane, OutcomeStatus

RECEIVERS = 1000
_BAD = 5
"""Every fifth is bad, one half of those dead, the other hanging."""
_ROUNDS = 3
_PER_SECOND = 50.0
_TURNS = 2
_ALLOWED = Allowed.parse(["127.0.0.0/8"])
_HANGING, _ALIVE = "127.2", "127.1"


async def _receive(port: int, file: Path) -> None:
    """Answer 204 on addresses of the living, and nothing at all on those of the hanging; note what came when."""
    with file.open("a", buffering=1) as out:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:  # somebody who only looked whether we listen
                writer.close()
                return
            if writer.get_extra_info("sockname")[0].startswith(_HANGING):
                await reader.read()  # until the sender hangs up
            else:
                now = time.time()
                writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
                await writer.drain()
                [event] = [line for line in head.split(b"\r\n") if line.lower().startswith(b"webhook-id")]
                out.write(f"{event.split(b'evt_')[1].decode()} {now}\n")
            writer.close()

        server = await asyncio.start_server(serve, "0.0.0.0", port, backlog=1024)  # noqa: S104 - all of 127.0.0.0/8
        async with server:
            await server.serve_forever()


def _run_receiver(port: int, file: Path) -> None:
    asyncio.run(_receive(port, file))


def _wait_for_receiver(port: int) -> None:
    """Wait until the receiver listens: what it missed would count as its failure."""
    while True:
        try:
            socket.create_connection((f"{_ALIVE}.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return


def _url(receiver: int, turn: int, port: int, *, bad: bool) -> str:
    """Where a receiver is: in each turn at an address that no turn before it used."""
    network = _ALIVE
    if bad and receiver % _BAD == 0:
        network, port = (_HANGING, port) if receiver % (2 * _BAD) else (_ALIVE, 1)  # nothing listens on port 1
    place = turn * RECEIVERS + receiver
    return f"http://{network}.{place // 250}.{place % 250 + 1}:{port}/hook"


def _tell(database: Engine, url: str) -> UUID:
    """File a comparison that calls back, and end it, as an API and a worker would."""
    filing_id = new_filing_id()
    comparison = Filed(
        line=SINGLE_LINE,
        custom_id=None,
        prompt="?",
        response_a="a",
        response_b="b",
        orders="both",
        profile="card",
        tie_margin=None,
        metadata={},
    )
    ended = Outcome(
        line=SINGLE_LINE,
        status=OutcomeStatus.ERRORED,
        error_code=OutcomeError.UNPARSEABLE,
        error_message="made by a benchmark",
    )
    with database.begin() as connection:
        callback_endpoints.remember(connection, tenant="default", filing_id=filing_id, url=url, allowed=_ALLOWED)
        docket.file(
            connection,
            tenant="default",
            filing_id=filing_id,
            lane=Lane.BULK,  # which no dispatcher releases outside of a batch
            comparisons=[comparison],
            notify=True,
        )
        [shard] = docket.release(connection, lane=Lane.BULK, room=10, limit=1)
        claim = docket.claim(connection, shard, worker="benchmark", lease_seconds=60)
    if claim is None:
        raise RuntimeError("somebody else claims the benchmark's shards")
    with database.begin() as connection:
        docket.finish(connection, claim.lease, [ended])
    return filing_id


def _paced(count: int) -> Iterator[int]:
    """Count at the pace of the benchmark, late or not."""
    began = time.perf_counter()
    for number in range(count):
        time.sleep(max(0.0, began + number / _PER_SECOND - time.perf_counter()))
        yield number


def _turn(database: Engine, port: int, turn: int, *, bad: bool) -> list[UUID]:
    """Owe every receiver one callback a round. Returns what was told to receivers that are alive in both arms."""
    others = []
    for number in _paced(RECEIVERS * _ROUNDS):
        receiver = number % RECEIVERS
        filed = _tell(database, _url(receiver, turn, port, bad=bad))
        if receiver % _BAD:
            others.append(filed)
    return others


def _times(database: Engine, filed: list[UUID], arrivals: dict[str, float]) -> list[float]:
    """Give the seconds from end to arrival of each."""
    with database.connect() as connection:
        rows = connection.execute(
            text("SELECT id, extract(epoch FROM at) AS at FROM callback_events WHERE subject_id = ANY(:filed)"),
            {"filed": filed},
        )
        return [arrivals[row.id.hex] - float(row.at) for row in rows if row.id.hex in arrivals]


def _arrivals(file: Path) -> dict[str, float]:
    """Read when each event first came."""
    found: dict[str, float] = {}
    for line in file.read_text().splitlines():
        event, at = line.split()
        found.setdefault(event, float(at))
    return found


def _p99(times: list[float]) -> float:
    return round(statistics.quantiles(times, n=100)[98] * 1000, 1)


def measure() -> dict[str, Any]:
    """Measure both arms in turns."""
    port = free_port()
    chosen = settings.load(engine="simulated", workers=1, log_level="warning", callback_allow=("127.0.0.0/8",))
    with tempfile.TemporaryDirectory() as folder, Stack(chosen, Path(folder) / "data", port=0) as stack:
        file = Path(folder) / "arrivals"
        file.touch()
        receiver = multiprocessing.get_context("spawn").Process(target=_run_receiver, args=(port, file), daemon=True)
        receiver.start()
        _wait_for_receiver(port)
        database = connect(stack.info.database_url, application="benchmark", pool_size=2)
        with database.begin() as connection:
            seals = Seals([(Path(folder) / "data" / "secret-keys").read_text().strip()])
            callback_secrets.rotate(connection, seals, tenant="default", endpoint=None, grace_seconds=0)
        told: dict[bool, list[list[UUID]]] = {False: [], True: []}
        for turn in range(2 * _TURNS):
            bad = turn % 2 == 1
            told[bad].append(_turn(database, port, turn, bad=bad))
        time.sleep(2)  # for what is on its way
        arrivals = _arrivals(file)
        arms: dict[str, dict[str, Any]] = {}
        for bad, name in ((False, "all_alive"), (True, "a_fifth_dead_or_hanging")):
            turns = [_times(database, filed, arrivals) for filed in told[bad]]
            times = [each for turn in turns for each in turn]
            arms[name] = {
                "told": sum(len(filed) for filed in told[bad]),
                "arrived": len(times),
                "median_ms": round(statistics.median(times) * 1000, 1),
                "p99_ms": _p99(times),
                "p99_ms_of_each_turn": [_p99(turn) for turn in turns],  # how far they lie apart is the noise
            }
        database.dispose()
        receiver.terminate()
        receiver.join()
        stack.hurry()
    ratio = arms["a_fifth_dead_or_hanging"]["p99_ms"] / arms["all_alive"]["p99_ms"]
    return {
        "receivers": RECEIVERS,
        "callbacks_per_second": _PER_SECOND,
        **arms,
        "p99_ratio": round(ratio, 3),
        "within_a_fifth": ratio <= 1.2,
    }
