"""What the processes of a pool do first: leave Ctrl-C to their parent, and end when the parent does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def begin_worker() -> None:
    """For the initializer of a pool of processes.

    Ctrl-C reaches all processes of a terminal; it is the parent that answers, and ends its workers. A parent that is
    killed cannot do that: its workers notice and end themselves, instead of working on for nobody in a folder that
    another run may continue.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
