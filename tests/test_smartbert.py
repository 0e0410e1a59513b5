"""SmartBERT's recipe: its losses against loops by hand, what trains when, resume, and what it reaches for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import DataCollatorWithPadding, TrainingArguments

from geep_triton import MultiExitBert, MultiExitTrainer
from geep_triton.modeling.flops import layer_flops
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.dataset import TextDataset
from geep_triton.training.recipes import get_recipe
from geep_triton.training.skip_losses import token_contrast
from geep_triton.training.stages import Batch
from tests.conftest import tiny_config
from tests.test_gates import gated
from tests.trainers import LABEL2ID, ROWS, train


def batch_of(model, tokenizer, texts, progress):
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    labels = torch.arange(len(texts)) % model.config.num_labels
    batch = Batch(labels, inputs["attention_mask"], tuple(model.config.exit_layers), progress=progress)
    return inputs, batch


def stage_loss(model, tokenizer, texts, stage, progress, **settings):
    recipe = get_recipe("smartbert", **settings)
    torch.manual_seed(2)
    model.auxiliary = recipe.modules(model.config)
    inputs, batch = batch_of(model, tokenizer, texts, progress)
    chosen = recipe.stages[stage]
    for module in model.modules():
        module.training = False  # no dropout
    model.training = True
    return chosen.loss(model(**inputs, **chosen.asks(progress)), batch), inputs, batch


def states_by_hand(model, inputs, gating):
    """h_0..h_L, T_i(h_{i-1}), soft gates: one layer after another."""
    hidden, mask = model.embed(inputs["input_ids"]), inputs["attention_mask"]
    layer_mask = model.layer_mask(hidden, mask)
    states, outputs, gates = [hidden], [], []
    for layer in range(1, 5):
        gate = model.gates[str(layer)](hidden, mask, 0.5)
        share = (gate.soft if gating == "soft" else gate.hard)[:, None, None]
        outputs.append(model.run_layer(layer, hidden, layer_mask))
        gates.append(gate.soft)
        hidden = (1 - share) * outputs[-1] + share * hidden
        states.append(hidden)
    return states, outputs, gates


@pytest.mark.parametrize(("progress", "gating"), [(0.0, "soft"), (0.59, "soft"), (0.61, "hard"), (0.99, "hard")])
@pytest.mark.parametrize("target", [{}, {"skip_rate": 0.3, "target_weight": 2.0}, {"flops_budget": 0.6}])
def test_first_stage_by_hand(tokenizer, texts, progress, gating, target):
    model = gated()
    loss, inputs, batch = stage_loss(model, tokenizer, texts, 0, progress, **target)
    states, _, gates = states_by_hand(model, inputs, gating)
    mask = inputs["attention_mask"]
    loss_by_hand = F.cross_entropy(model.heads["4"](states[4], mask), batch.labels)
    if target and gating == "hard":  # a target binds what is skipped
        gates = [(gate >= 0.5).float() for gate in gates]
    means = [sum(gate.tolist()) / len(texts) for gate in gates]
    if "skip_rate" in target:
        loss_by_hand = loss_by_hand + 2.0 * (sum(means) / 4 - 0.3) ** 2
    elif "flops_budget" in target:
        costs = [layer_flops(model.config, int(row.sum())) for row in mask]
        run = sum(c * (4 - sum(gate[row].item() for gate in gates)) for row, c in enumerate(costs))
        loss_by_hand = loss_by_hand + (run / (4 * sum(costs)) - 0.6) ** 2
    else:
        loss_by_hand = loss_by_hand + 0.05 / sum(means)
    contrast = 0.0
    for layer in (1, 2, 3):
        q, k = (model.auxiliary.layers[i - 1](states[i - 1]) for i in (layer, layer + 1))
        contrast = contrast + token_contrast(q, k, mask, 0.5)
    torch.testing.assert_close(loss, 0.9 * loss_by_hand + 0.1 * contrast)


def test_second_stage_by_hand(tokenizer, texts):
    model = gated()
    loss, inputs, batch = stage_loss(model, tokenizer, texts, 1, 0.0)
    states, outputs, _ = states_by_hand(model, inputs, "hard")
    assert not torch.equal(states[2], outputs[1])  # some sample skips: heads read what the layer gives all the same
    mask, exits, contrast, features = inputs["attention_mask"], 0.0, 0.0, []
    for layer in (1, 2, 3):
        head = model.heads[str(layer)]
        exits = exits + F.cross_entropy(head(outputs[layer - 1], mask), batch.labels)
        features.append(model.auxiliary.heads[str(layer)](torch.tanh(head.reduce(outputs[layer - 1]))))
    for q, k in ((0, 1), (1, 2)):
        contrast = contrast + token_contrast(features[q], features[k], mask, 0.55, positive_below=False) / 2
    torch.testing.assert_close(loss, 0.5 * exits + 0.5 * contrast)


def test_warm_up_runs_all_and_pays_nothing(tokenizer, texts):
    model = gated()
    loss, inputs, batch = stage_loss(model, tokenizer, texts, 0, 0.1, warm_up=0.2, layer_contrast=0.0)
    torch.testing.assert_close(loss, F.cross_entropy(model(**inputs, gating="none").logits, batch.labels))
    assert model.eval()(**inputs).auxiliary is None
    assert get_recipe("smartbert", warm_up=0.2, soft=0.3).stages[0].asks(0.3)["gating"] == "soft"
    assert get_recipe("smartbert", warm_up=0.2, soft=0.3).stages[0].asks(0.6)["gating"] == "hard"


def trained(tokenizer, folder, recipe="smartbert", **changes):
    torch.manual_seed(1)
    model = MultiExitBert(
        tiny_config(
            num_labels=2, pooling="mean", initializer_range=0.1, head_dropout=0.0, skip_gate="attention", skip_gate_size=8
        )
    )
    return train(model, tokenizer, folder, recipe, **{"num_train_epochs": 9, **changes})


def skipped_share(trainer, tokenizer, texts):
    """Share of the gated layers that texts really skip, not the mean of the gates."""
    with torch.no_grad():
        output = trainer.model.eval()(**tokenizer(texts, padding=True, return_tensors="pt"), output_gates=True)
    return float(torch.stack(output.skips).double().mean())


def test_it_learns_to_a_wanted_skip_rate(tokenizer, texts, tmp_path):
    recipe = get_recipe("smartbert", skip_rate=0.5, target_weight=5.0, exit_contrast=0.05)
    trainer = trained(tokenizer, tmp_path, recipe=recipe, num_train_epochs=120, gate_learning_rate=1e-2)
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] >= 0.9
    assert metrics["eval_accuracy_exit_1"] >= 0.8
    assert skipped_share(trainer, tokenizer, texts) == pytest.approx(0.5, abs=0.15)


def test_stages_train_what_they_should_and_leave_nothing_behind(tokenizer, tmp_path):
    """One stage each: the other's parameters stand still; the projections are gone from the model and its files."""
    start = trained(tokenizer, tmp_path, max_steps=1, learning_rate=0.0, recipe=get_recipe("smartbert", exit_epochs=0.0))
    before = start.model.state_dict()
    for settings, moves in (
        ({"exit_epochs": 0.0}, lambda name: not name.startswith(("heads.1", "heads.2", "heads.3"))),
        ({"gate_epochs": 0.0}, lambda name: name.startswith(("heads.1", "heads.2", "heads.3"))),
    ):
        trainer = trained(tokenizer, tmp_path, max_steps=3, recipe=get_recipe("smartbert", **settings))
        after = trainer.model.state_dict()
        assert set(after) == set(before)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved
        assert all(map(moves, moved))
        assert {"gates.1.output.bias", "bert.encoder.layer.0.output.dense.weight"} <= moved or "gate_epochs" in settings
    assert trainer.model.auxiliary is None


