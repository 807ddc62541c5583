"""Work that runs ahead of its consumer, in threads."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")


def prefetch(iterator: Iterable[Item], depth: int = 2) -> Generator[Item, None, None]:
    """Run an iterator in a background thread, up to `depth` items ahead of the consumer.

    The thread starts when the first item is requested. An exception in the iterator is raised in the consumer, after
    the items before it. If the consumer stops early (break, close, garbage collection), the thread finishes its current
    item, closes the iterator and ends.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, not {depth}")
    return _prefetch(iterator, depth)


def _prefetch(iterator: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: Item | None, error: BaseException | None, is_end: bool) -> None:
        while not stopped.is_set():
            try:
                return ready.put((item, error, is_end), timeout=0.1)
            except queue.Full:
                pass

    def produce() -> None:
        error = None
        try:
            for item in iterator:
                put(item, None, False)
                if stopped.is_set():
                    break
        except BaseException as raised:  # re-raised in the consumer
            error = raised
        finally:
            # A generator may only be closed by the thread that runs it.
            getattr(iterator, "close", lambda: None)()
            put(None, error, True)

    thread = threading.Thread(target=produce, name="vxl2-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error, is_end = ready.get()
            if error is not None:
                raise error
            if is_end:
                return
            yield item
    finally:
        stopped.set()
        thread.join()


def map_ahead(
    function: Callable[[Any], Any], items: Iterable[Any], threads: int, ahead: int = 2
) -> Generator[Any, None, None]:
    """`map(function, items)` in threads, up to `ahead` items per thread before the consumer; the same item twice in a row is
    computed once."""
    if threads == 1:
        yield from map(function, items)
        return
    waiting, previous = deque[Future](), None
    with ThreadPoolExecutor(threads, "vxl2-convert") as pool:
        try:
            for item in items:
                if previous is None or previous[0] is not item:
                    previous = item, pool.submit(function, item)
                waiting.append(previous[1])
                while len(waiting) > ahead * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
