"""The folder of a long call: a kill leaves what the same call goes on from, or nothing."""

from __future__ import annotations

import shutil

import pytest

from geep_triton.unfinished import RECORD, unfinished


class Killed(BaseException):
    pass


def test_a_kill_while_the_folder_of_a_call_that_is_done_is_removed(tmp_path, monkeypatch):
    """Whatever file is removed first, the same call can be made again, and leaves nothing behind."""
    folder = tmp_path / "call"

    def killed(path, **_):
        if (path / RECORD).is_file():
            (path / RECORD).unlink()
            raise Killed

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Killed), unfinished(folder, {"seed": 1}):
        (folder / "checkpoint").touch()
    monkeypatch.undo()
    with unfinished(folder, {"seed": 1}):
        assert [path.name for path in folder.iterdir()] == [RECORD]
    assert list(tmp_path.iterdir()) == []
