"""SIGINT and SIGTERM as a wish to stop, which is looked at where it suits; a second SIGINT ends the process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """The signal that asked this process to stop, if any.

    Attributes:
        number: of the last such signal, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def listen(self) -> None:
        """Take both signals; to be called again after `ray.init`, which takes SIGTERM for itself."""
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Listen inside; afterwards the handlers are those of before. Deaf outside the main thread."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    found = StopSignal()
    found.listen()
    try:
        yield found
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
