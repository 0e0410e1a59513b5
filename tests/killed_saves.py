"""Saves that are killed: at every change to files, and KILLS times after START + k STEP seconds, whatever is done then; a
longer campaign is `python -m bench.faults`. In a process of its own, since a fork keeps no other threads than its own.

python -m tests.killed_saves FOLDER: tries every change to files, and KILLS moments.
python -m tests.killed_saves FOLDER --on-and-on: saves one over the other until it is killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import TEXTS, WORDS  # first: it chooses Triton's interpreter

from transformers import BertTokenizer  # isort: skip
from transformers.utils.logging import disable_progress_bar  # isort: skip

from geep_triton import Engine
from geep_triton.saving import PARTIAL, WHOLE
from tests.saved_pair import FILES, make_engines, which

KILLS = 25
START = 0.05
STEP = 0.004
PATIENCE = 20.0  # seconds for a save that takes a fraction of one
MOST_STUCK = 4

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree"}


def in_child(action: Callable[[], None]) -> int:
    """Run in a forked process, which ends by os._exit; its number."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(1)
    return child


def status_of(child: int) -> int | None:
    """How a child ended; None for one that a lock held when it was forked has stopped, which is killed."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def die_at(count: int) -> None:
    """Have this process end at its so many-th change to files."""
    left = [count]

    def hook(event: str, arguments: tuple) -> None:
        if event in CHANGES or (event == "open" and set(str(arguments[1])) & set("wxa")):
            left[0] -= 1
            if not left[0]:
                os._exit(9)

    sys.addaudithook(hook)


def at_any_change(engines: list[Engine], folder: Path, work: Path) -> None:
    """Whichever change to files a save is killed at, one model is whole, and the next save leaves nothing of the killed one."""
    seen, status, count, stuck = [], 9, 0, 0
    while status != 0:
        count += status == 9
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder, work)

        def save(count: int = count) -> None:
            die_at(count)
            engines[1].save_pretrained(work)
            os._exit(0)

        status = status_of(in_child(save))
        stuck += status is None
        assert status in (0, 9, None), status
        assert stuck < MOST_STUCK, count
        seen.append(which(work, engines))
        assert seen[-1] in ("AAA", "BBB"), (count, seen)
        assert not (work / WHOLE).exists()
        Engine.from_pretrained(work)
        engines[1].save_pretrained(work)
        assert {path.name for path in work.iterdir()} == FILES, count
    assert seen == sorted(seen), seen
    assert set(seen) == {"AAA", "BBB"}, seen
    assert len(seen) > 15, seen


def on_and_on(engines: list[Engine], folder: Path) -> None:
    """Save one over the other."""
    while True:
        for engine in reversed(engines):
            engine.save_pretrained(folder)


def at_any_time(engines: list[Engine], folder: Path) -> None:
    """As above, by SIGKILL while one model is saved over the other again and again."""

    for kill in range(KILLS):
        child = in_child(lambda: on_and_on(engines, folder))
        time.sleep(START + STEP * kill)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert which(folder, engines) in ("AAA", "BBB"), kill
    assert len(list(folder.glob(f"{PARTIAL}*"))) <= 1


def main() -> None:
    """Raises AssertionError where a killed save leaves a mixture."""
    disable_progress_bar()  # bars share a lock with the processes that are killed
    where = Path(sys.argv[1])
    engines = make_engines(BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}), TEXTS)
    if "--on-and-on" in sys.argv:
        print("saving", flush=True)
        on_and_on(engines, where)
    engines[0].save_pretrained(where / "model")
    at_any_change(engines, where / "model", where / "work")
    at_any_time(engines, where / "model")


if __name__ == "__main__":
    main()
