"""Ctrl-C and SIGTERM: training ends after its step, with a checkpoint and one line."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.utils import comm

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Terminals and launchers may both pass one request on; what comes later is another.
SAME_REQUEST_S = 1.0


class Interrupted(KeyboardInterrupt):
    """The user or the machine asked the process to end; no error, so no `Exception`.

    Args:
        signum: the signal.
        message: one line for the user; None for the signal's name, "" where another process tells.
    """

    def __init__(self, signum: int, message: str | None = None) -> None:
        super().__init__(message)
        self.signum = signum
        self.message = message

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C and 143 for SIGTERM, as shells count."""
        return 128 + self.signum


class StopRequest:
    """Whether a signal asked this process to end. The first one is obeyed when work is whole.

    Inside `deferred` it is only remembered, for `check`; elsewhere it raises `Interrupted` where it
    arrives. A second one, a second later, ends the process at once. Without `catch_signals` no
    signal is handled.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._since = 0.0
        self._is_deferred = self._is_saving = False
        self._owner = 0

    @contextmanager
    def catch_signals(self) -> Iterator[None]:
        """Handle `SIGNALS` in this process inside the block. For the main thread.

        One that is ignored stays so: shells start background commands without Ctrl-C.
        """
        self._signum, self._owner = None, os.getpid()
        heard = [signum for signum in SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
        before = {signum: signal.signal(signum, self._handle) for signum in heard}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            self._signum = None

    @contextmanager
    def deferred(self, on: bool = True) -> Iterator[None]:
        """Let the block end before a signal is obeyed; inside such a block, `on=False` undoes it.

        Raises:
            Interrupted: not `on`, and a signal has come or comes.
        """
        before, self._is_deferred = self._is_deferred, on
        try:
            if not on and self._signum is not None:
                raise Interrupted(self._signum)
            yield
        finally:
            self._is_deferred = before

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Let the block outlive a second SIGTERM: launchers send it once a process has ended."""
        self._is_saving = True
        try:
            yield
        finally:
            self._is_saving = False

    def check(self) -> None:
        """Raise `Interrupted` if a signal came to any process; every process must call it."""
        signum = self._signum or 0
        if comm.get_world_size() > 1:  # one that stopped alone would let the others wait
            signum = max(comm.all_gather(signum))
        if signum:
            raise Interrupted(signum)

    def _handle(self, signum: int, frame: Any) -> None:
        is_child = os.getpid() != self._owner
        if is_child and signum == signal.SIGINT:  # Ctrl-C reaches the loaders too: their owner acts
            return
        if not is_child and self._signum is not None:
            is_same = time.monotonic() - self._since < SAME_REQUEST_S
            if is_same or (self._is_saving and signum == signal.SIGTERM):
                return
        if is_child or self._signum is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        self._signum, self._since = signum, time.monotonic()
        if not self._is_deferred:
            raise Interrupted(signum)


STOP = StopRequest()


def heed_parent_alone(_worker_id: int = 0) -> None:
    """Let a loader process obey SIGTERM from its parent only. For that process.

    What ends a job sends it to every process: the training then needs its loaders to finish the
    step, and ends them itself. Where the system does not tell who sent a signal nothing changes.
    """
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parents_sigterm, daemon=True).start()


def _wait_for_parents_sigterm() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
