"""Planned paths, schedules of those who skip, and ways of skipping that are refused."""

from __future__ import annotations

import math

import pytest
import torch

from geep_triton import Engine, build_exit_table
from geep_triton.engine.batching import schedule
from geep_triton.engine.costs import LayerCosts
from geep_triton.policies.skip import Skip
from geep_triton.table.exit_table import ExitTable
from geep_triton.table.paths import choose_paths, common_paths
from tests.conftest import WORDS


def test_paths_by_hand():
    skipped = torch.tensor([[0, 1], [1, 1], [0, 1], [0, 0], [1, 1], [0, 1]], dtype=torch.bool)
    paths = common_paths(skipped, 2)
    assert paths.tolist() == [[False, True], [True, True]]
    assert common_paths(skipped, 9).shape == (3, 2)
    # P(path) for p = (.9, .6): (0, 1) .1 * .6, (1, 1) .9 * .6; a layer's price of 5 nats makes skipping both worth while.
    probabilities = torch.tensor([[0.9, 0.6], [0.1, 0.6], [0.0, 0.0]])
    assert choose_paths(probabilities, paths).tolist() == [1, 0, 0]
    assert choose_paths(probabilities, paths, price=5.0).tolist() == [1, 1, 0]
    assert choose_paths(probabilities, paths, price=-50.0).tolist() == [0, 0, 0]


def test_planned_learns_what_tokens_tell(skipper, tokenizer):
    """Where one word decides what is skipped, the table finds it."""
    words = {"good": [True, False, True, False], "bad": [False, True, False, False]}
    texts = [f"{word} {' '.join(WORDS[8 + i : 10 + i])}" for i in range(20) for word in words]
    table = build_exit_table(skipper, tokenizer, texts, 0.8, progress=False, learn=("skips",))
    records = table.records
    told = torch.tensor([words[text.split()[0]] for text in texts])
    table = ExitTable.from_records(
        type(records)(records.tokens, records.uncertainty, records.agrees, told),
        table.exit_layers, table.settings, table.vocab_size, table.fingerprint, table.special_ids,
    ).learn("skips", epochs=200)  # fmt: skip
    paths = table.learned["skips"].paths
    chosen = paths[choose_paths(table.predict_skips(records.tokens), paths)]
    assert torch.equal(chosen, told)


def test_schedule_by_groups():
    """Batches hold one exit and one group; every sample once; with one group as without."""
    generator = torch.Generator().manual_seed(0)
    exits, lengths = (torch.randint(1, high, (300,), generator=generator) for high in (13, 40))
    groups = torch.randint(0, 30, (300,), generator=generator)
    plan = schedule(exits, lengths, 128, groups)
    assert sorted(plan.order.tolist()) == list(range(300))
    for rows, layer in plan:
        assert set(exits[rows].tolist()) == {layer}
        assert torch.unique(groups[rows]).numel() == 1
        assert lengths[rows].tolist() == sorted(lengths[rows].tolist(), reverse=True)
    assert list(plan.exits) == sorted(plan.exits, reverse=True)
    same, plain = schedule(exits, lengths, 128, torch.zeros_like(groups)), schedule(exits, lengths, 128)
    assert torch.equal(same.order, plain.order)
    assert same.bounds == plain.bounds
    with pytest.raises(ValueError, match="exits and groups must be of one length"):
        schedule(exits, lengths, 128, groups[:3])


def test_when_skipping_pays():
    costs = LayerCosts(((100, 1.0), (200, 1.1), (1000, 5.0)), move=0.0001)
    assert costs.skipping_pays(1000, 500)
    assert not costs.skipping_pays(100, 50)  # a small batch takes what it takes
    assert not LayerCosts(costs.points, move=1.0).skipping_pays(1000, 500)


def test_skipping_asked_of_a_model_without(model, skipper, tokenizer, texts):
    for mode in ("gates", "planned"):
        with pytest.raises(ValueError, match=f"skip='{mode}': this model has no skip gates"):
            Engine(model, tokenizer, f"full+skip:{mode}")
    with pytest.raises(ValueError, match=r"learn=\['skips'\]: this model has no skip gates"):
        build_exit_table(model, tokenizer, texts, 0.8, progress=False, learn=("skips",))
    with pytest.raises(ValueError, match="needs an exit table that learned them"):
        Engine(skipper, tokenizer, "full+skip:planned")
    table = build_exit_table(model, tokenizer, texts * 3, 0.8, progress=False)
    with pytest.raises(ValueError, match="records are of a model without skip gates"):
        table.learn("skips")
    skipper.exit_table = table
    with pytest.raises(ValueError, match="needs an exit table that learned them"):
        Engine(skipper, tokenizer, "full+skip:planned")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (("sometimes",), ValueError, "unknown skip 'sometimes'; known: gates, never, planned"),
        (("gates", 0.5), ValueError, "takes no price"),
        (("planned", "cheap"), TypeError, "price must be a number, got 'cheap'"),
        (("planned", math.inf), ValueError, "price must be finite, got inf"),
        (("",), ValueError, "unknown skip ''"),
        ((0.5,), ValueError, "unknown skip 0.5"),
        ((False,), ValueError, "unknown skip False"),
    ],
)
def test_bad_ways_of_skipping(skipper, tokenizer, settings, error, message):
    with pytest.raises(error, match=message):
        Skip(*settings)
    form = ":".join(map(str, settings))
    with pytest.raises(ValueError, match="policy 'full"):
        Engine(skipper, tokenizer, f"full+skip:{form}")
    engine = Engine(skipper, tokenizer, "full+skip:never")
    with pytest.raises(ValueError, match="policy 'full"):
        engine.policy = f"full+skip:{form}"
    assert engine.predict(["good"]).skipped is None
