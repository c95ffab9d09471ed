"""A bar in a process that forks."""

import os
import signal

from tqdm import tqdm

from shard_tools.progress import progress_bar


def test_a_fork_that_is_killed_while_it_draws_stops_no_other_process():
    progress_bar(total=1).close()
    pid = os.fork()
    if not pid:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert tqdm.get_lock().acquire(timeout=5) is True
    tqdm.get_lock().release()
