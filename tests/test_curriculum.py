"""Curriculum: schedules, the sampler, difficulties."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import DataCollatorWithPadding, TrainingArguments

from geep_triton import MultiExitTrainer
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.curriculum import Curriculum, TrainSampler, competence, staged
from geep_triton.training.dataset import TextDataset
from geep_triton.training.difficulty import (
    cross_review,
    difficulty_column,
    first_right_exit,
    full_model_teacher,
    within_classes,
)
from tests.trainers import ROWS


def test_competence_is_the_papers_formula():
    assert competence(0.0, 0.1) == pytest.approx(0.1)
    assert competence(0.25, 0.1) == pytest.approx((0.25 * (1 - 0.01) + 0.01) ** 0.5)
    assert competence(1.0, 0.1) == 1.0
    assert Curriculum(start=0.1, until=0.5)(0.125) == competence(0.25, 0.1)
    assert Curriculum(until=0.5)(0.5) == Curriculum(until=0.5)(0.9) == 1.0


def test_stages_add_a_bucket_each():
    assert [staged(p, 4) for p in (0.0, 0.24, 0.25, 0.5, 0.75, 1.0)] == [0.25, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_curriculum_settings_are_checked():
    for settings, message in (
        ({"schedule": "fast"}, "unknown schedule 'fast'; known: competence, staged"),
        ({"start": 0.0}, "start must be between"),
        ({"buckets": 0}, "buckets must be at least 1"),
        ({"until": 1.5}, "until must be between"),
    ):
        with pytest.raises(ValueError, match=message):
            Curriculum(**settings)


def sampler(epoch: int, n: int = 100, epochs: int = 4, **changes) -> TrainSampler:
    values = {"difficulty": torch.arange(n) // 10, "curriculum": Curriculum(until=0.5), "total": epochs * n}
    return TrainSampler(n, 7, lambda: epoch, **{**values, **changes})


def test_sampler_draws_from_the_easiest_share():
    """At no position is a sample harder than the curriculum allows, and the pool is drawn from evenly."""
    curriculum = Curriculum(until=0.5)
    for epoch in range(4):
        drawn = list(sampler(epoch))
        assert len(drawn) == 100
        for position, index in enumerate(drawn):
            share = curriculum((epoch * 100 + position) / 400)
            assert index // 10 * 10 < share * 100 + 1  # ten samples are of equal difficulty
    staged_first = list(sampler(0, curriculum=Curriculum("staged", buckets=4, until=1.0)))
    assert set(Counter(staged_first).values()) == {4}
    assert set(range(20)) < set(staged_first) < set(range(30))  # ties are broken at random, the same way all along


def test_sampler_with_all_data_in_passes_once_over_them():
    assert sorted(sampler(3)) == list(range(100))
    assert sorted(TrainSampler(10, 0, lambda: 0)) == list(range(10))


def test_sampler_follows_seed_and_epoch_alone():
    assert list(sampler(1)) == list(sampler(1))
    assert list(sampler(1)) != list(sampler(2))


@pytest.mark.parametrize("n", [1, 7, 64, 103])
def test_batches_of_like_length_hold_the_same_samples(n):
    lengths = torch.randint(1, 50, (n,)).tolist()
    settings = {"curriculum": None, "difficulty": None}
    grouped = list(sampler(0, n, lengths=lengths, batch_size=4, **settings))
    assert sorted(grouped) == list(range(n))
    whole = [grouped[i : i + 4] for i in range(0, n, 4)]
    for batch in whole:
        assert [lengths[i] for i in batch] == sorted((lengths[i] for i in batch), reverse=True)
    if n == 64:
        spread = sum(lengths[b[0]] - lengths[b[-1]] for b in whole)
        mixed = list(sampler(0, n, **settings))
        parts = [[lengths[i] for i in mixed[j : j + 4]] for j in range(0, n, 4)]
        assert spread < sum(max(p) - min(p) for p in parts) / 3


def test_first_right_exit():
    answers = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]])
    logits = torch.nn.functional.one_hot(answers, 2).float()
    assert first_right_exit(logits, torch.ones(5, dtype=torch.int64)).tolist() == [0, 1, 2, 3, 3]


def test_cross_review_counts_the_other_teachers_that_are_wrong():
    labels = torch.zeros(10, dtype=torch.int64)
    folds = []

    def teach(fold):
        folds.append(set(fold.indices))
        return torch.tensor([1] * 4 + [0] * 6) if len(folds) != 2 else torch.ones(10, dtype=torch.int64)

    difficulty = cross_review(labels, ROWS[:10], teach, folds=3, seed=1)
    assert sorted(i for fold in folds for i in fold) == list(range(10))
    for index in range(10):
        others = [k for k, fold in enumerate(folds) if index not in fold]
        assert len(others) == 2
        assert difficulty[index] == sum(k == 1 or index < 4 for k in others)


def test_more_folds_than_samples():
    with pytest.raises(ValueError, match=r"folds must be at most the number of samples \(3\), got 4"):
        cross_review(torch.zeros(3, dtype=torch.int64), ROWS[:3], lambda fold: None, folds=4)
    with pytest.raises(ValueError, match="folds must be at least 2"):
        cross_review(torch.zeros(3, dtype=torch.int64), ROWS[:3], lambda fold: None, folds=1)


def test_each_class_has_its_own_ranks():
    """A rare class enters a curriculum as fast as a common one, though all its samples are harder."""
    difficulty, labels = torch.tensor([0.0, 1, 1, 2, 9, 8, 9]), torch.tensor([0, 0, 0, 0, 5, 5, 1])
    ranks = within_classes(difficulty, labels)
    assert ranks[:1].tolist() + sorted(ranks[1:3].tolist()) + ranks[3:].tolist() == [0.0, 0.25, 0.5, 0.75, 0.5, 0.0, 0.0]
    assert within_classes(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).tolist() == []
    with pytest.raises(ValueError, match="difficulty and labels must be of one length, got 2 and 3"):
        within_classes(torch.zeros(2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(TypeError, match="labels"):
        within_classes(torch.zeros(2), torch.zeros(2))


def test_a_curriculum_takes_the_same_share_of_every_class():
    """Difficulties of a cross review by three teachers, most of them wrong on the rare class: at each point of the training the
    samples that have been drawn so far are as many of either class as its size says.
    """
    random = torch.Generator().manual_seed(0)
    labels = (torch.arange(4_000) % 8 == 0).long()
    wrong = torch.rand(2, 4_000, generator=random) < torch.where(labels == 1, 0.6, 0.1)
    ranks = within_classes(wrong.sum(0).float(), labels, seed=1)
    assert not torch.equal(ranks, within_classes(wrong.sum(0).float(), labels, seed=2))
    for share in (0.1, 0.5, 0.7):
        sampler = TrainSampler(4_000, 0, lambda: 0, ranks, lambda _, share=share: share, total=4_000)
        drawn = torch.tensor(list(sampler)).unique()
        assert len(drawn) == 4_000 * share
        for label in (0, 1):
            assert (labels[drawn] == label).sum() == pytest.approx(share * (labels == label).sum().item(), abs=1)


def test_difficulty_column():
    assert difficulty_column([{"difficulty": 1}, {"difficulty": "0.5"}]).tolist() == [1.0, 0.5]
    rows = [{"difficulty": 1}, {"difficulty": None}, {}, {"difficulty": ""}]
    with pytest.raises(ValueError, match="column 'difficulty' must have a number in every row; it has none in row 1, 2, 3"):
        difficulty_column(rows)
    with pytest.raises(ValueError, match="row 0, 1, 2, 3, 4 and 2 more"):
        difficulty_column([{}] * 7)
    with pytest.raises(ValueError, match="finite numbers, got 'hard' in row 1"):
        difficulty_column([{"d": 1}, {"d": "hard"}], "d")
    with pytest.raises(ValueError, match="got nan in row 0"):
        difficulty_column([{"d": float("nan")}], "d")


def test_cross_review_with_real_teachers_finds_the_wrong_labels(make_model, tokenizer, tmp_path):
    rows = [dict(row) for row in ROWS * 2]
    for index in (0, 9):
        rows[index]["label"] = "neg" if rows[index]["label"] == "pos" else "pos"
    data = TextDataset(rows, Encoder(tokenizer, 64), {"neg": 0, "pos": 1})
    args = TrainingArguments(
        output_dir=str(tmp_path), report_to=[], disable_tqdm=True, save_strategy="no", num_train_epochs=40, learning_rate=1e-3,
        train_sampling_strategy="group_by_length", use_cpu=True,
    )  # fmt: skip

    def make():
        return make_model(num_labels=2, pooling="mean", initializer_range=0.1, head_dropout=0.0)

    teach = full_model_teacher(make, args, DataCollatorWithPadding(tokenizer), data)
    difficulty = cross_review(torch.tensor(data.labels), data, teach, folds=2, seed=3)
    wrong = difficulty[[0, 9]].mean()
    assert wrong > difficulty.mean()


def test_difficulty_must_fit_the_training(make_model, tokenizer, tmp_path):
    data = TextDataset(ROWS, Encoder(tokenizer, 64), {"neg": 0, "pos": 1})
    args = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)

    def trainer(**changes):
        return MultiExitTrainer(model=make_model(num_labels=2), args=args, train_dataset=data, **changes)

    with pytest.raises(ValueError, match="a curriculum needs the difficulty of each training sample"):
        trainer(recipe="distillation", curriculum=Curriculum())
    with pytest.raises(ValueError, match="difficulty would be ignored: the training has no curriculum"):
        trainer(recipe="geep", difficulty=[0.0] * 16)
    with pytest.raises(TypeError, match="curriculum must be a Curriculum, or a function .*, got 'competence'"):
        trainer(curriculum="competence", difficulty=[0.0] * 16)
    with pytest.raises(ValueError, match=r"one number per training sample \(16\), got \(15,\)"):
        trainer(curriculum=Curriculum(), difficulty=[0.0] * 15)
    with pytest.raises(ValueError, match="not for 2 samples, the first being 3"):
        trainer(curriculum=Curriculum(), difficulty=[0.0] * 3 + [float("nan")] * 2 + [1.0] * 11)
    sequential = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, train_sampling_strategy="sequential")
    given = MultiExitTrainer(
        model=make_model(num_labels=2), args=sequential, train_dataset=data, curriculum=Curriculum(), difficulty=[0.0] * 16,
    )  # fmt: skip
    with pytest.raises(ValueError, match="a curriculum chooses .* must be random or group_by_length, got 'sequential'"):
        given.train()
