"""What the tests of processes do in other processes."""

import os
import signal
import time

PATIENCE = 180  # seconds after which something will never come


def wait_for(happened):
    """Until it has; what it gave."""
    deadline = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found


def square(number):
    if number == 13:
        raise ValueError("no thirteen")
    return number * number, os.getpid()


def leave_a_mark(path):
    path.write_text(str(os.getpid()))


def mark_and_stay(path):
    leave_a_mark(path)
    time.sleep(10 * PATIENCE)


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)
