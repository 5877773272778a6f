"""Ends every process of a batch when the batch ends, however it ends.

    python -m booktools.guard COMMAND ...

runs COMMAND in a process group of its own, whose leader the caller has made this process. Standard
input is a pipe that the caller holds open and never writes to: when the caller is gone, killed or
not, the pipe ends, and so does the group. Without this a killed batch leaves its engine and its
notebooks running. (Kernels are in groups of their own; they stop by themselves when the process
that started them has gone.) The lock on the folder of runs is open here too, so that no new batch
starts before the old one is dead.
"""

import os
import signal
import subprocess
import sys
import threading


def end_group():
    os.killpg(os.getpgrp(), signal.SIGKILL)  # this process is in it


def wait_for_the_caller():
    sys.stdin.buffer.read()
    end_group()


if __name__ == "__main__":
    if os.getpgrp() != os.getpid():
        sys.exit("guard: must lead a process group of its own")
    threading.Thread(target=wait_for_the_caller, daemon=True).start()
    try:
        subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL)
    finally:
        end_group()