def test_resume_and_loading_a_checkpoint(tokenizer, tmp_path, caplog):
    settings = {"num_train_epochs": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trained(tokenizer, tmp_path / "a", **settings).model.state_dict()
    resumed = trained(tokenizer, tmp_path / "b", resume=str(tmp_path / "a" / "checkpoint-2"), **settings).model.state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5, msg=name)
    caplog.clear()
    loaded = MultiExitBert.from_pretrained(tmp_path / "a" / "checkpoint-2")
    assert loaded.config.skip_gate == "attention"
    assert "auxiliary" not in caplog.text


def test_gates_learn_at_their_own_rate(tmp_path):
    model = gated()
    trainer = MultiExitTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), report_to=[], learning_rate=1e-5),
        recipe="smartbert",
        head_learning_rate=1e-3,
        gate_learning_rate=1e-4,
    )
    rates = {id(p): group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = 1e-3 if name.startswith("heads.") else 1e-4 if name.startswith("gates.") else 1e-5
        assert rates[id(parameter)] == expected, name
    with pytest.raises(ValueError, match="gate_learning_rate must be between"):
        MultiExitTrainer(model=model, args=trainer.args, recipe="smartbert", gate_learning_rate=2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skip_rate": 1.2}, "skip_rate must be between 0.0 and 1.0, got 1.2"),
        ({"flops_budget": -0.1}, "flops_budget must be between 0.0 and 1.0"),
        ({"skip_rate": 0.2, "flops_budget": 0.5}, "give one of them"),
        ({"skip_rate": 0.2, "skip_weight": 0.1}, "skip_weight would be ignored"),
        ({"target_weight": 2.0}, "target_weight would be ignored"),
        ({"skip_rate": 0.2, "target_weight": 0.0}, "target_weight must be between"),
        ({"skip_weight": -1.0}, "skip_weight must be between"),
        ({"layer_contrast": 2.0}, "layer_contrast must be between"),
        ({"layer_temperature": 0.0}, "layer_temperature must be between"),
        ({"warm_up": 0.6}, "at most 1 together"),
        ({"gate_epochs": 0.0, "exit_epochs": 0.0}, "has no stages"),
        ({"lamda": 0.1}, "has no setting 'lamda'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        get_recipe("smartbert", **settings)


def test_models_it_cannot_train(make_model, tokenizer, tmp_path, caplog):
    def attempt(model, recipe="smartbert"):
        model.config.label2id = LABEL2ID
        MultiExitTrainer(
            model=model,
            args=TrainingArguments(output_dir=str(tmp_path), report_to=[], save_strategy="no", max_steps=2),
            train_dataset=TextDataset(ROWS, Encoder(tokenizer, 64), LABEL2ID),
            data_collator=DataCollatorWithPadding(tokenizer),
            recipe=recipe,
        ).train()

    with pytest.raises(ValueError, match="this model has no skip gates"):
        attempt(make_model(num_labels=2))
    with pytest.raises(ValueError, match=r"flops_budget must be at least 0.75 with skip_layers=\[4\], got 0.5"):
        attempt(make_model(num_labels=2, skip_gate="mean", skip_layers=[4]), get_recipe("smartbert", flops_budget=0.5))
    for recipe, warns in (("joint", True), ("smartbert", False)):
        caplog.clear()
        attempt(make_model(num_labels=2, skip_gate="mean"), recipe)
        assert (f"The model has skip gates, but recipe '{recipe}' is not made for them" in caplog.text) == warns
    with pytest.raises(ValueError, match="exit_contrast above 0 needs head='attention', the model has 'linear'"):
        attempt(make_model(num_labels=2, head="linear", skip_gate="mean"))
