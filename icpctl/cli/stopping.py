"""How a command is stopped: it saves, says so, and leaves with the status of the signal."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from icpctl.cli.output import complain, notice, pipe_is_closed


@contextmanager
def stoppable(
    way_on: str = "The same command goes on from here.",
    what: str = "saving",
    unsaved: str = "The same command goes on from the last checkpoint.",
) -> Iterator[Callable[[], bool]]:
    """Ctrl-C, SIGTERM, a terminal or a pipe that is closed let the batch end, save, and leave with 130, 143, 129 or 141;
    a second signal leaves at once, without saving, and says so. More of them do not disturb what is left to do then: a word in
    status.json, say.
    """
    received: list[int] = []
    # In a thread, as what a signal has interrupted may be writing at this moment.
    saying = threading.Thread(target=notice, args=("Stopping,", f"{what} …"))

    def stop(number: int, _: FrameType | None) -> None:
        if received and number == signal.SIGHUP:  # that comes by itself with another one
            return
        received.append(number)
        if len(received) == 2:
            sys.exit(128 + number)
        if len(received) == 1:
            saying.start()

    heeded = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        heeded.append(signal.SIGHUP)
    before: Mapping[int, Any] = {number: signal.signal(number, stop) for number in heeded}

    def should_stop() -> bool:
        return bool(received) or pipe_is_closed()

    try:
        yield should_stop
    except KeyboardInterrupt:
        complain("Saved.", way_on)
        reason = signal.SIGPIPE if pipe_is_closed() else signal.SIGTERM  # or another process of the run was asked
        sys.exit(128 + (received or [reason])[0])
    except SystemExit:
        if len(received) > 1:
            with suppress(RuntimeError):  # it is about to begin at this moment
                saying.join(timeout=1)
            complain("Stopped without saving.", unsaved)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
