"""Forecasts are of one model's answers: what changes them is refused, what only casts or copies them is not."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from geep_triton import Engine, ExitTable, MultiExitBert, build_exit_table
from geep_triton.policies.leave import Sure
from geep_triton.policies.plan import PlannedAfter
from geep_triton.policies.policy import Policy
from geep_triton.policies.risk import LowRisk
from geep_triton.table import files
from geep_triton.table.forecasts import learn_forecasts

POLICIES = ("risk:0.4", "planned:1,price=0.1")
OTHER_WEIGHTS = "built with other weights than the model's"


@pytest.fixture
def model(make_model, tokenizer, many):
    made = make_model(num_labels=3, pooling="mean")
    made.exit_table = build_exit_table(made, tokenizer, many[:100], 0.8, progress=False)
    return made


def copied(model):
    classifier = model.heads["2"].classifier
    with torch.no_grad():
        classifier.weight.copy_(classifier.weight.roll(1, 0))


def loaded(model):
    model.load_state_dict({name: value + 1e-3 for name, value in model.state_dict().items()})


def trained(model):
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    model(torch.tensor([[2, 9, 3]]), labels=torch.tensor([1])).loss.backward()
    optimizer.step()


def replaced(model):
    other = copy.deepcopy(model.heads["2"])
    with torch.no_grad():
        other.classifier.bias += 1
    model.heads["2"] = other


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("change", [copied, loaded, trained, replaced])
def test_weights_that_change_later_are_noticed(model, tokenizer, change, policy):
    table = model.exit_table
    Engine(model, tokenizer, policy)
    change(model)
    for _ in range(2):
        with pytest.raises(ValueError, match=OTHER_WEIGHTS):
            Engine(model, tokenizer, policy)
        model.exit_table = table  # setting it again makes it no better
    Engine(model, tokenizer, "predicted:mean")


def test_weights_that_come_back_are_noticed_too(model, tokenizer):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loaded(model)
    with pytest.raises(ValueError, match=OTHER_WEIGHTS):
        Engine(model, tokenizer, "risk:0.4")
    model.load_state_dict(before)
    Engine(model, tokenizer, "risk:0.4")


def test_copies_keep_their_table(model, tokenizer, many):
    expected = Engine(model, tokenizer, "risk:0.4").predict(many[:20]).exit_layers
    other = copy.deepcopy(model)
    assert torch.equal(Engine(other, tokenizer, "risk:0.4").predict(many[:20]).exit_layers, expected)
    copied(other)
    with pytest.raises(ValueError, match=OTHER_WEIGHTS):
        Engine(other, tokenizer, "risk:0.4")
    Engine(model, tokenizer, "risk:0.4")


def test_a_cast_model_is_saved_with_its_table(model, tokenizer, many, tmp_path):
    model.to(torch.bfloat16)
    expected = Engine(model, tokenizer, "risk:0.4").predict(many[:20]).exit_layers
    model.save_pretrained(tmp_path)
    again = MultiExitBert.from_pretrained(tmp_path)
    assert torch.equal(Engine(again, tokenizer, "risk:0.4").predict(many[:20]).exit_layers, expected)


def test_weights_that_change_before_saving_are_not_vouched_for(model, tokenizer, tmp_path):
    copied(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=OTHER_WEIGHTS):
        Engine(MultiExitBert.from_pretrained(tmp_path), tokenizer, "risk:0.4")


def test_a_variant_leaves_the_table_to_the_others(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    half = MultiExitBert.from_pretrained(tmp_path, dtype=torch.float16)
    half.save_pretrained(tmp_path, variant="fp16")
    assert len(ExitTable.load(tmp_path).weights) == 2
    for settings in ({"dtype": torch.float32}, {"variant": "fp16", "dtype": torch.float16}):
        Engine(MultiExitBert.from_pretrained(tmp_path, **settings), tokenizer, "risk:0.4")


def test_a_table_with_one_digest_is_read(model, tmp_path, monkeypatch):
    """As files of earlier commits have it."""
    [digest] = model.exit_table.weights
    header = files._header
    monkeypatch.setattr(files, "_header", lambda table: header(table) | {"weights": digest})
    model.exit_table.save_pretrained(tmp_path)
    assert ExitTable.load(tmp_path).weights == (digest,)


@pytest.mark.parametrize("policy", POLICIES)
def test_other_temperatures_are_refused(model, tokenizer, policy, tmp_path):
    model.exit_config.temperatures = (2.0, 1.0, 1.0, 1.0)
    model.save_pretrained(tmp_path)
    for one in (model, MultiExitBert.from_pretrained(tmp_path)):
        with pytest.raises(
            ValueError, match=r"forecasts of answers by .*null.*the model now answers by .*2\.0.*build it again"
        ):
            Engine(one, tokenizer, policy)
    model.exit_config.temperatures = None
    Engine(model, tokenizer, policy)


def test_another_decision_is_refused(make_model, tokenizer, many):
    model = make_model(num_labels=1, problem_type="regression", pooling="mean")
    model.exit_config.decision = 0.0
    model.exit_table = build_exit_table(model, tokenizer, many[:100], progress=False)
    engine = Engine(model, tokenizer, "risk:0.4")
    model.exit_config.tolerance = 0.1
    with pytest.raises(ValueError, match="forecasts of answers by"):
        engine.predict(many[:3])


def test_answers_at_two_temperatures_are_not_merged(model, tokenizer, many):
    first = model.exit_table
    assert first.merge(build_exit_table(model, tokenizer, many[100:150], 0.8, progress=False)).records.logits is not None
    model.exit_config.temperatures = (2.0, 1.0, 1.0, 1.0)
    merged = first.merge(build_exit_table(model, tokenizer, many[100:150], 0.8, progress=False))
    assert merged.answers_by is None
    assert merged.records.logits is None


def test_scores_far_from_zero_are_saved(make_model, tokenizer, many, tmp_path):
    """The first exit gives all texts the same score, up to the digits of float32."""
    model = make_model(num_labels=1, problem_type="regression", pooling="mean")
    model.exit_config.decision = 2000.0
    with torch.no_grad():
        for head in model.heads.values():
            head.classifier.bias.fill_(2000.0)
        model.heads["1"].classifier.weight.zero_()
    model.exit_table = build_exit_table(model, tokenizer, many[:100], progress=False)
    model.save_pretrained(tmp_path)
    again = MultiExitBert.from_pretrained(tmp_path)
    expected, found = (Engine(one, tokenizer, "risk:0.4").predict(many[:20]) for one in (model, again))
    assert torch.equal(found.exit_layers, expected.exit_layers)
    assert torch.equal(found.logits, expected.logits)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_the_unit_of_scores_does_not_matter(unit):
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(400, 1, 1, generator=generator)
    early = full + 0.3 * torch.randn(400, 2, 1, generator=generator)
    logits = torch.cat([early, full], 1)
    agrees = (logits[..., 0] > 0) == (full[..., 0] > 0)
    found = learn_forecasts(unit * logits, agrees).held_out_agreement[0, :, 0]
    torch.testing.assert_close(found, learn_forecasts(logits, agrees).held_out_agreement[0, :, 0], atol=1e-3, rtol=0)
    assert float(found.max() - found.min()) > 0.2


def test_huge_logits_go_to_the_end(model):
    plan = PlannedAfter(1, 0.1).plan(model)
    huge = torch.tensor([[3e38, -3e38, 1.5e38]])
    assert plan.stops(huge).tolist() == [4]
    assert not LowRisk(1.0).rule(model).score(1, huge, None, None).leaves.any()


@dataclasses.dataclass(frozen=True)
class Slotted:
    """A way to leave of a user's own."""

    __slots__ = ("threshold",)
    threshold: float

    def rule(self, model):
        return Sure(self.threshold).rule(model)


def test_any_way_to_leave_goes_behind_a_plan(model, tokenizer, many):
    policy = Policy(PlannedAfter(1, 0.1), Slotted(0.5))
    expected = Engine(model, tokenizer, "planned:1,price=0.1+threshold:0.5").predict(many[:20]).exit_layers
    assert torch.equal(Engine(model, tokenizer, policy).predict(many[:20]).exit_layers, expected)


def test_a_table_is_shown_in_a_line(model):
    assert repr(model.exit_table).startswith("ExitTable(")
    assert "learned=['agreement', 'forecasts']" in repr(model.exit_table)
    assert len(repr(model.exit_table)) < 200
    assert repr(model.exit_table.forecasts) == "Forecasts(4 exits, 3 logits, 25 held-out texts)"
