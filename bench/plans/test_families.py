"""Families on a small record: their settings are chosen without the judge's texts, and their order is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.plans import nets
from bench.plans.families import chosen, family_of, kinds, per_layer, readings, run_pairs, split
from bench.plans.record import JUDGE, TABLE
from bench.plans.signals import Texts, spaced

COSTS = (0.1, 2.0)


@pytest.fixture(scope="module")
def read(parts):
    return readings(parts[TABLE], parts[JUDGE])


def test_every_kind_answers_every_text(read):
    assert len({kind.name for kind in kinds(4)}) == len(kinds(4))
    for kind in kinds(4):
        family = family_of(kind, read, COSTS)
        assert set(family.outcomes) == set(COSTS), kind.name
        for outcome in family.outcomes.values():
            assert outcome.exits.shape == outcome.stops.shape == outcome.unscored.shape
            assert outcome.exits.shape[1] == 400
            assert int(outcome.exits.max()) <= 3
            assert bool(outcome.unscored[outcome.exits == 3].all()), kind.name  # nobody is scored at the last exit


def test_nothing_is_chosen_or_learned_by_the_judge(parts, read):
    judge = parts[JUDGE]
    other = replace(judge, logits=judge.logits.flip(0).flip(2), means=judge.means.flip(0))
    again = readings(parts[TABLE], other)
    several = [kind for kind in kinds(4) if len(kind.choices) > 1]
    assert several
    for kind in several:
        before, after = (one.table if kind.by_all else one.choosing for one in (read, again))
        assert chosen(kind, before, COSTS) == chosen(kind, after, COSTS), kind.name
        if kind.by_all:
            assert kind.name.startswith("threshold")  # other kinds learn


def test_the_judges_texts_only_answer(read):
    for kind in kinds(4):
        given = []

        def settings(signals, choice, kind=kind, given=given):
            given.append(signals)
            return kind.settings(signals, choice)

        family_of(replace(kind, settings=settings), read, COSTS)
        assert set(given) == {read.table if kind.by_all else read.choosing}, kind.name


def test_nothing_is_learned_from_the_texts_that_choose(parts):
    learning, choosing = split(parts[TABLE])
    assert (len(learning.logits), len(choosing.logits)) == (450, 150)
    rows = {tuple(row) for row in learning.logits.flatten(1).tolist()}
    assert not rows & {tuple(row) for row in choosing.logits.flatten(1).tolist()}


def test_chosen_settings_are_a_frontier(read):
    choosing = read.choosing
    kind = next(kind for kind in kinds(4) if kind.name == "threshold at 2 exits")
    for cost, pairs in chosen(kind, choosing, COSTS).items():
        means = run_pairs(kind, choosing, pairs).means(choosing.texts.agrees)
        assert bool((means.agreement.diff() < 0).all())
        assert bool((means.cost(cost).diff() < 0).all())


def test_settings_keep_their_order(read):
    kind = next(kind for kind in kinds(4) if kind.name == "threshold at 2 exits")
    pairs = [((0,), 0.1), ((1, 2), 0.3), ((0,), 0.2), ((0, 1), 0.3), ((1, 2), 0.1), ((0,), 0.3)]
    outcome = run_pairs(kind, read.judging, pairs)
    for index, (exits, value) in enumerate(pairs):
        alone = kind.run(read.judging, exits, torch.tensor([value]))
        assert torch.equal(outcome.exits[index], alone.exits[0])
        assert torch.equal(outcome.stops[index], alone.stops[0])


def test_a_dear_look_is_taken_seldom(read):
    choosing, judging = read.choosing, read.judging
    kind = next(kind for kind in kinds(4) if kind.name == "risk at 3 exits")
    stops = {}
    for cost, pairs in chosen(kind, choosing, COSTS).items():
        stops[cost] = float(run_pairs(kind, judging, pairs).stops.double().mean())
    assert stops[2.0] < stops[0.1]


def test_thresholds_per_layer_are_those_of_the_library(parts):
    texts = Texts(parts[JUDGE])
    rows = torch.arange(400)
    outcome = per_layer(texts, rows[:200], rows[200:], 0.05)
    wrong = outcome.wrong(texts.agrees[200:]).double().mean(1)
    assert outcome.exits.shape[1] == 200
    assert float(wrong[0]) <= float(wrong[-1])
    fitted = per_layer(texts, rows[:200], rows[:200], 0.05)
    assert not bool(fitted.wrong(texts.agrees[:200])[:13].any())  # nobody of those it was fitted to leaves with a wrong answer


def test_forecasts_know_more_than_the_mean(read):
    judging = read.judging
    texts = judging.texts
    early, agrees = judging.forecasts[""].diagonal(dim1=1, dim2=2), texts.agrees[:, :-1].float()
    loss = torch.nn.functional.binary_cross_entropy(early, agrees)
    constant = torch.nn.functional.binary_cross_entropy(agrees.mean(0).expand_as(agrees), agrees)
    assert float(loss) < 0.95 * float(constant)
    assert bool((judging.forecasts[""][:, :, -1] == 1).all())


def test_states_that_say_nothing_change_nothing(parts):
    texts = Texts(parts[TABLE])
    wanted = torch.ones(3, 3, dtype=torch.bool).triu()
    few = nets.Inputs(texts.logits[:, :-1])
    more = nets.Inputs(few.narrow, torch.zeros(600, 3, 8))
    alone, beside = (nets.fit(inputs, texts.agrees[:, :-1], wanted) for inputs in (few, more))
    for mine, others in zip(alone.narrow.parameters(), beside.narrow.parameters(), strict=True):
        assert torch.equal(mine, others)


@pytest.mark.parametrize(("layers", "exits"), [(6, (1, 3)), (12, (3, 7)), (4, (0, 2))])
def test_spaced_exits(layers, exits):
    assert spaced(layers) == exits
