"""Which files an input is made of, and where their answers go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from geep_triton.files.shards import list_shards
from tests.files.lengths import run


def touch(folder: Path, *names: str, content: str = '{"text": "a"}\n') -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_a_folder_is_all_shards_in_it(tmp_path):
    touch(tmp_path, "b.jsonl", "a/2.jsonl", "a/10.jsonl", "A.JSONL", "c.parquet")
    touch(
        tmp_path,
        "_SUCCESS",
        ".hidden.jsonl",
        "_old/x.jsonl",
        "x.jsonl.tmp",
        "x.jsonl.partial",
        "README.md",
        "a/.cache/y.csv",
        "z.csv~",
    )
    listing = list_shards([tmp_path])
    assert [shard.name for shard in listing.shards] == ["A.JSONL", "a/10.jsonl", "a/2.jsonl", "b.jsonl", "c.parquet"]
    assert sorted(listing.left_out) == sorted(
        ["_SUCCESS", ".hidden.jsonl", "_old/x.jsonl", "x.jsonl.tmp", "x.jsonl.partial", "README.md", "a/.cache/y.csv", "z.csv~"]
    )


def test_a_folder_may_itself_be_hidden(tmp_path):
    touch(tmp_path / "_made", "a.jsonl")
    assert [shard.name for shard in list_shards([tmp_path / "_made"]).shards] == ["a.jsonl"]
    assert [shard.name for shard in list_shards([tmp_path / "_made" / "a.jsonl"]).shards] == ["a.jsonl"]


def test_patterns_are_named_from_where_they_differ(tmp_path):
    touch(tmp_path, "x/1.jsonl", "x/2.jsonl", "y/1.jsonl", "y/z/3.jsonl")
    assert [shard.name for shard in list_shards([f"{tmp_path}/*/1.jsonl"]).shards] == ["x/1.jsonl", "y/1.jsonl"]
    assert [shard.name for shard in list_shards([f"{tmp_path}/x/*"]).shards] == ["1.jsonl", "2.jsonl"]
    assert len(list_shards([f"{tmp_path}/**/*.jsonl"]).shards) == 4
    touch(tmp_path, "odd[1].jsonl")
    assert [shard.name for shard in list_shards([tmp_path / "odd[1].jsonl"]).shards] == ["odd[1].jsonl"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["none.jsonl"], "no such file: .*none.jsonl"),
        (["empty"], "empty has no files of rows .*; left out: x.tmp"),
        (["*.parquet"], "no file is called like"),
        (["a.txt"], "a.txt: unknown file type '.txt'; known: .parquet"),
        (["*"], "unknown file type"),
        (["one", "two"], "one/a.jsonl and .*two/a.jsonl would have one output, a.jsonl"),
        (["one", "one/a.jsonl"], "would have one output"),
    ],
)
def test_inputs_that_are_refused(tmp_path, inputs, message):
    touch(tmp_path, "one/a.jsonl", "two/a.jsonl", "empty/x.tmp", "a.txt")
    with pytest.raises(ValueError, match=message):
        list_shards([f"{tmp_path}/{name}" for name in inputs])
    with pytest.raises(ValueError, match="an input must be"):
        list_shards([" "])


def test_links_are_followed_once(tmp_path):
    touch(tmp_path / "data", "a/1.jsonl")
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "b.jsonl").symlink_to(tmp_path / "data" / "a" / "1.jsonl")
    assert [shard.name for shard in list_shards([tmp_path / "data"]).shards] == ["a/1.jsonl", "b.jsonl"]


def test_a_folder_that_may_not_be_read(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    touch(tmp_path, "a.jsonl", "closed/b.jsonl")
    (tmp_path / "closed").chmod(0)
    with pytest.raises(PermissionError):
        list_shards([tmp_path])


def test_outputs_have_the_names_of_their_shards(tmp_path):
    touch(tmp_path / "in", "b.jsonl", "a/2.JSONL")
    touch(tmp_path / "in", "a/c.csv", content="text\nx\n")
    run(tmp_path / "in", tmp_path / "out")
    assert names(tmp_path / "out") == ["a/2.JSONL", "a/c.csv", "b.jsonl"]


def names(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if path.parts[0] != "_geep")


def test_what_datasets_saves_beside_its_data_is_no_shard(tmp_path):
    for name in ("train/data-00000-of-00001.arrow", "train/state.json", "train/dataset_info.json", "dataset_dict.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = list_shards([tmp_path])
    assert [shard.name for shard in found.shards] == ["train/data-00000-of-00001.arrow"]
    assert found.left_out == ("dataset_dict.json", "train/dataset_info.json", "train/state.json")


def test_a_pattern_that_goes_up(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "x.jsonl").touch()
    with pytest.raises(ValueError, match="goes up after its first wildcard"):
        list_shards([tmp_path / "*" / ".." / "x.jsonl"])
    assert [shard.name for shard in list_shards([tmp_path / "a" / ".." / "*.jsonl"]).shards] == ["x.jsonl"]
