"""How a process of the service hears that it is to end."""

import subprocess
import sys

LISTENING = """
import os, signal, sys, threading, time
from producer.cli.processes import told_to_end

sys.setswitchinterval(0.0001)

def tell():
    time.sleep(0.001)
    os.kill(os.getpid(), number)

for number in (signal.SIGTERM, signal.SIGINT) * 25:
    stop = told_to_end()
    threading.Thread(target=tell).start()
    while not stop.wait(0):
        pass
"""


def test_a_signal_ends_a_process_whatever_it_interrupts():
    """Each of fifty signals is heard that come while their process does nothing but look whether one has come."""
    ended = subprocess.run([sys.executable, "-c", LISTENING], check=False, timeout=60)
    assert ended.returncode == 0
