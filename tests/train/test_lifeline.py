"""The line between ranks, with real processes that only wait: the case in which nothing else helps."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from train import lifeline
from train.recipe import PROJECT

# A rank: joins, says so, and does what it is told on its standard input. Gathering goes through files: no torch, which
# takes seconds to import.
RANK = """
import json, os, sys, time
from pathlib import Path
from train import lifeline

index, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
turn = 0

def gather(value):
    global turn
    turn += 1
    written = folder / f"{turn}-{index}.partial"
    written.write_text(json.dumps(value))
    written.rename(folder / f"{turn}-{index}")
    files = [folder / f"{turn}-{other}" for other in range(world)]
    while not all(file.exists() for file in files):
        time.sleep(0.01)
    return [json.loads(file.read_text()) for file in files]

lifeline.GRACE = 0.3
lifeline.tie(index, world, gather)
gather(None)
print("ready", flush=True)
for line in sys.stdin:
    word, _, text = line.strip().partition(" ")
    if word == "fail":
        print("error: " + text, file=sys.stderr, flush=True)
        lifeline.fail(text)
        os._exit(1)
    if word == "fork" and os.fork() == 0:
        os.closerange(0, 3)  # the test's pipes
        time.sleep(3)
        os._exit(0)
    if word == "bye":
        lifeline.let_go()
        sys.exit(0)
    if word == "verdict":
        print(json.dumps(lifeline.verdict(5)), flush=True)
"""


@contextmanager
def ranks(world: int, folder: Path, **env: str) -> Iterator[list[subprocess.Popen[str]]]:
    started = []
    for index in range(world):
        own = {**os.environ, "MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": str(index % 2), **env}  # two a machine
        command = [sys.executable, "-c", RANK, str(index), str(world), str(folder)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=own, cwd=PROJECT, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
    try:
        for process in started:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def say(process: subprocess.Popen[str], text: str) -> None:
    process.stdin.write(text + "\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    code = process.wait(timeout=20)
    return code, process.stderr.read()


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank_ends_the_others_with_its_name(tmp_path, victim):
    with ranks(3, tmp_path) as running:
        say(running[victim], "fork")  # a loader process that outlives its rank holds no line
        time.sleep(0.3)
        running[victim].send_signal(signal.SIGKILL)
        others = [end(process) for index, process in enumerate(running) if index != victim]
    assert [code for code, _ in others] == [1, 1]
    told = "".join(text for _, text in others)
    assert f"error: rank {victim} " in told and "has died without a word" in told
    assert told.count("error:") == (1 if victim else 2), "once, or once a machine where rank 0 is dead"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_fails_takes_the_others_along_and_they_say_why(tmp_path, victim):
    with ranks(3, tmp_path) as running:
        say(running[victim], 'fail no room "left"')
        ends = [end(process) for process in running]
    assert [code for code, _ in ends] == [1, 1, 1]
    assert ends[victim][1] == 'error: no room "left"\n'
    teller = 0 if victim else 2  # rank 0, or where that is dead the first rank of each machine
    assert (
        f"rank {victim} (process {running[victim].pid} on {socket.gethostname()}) has ended: no room" in ends[teller][1]
    )


def test_a_rank_that_lost_a_connection_learns_which_one_died(tmp_path):
    with ranks(3, tmp_path) as running:
        running[1].send_signal(signal.SIGKILL)
        say(running[2], "verdict")
        assert json.loads(running[2].stdout.readline()).startswith("rank 1 (process ")


def test_ranks_that_end_one_after_the_other_end_well(tmp_path):
    with ranks(3, tmp_path) as running:
        for index in (1, 0, 2):
            say(running[index], "bye")
            assert end(running[index]) == (0, "")
            time.sleep(0.5)
            assert all(process.poll() in (None, 0) for process in running)


def test_strangers_on_the_port_have_no_say(tmp_path):
    with ranks(2, tmp_path) as running:
        # The first gathering's first value: port and token.
        port, _ = json.loads((tmp_path / "1-0").read_text())
        with pytest.raises(ConnectionRefusedError):  # all ranks are there, nobody else gets in
            socket.create_connection(("127.0.0.1", port), timeout=5)
        for process in running:
            say(process, "bye")
            assert end(process) == (0, "")


def test_a_stranger_who_is_early_is_turned_away(monkeypatch):
    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("a stranger ended the rank"))
    end_of_0 = lifeline.Lifeline(0, 2, "secret", listener, teller=True)
    for hello in (b'["hello", "wrong rank 1"]\n["fail", "I say so"]\n', b"GET / HTTP/1.1\r\n\r\n", b"x" * 100_000):
        with socket.create_connection(listener.getsockname()) as stranger:
            stranger.sendall(hello)
            with suppress(ConnectionResetError):
                assert stranger.recv(1) == b"", "closed by rank 0"
    assert end_of_0.reason is None
    end_of_0.let_go()


def test_ranks_that_cannot_be_tied_run_on_with_a_warning(tmp_path):
    with ranks(2, tmp_path, MASTER_ADDR="no-such-host.invalid") as running:
        for process in running:
            say(process, "bye")
        assert end(running[1]) == (0, "")
        code, text = end(running[0])
    assert code == 0 and text.startswith("warning: rank 1 cannot reach rank 0 at no-such-host.invalid")
