"""One Ray on 127.0.0.1 for all tests, and a tiny model in a folder."""

from __future__ import annotations

import os

# Before Ray is imported: nothing listens to other machines, and nobody is told of these tests.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from geep_triton import Engine, build_exit_table
from geep_triton.modeling.model import MultiExitBert
from geep_triton.serving.ray.cluster import connected
from tests.conftest import TEXTS, tiny_config

CPUS = 2  # of a node, as far as Ray knows
NODE = {"num_cpus": CPUS, "object_store_memory": 100 << 20}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Everywhere, since answers may differ in their last bits where the numbers of threads differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster(one_thread) -> Iterator[Any]:
    """A cluster of one node, which may get others, to which this process is connected."""
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        with connected(found.address):  # it leaves SIGTERM alone, of which Ray would make a failure of the test that runs
            ray.data.DataContext.get_current().enable_progress_bars = False
            yield found
    finally:
        found.shutdown()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer) -> Path:
    """Folder of a tiny model with an exit table."""
    torch.manual_seed(1)
    model = MultiExitBert(tiny_config(pooling="mean")).eval()
    with torch.no_grad():
        for head in model.heads.values():
            head.classifier.weight.mul_(2)
    model.exit_table = build_exit_table(model, tokenizer, TEXTS * 4, 0.8, progress=False)
    folder = tmp_path_factory.mktemp("ray") / "model"
    Engine(model, tokenizer).save_pretrained(folder)
    return folder
