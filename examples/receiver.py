"""A receiver of callbacks that does it right: it verifies each, answers at once, and acts on each event once.

    NIGHTCOURT_SECRET=whsec_... python examples/receiver.py 8400 seen.sqlite

Ids are kept in a file, written together with the effect: after a crash an event has either had its effect or will come
again, and it never has it twice.
"""

import os
import re
import sqlite3
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from producer.client import CallbackRefused, verify_callback

SECRET = os.environ["NIGHTCOURT_SECRET"]  # noqa: TID251 - a program of the user's own
MOST_BYTES = 65_536  # callbacks have less than 1,000


class Receiver(BaseHTTPRequestHandler):
    """Answers callbacks."""

    timeout = 10

    def do_POST(self) -> None:
        """Verify, act once, answer 204; what cannot be verified gets 400, and is not acted on."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,5}", length) or int(length) > MOST_BYTES:
            self.send_error(400)  # before anything is read: nobody knows yet who sends this
            return
        body = self.rfile.read(int(length))
        try:
            event = verify_callback(body, dict(self.headers), SECRET)
        except CallbackRefused:
            self.send_error(400)
            return
        with DATABASE:  # one transaction: the id and the effect, or neither
            new = DATABASE.execute("INSERT OR IGNORE INTO seen VALUES (?)", (event.id,)).rowcount
            if new:  # the effect; yours may be anything that fits into this transaction
                DATABASE.execute("INSERT INTO effects VALUES (?, ?)", (event.data.id, event.type))
        self.send_response(204)
        self.end_headers()


PORT, FILE = int(sys.argv[1]), sys.argv[2]
DATABASE = sqlite3.connect(FILE, isolation_level="IMMEDIATE")
DATABASE.execute("CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY)")
DATABASE.execute("CREATE TABLE IF NOT EXISTS effects (object TEXT, type TEXT)")
HTTPServer(("127.0.0.1", PORT), Receiver).serve_forever()
