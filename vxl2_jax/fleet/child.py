"""A worker process of `pool`: `python -m vxl2_jax.fleet.child NUMBER`, with a connection to its driver open under NUMBER.

The driver sends the place, the recipe, then items one after another; `FLUSH` says that none follows until the last one's
row is there. Replies are pairs: (READY, (about, seconds)), (ROW, (row, seconds)), (WARNING, text), (FAILED, error).
When the connection ends, the driver has ended, and so does this process. An error that nobody expected ends it too, after
its traceback on standard error.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from vxl2_jax.errors import ToyModelWarning, Vxl2Error
from vxl2_jax.fleet.places import Place

READY, ROW, WARNING, FAILED = "ready", "row", "warning", "failed"
FLUSH = b""
"""Sent in the place of an item."""


def main() -> None:
    """Serve until the driver closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the driver's children, too
    driver = Connection(int(sys.argv[1]))
    try:
        place: Place = driver.recv()
        if place.cores:
            os.sched_setaffinity(0, place.cores)  # before a library counts them
        _serve(driver, place, driver.recv_bytes())
    except (EOFError, OSError):  # the driver has ended
        os._exit(0)


def _serve(driver: Connection, place: Place, recipe: bytes) -> None:
    _pass_on_warnings(driver)
    inbox = _inbox(driver)  # before the model is loaded, which takes minutes: a process without a driver must end
    try:
        started = time.perf_counter()
        if place.device:
            from vxl2_jax import hardware  # imports JAX, which the recipe of a test can do without

            hardware.use_device(place.device)
        worker = pickle.loads(recipe)()
    except Vxl2Error as error:
        return driver.send((FAILED, error))
    except Exception:
        return driver.send((FAILED, traceback.format_exc()))
    driver.send((READY, (worker.about, time.perf_counter() - started)))
    while True:
        since = [0.0]  # when the item that is worked on came, or the row before it was ready
        try:
            for row in worker.rows(_contents(inbox, since)):
                now = time.perf_counter()
                driver.send((ROW, (row, now - since[0])))
                since[0] = now
        except Vxl2Error as error:  # what would fail every item
            return driver.send((FAILED, error))


def _inbox(driver: Connection) -> queue.Queue[bytes]:
    """What the driver sends. A thread waits for it, so that the process ends with the driver whatever it is doing."""
    inbox: queue.Queue[bytes] = queue.Queue()

    def receive() -> None:
        try:
            while True:
                inbox.put(driver.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=receive, name="vxl2-inbox", daemon=True).start()
    return inbox


def _contents(inbox: queue.Queue[bytes], since: list[float]) -> Iterator[Any]:
    """The contents up to the next FLUSH. since: receives when the first of them came."""
    while (message := inbox.get()) != FLUSH:
        since[0] = since[0] or time.perf_counter()
        yield pickle.loads(message)


def _pass_on_warnings(driver: Connection) -> None:
    """Send the warnings that users are to see; others go to standard error, whose end the driver reads after a death."""
    warnings.simplefilter("once", ToyModelWarning)
    show = warnings.showwarning

    def send(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, ToyModelWarning):
            driver.send((WARNING, str(message)))
        else:
            show(message, category, *place, **more)

    warnings.showwarning = send


if __name__ == "__main__":
    main()
