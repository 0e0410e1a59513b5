"""What a real Ray of two nodes answers is what one process answers, whatever dies."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geep_triton import Engine
from geep_triton.engine.source import EngineSource
from geep_triton.files.answerer import BadRow
from geep_triton.files.json_lines import BadLine
from geep_triton.files.run import answer_files
from geep_triton.files.run_folder import RunFolder
from geep_triton.files.settings import Settings
from geep_triton.files.targets import RUN
from geep_triton.over_files.predicting import predict_files
from geep_triton.policies.text import describe, parse_policy
from geep_triton.serving.ray.cluster import connected
from geep_triton.serving.ray.crew import ray_crew
from geep_triton.serving.ray.deployment import deployment
from geep_triton.serving.ray.placing import ActorKind, numbered, place, plan
from geep_triton.serving.ray.pool import ActorSize
from geep_triton.serving.ray.predicting import predict_files_by_ray
from tests.cli.commands import command, environment
from tests.conftest import TEXTS
from tests.serving.conftest import ask_at
from tests.serving.ray.conftest import CPUS, NODE
from tests.serving.ray.hurdles import PATIENCE, Hurdles, until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray itself
POLICY = "threshold:0.8,regroup=always"  # which repeats bit by bit
SETTINGS = Settings(window=16)
WHOLE_NODE = ActorSize(CPUS)
SHARDS = 5
PAD = bytes(700_000)  # in a shard's first row, so that shards are too large to be answered together


def many_texts(count: int) -> list[str]:
    words, generator = " ".join(TEXTS).split(), random.Random(0)
    return [" ".join(generator.choices(words, k=generator.randint(1, 12))) for _ in range(count)]


def shards(folder: Path, rows: int) -> Path:
    folder.mkdir()
    for shard in range(SHARDS):
        ids = range(shard * rows, (shard + 1) * rows)
        table = {"id": ids, "text": many_texts(SHARDS * rows)[ids.start : ids.stop], "pad": [PAD, *[b""] * (rows - 1)]}
        pq.write_table(pa.table(table), folder / f"{shard}.parquet", compression=None, use_dictionary=False)
    return folder


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_an_actor_and_a_node_die_in_the_middle(cluster, saved, tmp_path):
    source, whole, out = shards(tmp_path / "in", 80), tmp_path / "whole", tmp_path / "out"
    predict_files(Engine.from_pretrained(saved, POLICY), [source], whole, settings=SETTINGS, tell=print)
    marks = tmp_path / "marks"
    marks.mkdir()
    doomed = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    at_the_end_of_0 = many_texts(SHARDS * 80)[79]
    hurdles, told = Hurdles(marks, at_the_end_of_0, doomed.node_id), []

    def remove_node() -> None:
        until((marks / "waits").exists)
        cluster.remove_node(doomed)

    remover = threading.Thread(target=remove_node)
    remover.start()
    with ray_crew(EngineSource(str(saved), POLICY), hurdles, told.append, 2, WHOLE_NODE) as crew:
        report = answer_files(crew, [source], out, SETTINGS, crew.manifest, tell=told.append)
    remover.join(PATIENCE)
    assert {path.name for path in marks.iterdir()} == {"died", "waits"}
    assert (report.rows, report.answered, report.shards) == (SHARDS * 80, SHARDS * 80, SHARDS)
    assert len([line for line in told if line.startswith("an actor died, another goes on with")]) == 2, told
    assert len([line for line in told if line.startswith("continuing after row ")]) == 2, told
    assert outputs(out) == outputs(whole)
    assert [path for path in out.rglob("*") if "partial" in path.name] == []
    pq.write_table(pa.table({"id": [9], "text": ["bad"], "pad": [b""]}), source / "new.parquet")
    again = predict_files(Engine.from_pretrained(saved, POLICY), [source], out, settings=SETTINGS, tell=told.append)
    assert (again.answered_before, again.shards, again.rows) == (SHARDS, SHARDS + 1, SHARDS * 80 + 1)


def test_a_driver_that_is_killed_goes_on(cluster, saved, tmp_path):
    """Begun by Ray, killed, gone on with by one process, while the actors of the killed one may still be at work.

    How far these come until they end is theirs to say, so that no more than what was done at the kill is known.
    """
    source, whole, out = shards(tmp_path / "in", 200), tmp_path / "whole", tmp_path / "out"
    window = Settings(window=4)
    predict_files(Engine.from_pretrained(saved, POLICY), [source], whole, settings=window, tell=print)
    given = ["--policy", POLICY, "--window", 4, "--ray", cluster.address, "--actors", 1]
    line = command("predict", saved, source, "-o", out, *given)
    process = subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    run = RunFolder(out / RUN, begun=True, holder="")
    until(lambda: any(record.written for record in run.records().values()) or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL, said
    report = predict_files(Engine.from_pretrained(saved, POLICY), [source], out, settings=window, tell=print)
    assert (report.rows, report.answered) == (SHARDS * 200, SHARDS * 200)
    assert report.answered_before > 0
    assert outputs(out) == outputs(whole)


def test_shallow_and_deep_texts_by_two_kinds_of_actors(cluster, saved, monkeypatch):
    """Each row has the answer that the engine gives it alone, and the order column has the rows back in order."""
    import ray

    monkeypatch.chdir(saved.parent)  # where actors are not
    texts = [*many_texts(300), *TEXTS]
    rows = ray.data.from_arrow([pa.table({"text": part.tolist()}) for part in np.array_split(np.array(texts), 5)])
    ordered = numbered(rows)
    planned = plan(ordered, saved.name, batch_size=64)
    kinds = [ActorKind(EngineSource(saved.name, POLICY), speed=speed, cpus=0.5) for speed in (3.0, 1.0)]
    found = place(planned, *kinds, batch_size=64).sort("order").to_pandas()
    assert found["text"].tolist() == texts
    expected = Engine.from_pretrained(saved, POLICY).predict(texts)
    assert found["label"].tolist() == expected.labels
    assert found["exit_layer"].tolist() == expected.exit_layers.tolist()
    np.testing.assert_allclose(found["score"], expected.probabilities.amax(-1).numpy(), rtol=1e-5)
    nothing = numbered(rows.limit(0)).materialize()
    assert place(nothing, *kinds).sort("order").take_all() == []


def test_rows_are_numbered_in_the_order_in_which_they_are_read(cluster, tmp_path):
    """Though the first are the last to be there."""
    import ray

    def slow_at_first(rows: pa.Table) -> pa.Table:
        time.sleep(2.0 if rows["id"][0].as_py() == 0 else 0.0)
        return rows

    for number in range(4):
        pq.write_table(pa.table({"id": range(10 * number, 10 * number + 10)}), tmp_path / f"{number}.parquet")
    read = ray.data.read_parquet(str(tmp_path), override_num_blocks=4)
    found = numbered(read.map_batches(slow_at_first, batch_format="pyarrow")).sort("order").to_pandas()
    assert found["id"].tolist() == found["order"].tolist() == list(range(40))


def test_a_deployment_answers_as_the_server_does(cluster, saved):
    from ray import serve

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(deployment(EngineSource(str(saved), POLICY), ray_actor_options={"num_cpus": 1}))
        url = f"http://127.0.0.1:{port}"
        expected = Engine.from_pretrained(saved, POLICY).predict(TEXTS)
        status, answers = ask_at(url, "/predict", {"inputs": [[text] for text in TEXTS]})
        assert status == 200
        assert [answer[0]["label"] for answer in answers] == expected.labels
        assert ask_at(url, "/predict", {"inputs": ""})[0] == 400
        assert ask_at(url, "/info")[1]["policy"] == describe(parse_policy(POLICY))
    finally:
        serve.shutdown()


def test_shares_of_a_core_are_counted_as_ray_counts_them(cluster):
    assert ActorSize(0.1).room() == 10 * CPUS


def test_errors_of_actors_are_those_of_one_process(cluster, saved, tmp_path):
    source = shards(tmp_path / "in", 8)
    pq.write_table(pa.table({"id": [1, 2], "text": ["good", ""], "pad": [PAD, b""]}), source / "2.parquet")
    with pytest.raises(BadRow, match=r"2\.parquet, row 2 ") as found:
        predict_files_by_ray(EngineSource(str(saved), POLICY), [source], tmp_path / "out", actors=1, tell=print)
    assert type(found.value) is BadRow
    assert not [path for path in (tmp_path / "out").rglob("*") if "partial" in path.name]


def test_a_line_that_is_no_row_is_told_and_kills_no_actor(cluster, saved, tmp_path):
    (tmp_path / "in.csv").write_text("text,id\ngood,1\ngood,2,3\n")
    told: list[str] = []
    with pytest.raises(BadLine, match=r"in\.csv, line 3"):
        predict_files_by_ray(EngineSource(str(saved), POLICY), [tmp_path / "in.csv"], tmp_path / "out.csv", tell=told.append)
    assert not [message for message in told if "died" in message]


def test_an_address_that_is_none_is_refused(cluster):
    with pytest.raises(ValueError, match="connected to a Ray cluster already"), connected("local"):
        pass
    for odd in ("ray://127.0.0.1:10001", "local:6379", "localhost", "127.0.0.1:port", "127.0.0.1:65536", ""):
        with pytest.raises(ValueError, match="HOST:PORT|no Ray cluster at local:6379"), connected(odd):
            pass
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(ValueError, match="no Ray cluster at 127"), connected(f"127.0.0.1:{nobody.getsockname()[1]}"):
            pass
    with (
        pytest.raises(ValueError, match="large enough"),
        ray_crew(EngineSource("m"), Hurdles(Path(), "", ""), print, size=ActorSize(99)),
    ):
        pass
