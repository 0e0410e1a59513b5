"""Fine-tuned models that travel as changes to one backbone: what comes back answers as before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertModel

from bench.gpu.inputs import OPTIONS, answers_of, load_inputs
from bench.gpu.machine import StandIn
from bench.gpu.packing import from_four_bits, nearest_four_bits
from bench.gpu.setting import REHEARSAL, Setting
from bench.gpu.shrinkage import PLANS, PROMISE, SCORED, Known, Subject, promised
from bench.gpu.test_gpu_inputs import save_backbone, write_rows
from bench.gpu.tuned import make_tuned, of_texts
from geep_triton import Engine, MultiExitBert, build_exit_table, calibrate
from geep_triton.files.rows import read_rows
from geep_triton.policies.policy import Policy
from geep_triton.policies.text import parse_policy
from geep_triton.promises.families import CONSTANT

ROWS = 400


def save_tuned(folder: Path, backbone: Path, tokenizer) -> None:
    """A model with changed layers, heads that differ and an exit table, and its texts beside it."""
    torch.manual_seed(3)
    model = MultiExitBert.from_pretrained(backbone, num_labels=2, head="linear", pooling="mean").eval()
    with torch.no_grad():
        for weight in model.bert.parameters():
            weight += 0.05 * torch.randn_like(weight)
        for head in model.heads.values():  # whose answers differ from text to text, and from exit to exit
            head.classifier.weight += torch.randn_like(head.classifier.weight)
    write_rows(folder.with_suffix(".jsonl"), ROWS, 5, pairs=False)
    write_rows(folder.parent / "train.jsonl", 200, 6, pairs=False, extra="again")
    texts = read_rows(folder.parent / "train.jsonl")
    learn = ("agreement", "exits", "forecasts")
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.9, ngram=2, learn=learn, progress=False, **OPTIONS)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_backbone(folder / "bert", tokenizer, 0)
    save_tuned(folder / "moods", folder / "bert", tokenizer)
    return folder / "moods"


@pytest.fixture(scope="module")
def given(tmp_path_factory, saved):
    folder = tmp_path_factory.mktemp("made") / "inputs"
    make_tuned(folder, saved.parent / "bert", [saved], ROWS)
    (given,) = load_inputs(folder)
    return given


def test_it_answers_as_before(given, saved, tokenizer):
    before = answers_of(MultiExitBert.from_pretrained(saved), tokenizer, given.rows).logits
    after = answers_of(given.model, given.tokenizer, given.rows).logits
    untrained = MultiExitBert.from_pretrained(saved)
    untrained.bert.load_state_dict(BertModel.from_pretrained(saved.parent / "bert", add_pooling_layer=False).state_dict())
    base = answers_of(untrained, tokenizer, given.rows).logits
    assert given.name == "bert moods"
    assert given.tuned
    assert len(given.rows) == ROWS
    assert (before - after).abs().mean() < 0.1 * (before - base).abs().mean()
    assert (before.argmax(-1) == after.argmax(-1)).double().mean() > 0.97


def test_the_table_predicts_as_before(given, saved, tokenizer):
    own = MultiExitBert.from_pretrained(saved).exit_table
    tokens = Engine(given.model, given.tokenizer, "full", **OPTIONS).encode(given.rows)
    carried = given.model.exit_table
    assert len(carried.keys) < len(own.keys)
    assert torch.equal(own.predict(tokens, "mean").probabilities, carried.predict(tokens, "mean").probabilities)
    assert torch.equal(own.predict_agreement(tokens), carried.predict_agreement(tokens))
    assert len(of_texts(own, tokenizer, given.rows[:1]).keys) < len(carried.keys)


def test_a_model_without_a_table_is_refused(saved, tmp_path, tokenizer):
    model = MultiExitBert.from_pretrained(saved)
    model.exit_table = None
    model.save_pretrained(tmp_path / "bare")
    write_rows(tmp_path / "bare.jsonl", 10, 5, pairs=False)
    with pytest.raises(ValueError, match="bare has no exit table"):
        make_tuned(tmp_path / "inputs", saved.parent / "bert", [tmp_path / "bare"], ROWS)


def test_nearest_four_bits():
    torch.manual_seed(0)
    weight = torch.randn(5, 64)
    weight[1, :32] = 0
    back = from_four_bits(*nearest_four_bits(weight))
    step = weight.unflatten(1, (-1, 32)).abs().amax(2, keepdim=True) / 7
    assert ((back - weight).unflatten(1, (-1, 32)).abs() <= 0.51 * step).all()
    assert (back[1, :32] == 0).all()
    assert torch.equal(from_four_bits(*nearest_four_bits(back)), back)


def test_families_that_keep_the_promise(given):
    model, engine = given.model, Engine(given.model, given.tokenizer, "full", **OPTIONS)
    record = engine.every_exit(given.rows)
    chosen = promised(model, record, 0.1)
    assert {*SCORED, *PLANS} <= chosen.keys()
    assert CONSTANT not in chosen  # the first exit's answers are others
    # The library asks each family for more confidence, since it takes the fastest of them.
    calibrated = calibrate(engine, given.rows, agreement=PROMISE, rounds=1, speed_samples=8, save=False)
    cautious = {one.family: parse_policy(one.policy) for one in calibrated.candidates}
    for name, policy in chosen.items():
        asked = engine.with_policy(policy).predict(given.rows)
        agreement = (asked.label_ids == record.logits[:, -1].argmax(-1)).double().mean()
        assert agreement > PROMISE, name
        if name in cautious:
            assert engine.with_policy(cautious[name]).predict(given.rows).mean_layers >= asked.mean_layers, name


def test_the_oracle_knows_the_first_exit_of_each_answer(given):
    model, engine = given.model, Engine(given.model, given.tokenizer, "full", **OPTIONS)
    record = engine.every_exit(given.rows)
    oracle = engine.with_policy(Policy(Known.of(model, record))).predict(given.rows)
    answers = record.logits.argmax(-1)
    assert torch.equal(oracle.label_ids, answers[:, -1])
    first = (answers == answers[:, -1:]).int().argmax(1)
    assert torch.equal(oracle.exit_layers, torch.tensor(model.config.exit_layers)[first])


def test_the_texts_that_calibrate_are_not_those_that_are_timed(given, tmp_path):
    subject = Subject(Setting(StandIn(), REHEARSAL, tmp_path), given, "plain")
    calibrating, timed = subject.parts
    assert len(calibrating.tokens) == len(timed.tokens) == ROWS // 2
    tokens = subject.engine.encode(given.rows)
    together = torch.stack([calibrating.tokens.hashes(), timed.tokens.hashes()], 1).flatten()
    assert torch.equal(together, tokens.hashes())


def test_what_is_not_carried_is_refused(saved, tmp_path, tokenizer):
    with pytest.raises(ValueError, match="models must have different names, got moods, moods"):
        make_tuned(tmp_path / "inputs", saved.parent / "bert", [saved, saved], ROWS)
    model = MultiExitBert.from_pretrained(saved)
    model.exit_config.temperatures = [2.0, 1.0]
    model.save_pretrained(tmp_path / "hot")
    write_rows(tmp_path / "hot.jsonl", 10, 5, pairs=False)
    with pytest.raises(ValueError, match="hot has temperatures of exits"):
        make_tuned(tmp_path / "inputs", saved.parent / "bert", [tmp_path / "hot"], ROWS)
