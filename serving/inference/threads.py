"""Threads that run functions for one event loop.

A ThreadPoolExecutor keeps two futures, two conditions and a chain of callbacks for each call. An image makes two calls,
and this takes a seventh less of the event loop's time for it.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, NamedTuple, TypeVar

T = TypeVar("T")


class _Call(NamedTuple):
    future: asyncio.Future[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def run(self) -> None:
        """Run the function, unless nobody waits for it any more. The future gets its result or its exception."""
        if self.future.cancelled():
            return
        result, error = None, None
        try:
            result = self.function(*self.arguments)
        except BaseException as caught:  # noqa: BLE001 - whatever it is, it is raised where the result is awaited
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self.future.get_loop().call_soon_threadsafe(self._finish, result, error)

    def _finish(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():  # cancelled meanwhile
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Threads:
    """Some threads, and a queue of calls before them."""

    def __init__(self, count: int, name: str) -> None:
        self._calls: Final[SimpleQueue[Callable[[], object] | None]] = SimpleQueue()
        self._threads: Final = [
            threading.Thread(target=self._work, name=f"{name}_{number}", daemon=True) for number in range(count)
        ]
        self._closed = False
        for thread in self._threads:
            thread.start()

    def run(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """Call the function in one of the threads, in turn. If the future is cancelled before that, it is not called.

        Call this in an event loop. Raises RuntimeError after `close`.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.start(_Call(future, function, arguments).run)
        return future

    def start(self, function: Callable[[], object]) -> None:
        """Call the function in one of the threads, in turn. It must not raise, and nobody waits for its result.

        Call this in any thread. Raises RuntimeError after `close`.
        """
        if self._closed:
            raise RuntimeError("the threads have ended")
        self._calls.put(function)

    def close(self) -> None:
        """Wait until all calls have ended, and end the threads."""
        self._closed = True
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while call := self._calls.get():
            call()
            del call  # otherwise its image would be in memory until the next call
