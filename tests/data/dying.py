"""A worker's work that ends as the kernel ends a process that takes too much memory."""

import os
import signal


def die(task):
    os.kill(os.getpid(), signal.SIGKILL)
