"""A child of the tests' process that runs no more, and keeps its connections."""

import os
import signal


def freeze(pid: int) -> None:
    """It has stopped, with all its threads: kill(2) returns before, and one of them may answer yet. See wait(2)."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
