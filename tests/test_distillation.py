"""Layer-wise distillation, weighted losses and gradient equilibrium against hand-written loops."""

from __future__ import annotations

import math

import pytest
import torch

from geep_triton.training.distillation import active_layers, exit_pairs, feature_loss, layerwise_distillation_loss
from geep_triton.training.losses import cross_entropy, joint_loss, self_distillation_loss
from geep_triton.training.recipes import get_recipe, gradient_equilibrium
from geep_triton.training.stages import Batch
from tests.test_training import cross_entropy_by_hand, kl_by_hand, softmax


@pytest.fixture
def exits() -> list[torch.Tensor]:
    return [torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(4)]


LABELS = torch.tensor([0, 2, 1, 1, 0])


def scaled(logits: torch.Tensor, temperature: float) -> list[list[float]]:
    return (logits.detach() / temperature).tolist()


def test_weighted_cross_entropy_is_a_mean_over_samples():
    logits, weights = torch.randn(5, 3), torch.tensor([1.0, 0.5, 3.0])
    expected = sum(
        -weights[y].item() * math.log(softmax(row)[y]) for row, y in zip(logits.tolist(), LABELS.tolist(), strict=True)
    )
    assert float(cross_entropy(logits, LABELS, weights)) == pytest.approx(expected / 5, rel=1e-5)
    halves = (cross_entropy(logits[:2], LABELS[:2], weights) * 2 + cross_entropy(logits[2:], LABELS[2:], weights) * 3) / 5
    torch.testing.assert_close(cross_entropy(logits, LABELS, weights), halves)


def test_joint_loss_equals_a_loop(exits):
    weights = [0.1, 0.2, 0.3, 0.4]
    expected = sum(w * cross_entropy_by_hand(x.tolist(), LABELS.tolist()) for w, x in zip(weights, exits, strict=True))
    assert joint_loss(exits, LABELS, weights).item() == pytest.approx(expected, abs=1e-9)
    assert joint_loss(exits, LABELS).item() == pytest.approx(
        sum(cross_entropy_by_hand(x.tolist(), LABELS.tolist()) for x in exits), abs=1e-9
    )


def test_self_distillation_equals_a_loop(exits):
    expected = sum(kl_by_hand(x.tolist(), exits[-1].tolist()) for x in exits[:-1])
    assert self_distillation_loss(exits).item() == pytest.approx(expected, abs=1e-9)


TEACHERS = {"next": [[1], [2], [3]], "last": [[3], [3], [3]], "deeper": [[1, 2, 3], [2, 3], [3]]}


@pytest.mark.parametrize("pairing", TEACHERS)
@pytest.mark.parametrize(("progress", "active"), [(0.0, 1), (0.5, 2), (0.99, 3)])
def test_layerwise_distillation_equals_a_loop(exits, pairing, progress, active):
    assert exit_pairs(4, pairing) == [(i, tuple(js)) for i, js in enumerate(TEACHERS[pairing])]
    temperature = 2.5

    def by_hand(students: int) -> float:
        total = 0.0
        for student, teachers in enumerate(TEACHERS[pairing][:students]):
            part = 0.0
            for teacher in teachers:
                part += kl_by_hand(scaled(exits[student], temperature), scaled(exits[teacher], temperature))
            total += temperature**2 * part / len(teachers)
        return total

    together = layerwise_distillation_loss(exits, pairing, temperature, progress=progress)
    assert together.item() == pytest.approx(by_hand(3), abs=1e-9)
    grown = layerwise_distillation_loss(exits, pairing, temperature, progress=progress, order="shallow_to_deep")
    assert grown.item() == pytest.approx(by_hand(active), abs=1e-9)
    grown.backward()
    assert [x.grad is not None and bool(x.grad.abs().sum() > 0) for x in exits] == [i < active for i in range(4)]


def test_external_teacher_teaches_every_exit(exits):
    teacher = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    loss = layerwise_distillation_loss(exits, "teacher", 2.0, teacher)
    expected = sum(4 * kl_by_hand(scaled(x, 2.0), scaled(teacher, 2.0)) for x in exits)
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    loss.backward()
    assert teacher.grad is None


@pytest.mark.parametrize("pairing", TEACHERS)
def test_feature_loss_equals_a_loop(pairing):
    states = [torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    real = [(0, 0), (0, 1), (1, 0)]

    def unit(row: list[float]) -> list[float]:
        norm = math.sqrt(sum(x * x for x in row))
        return [x / norm for x in row]

    expected = 0.0
    for student, teachers in enumerate(TEACHERS[pairing]):
        for teacher in teachers:
            for b, s in real:
                pair = zip(unit(states[student][b, s].tolist()), unit(states[teacher][b, s].tolist()), strict=True)
                expected += sum((x - y) ** 2 for x, y in pair) / int(mask[b].sum()) / len(mask) / len(teachers)
    loss = feature_loss(states, mask, pairing)
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    loss.backward()
    assert states[3].grad is None
    assert states[0].grad[1, 1:].abs().sum() == 0


def test_a_model_with_one_exit_has_nothing_to_distill():
    logits = [torch.randn(2, 3)]
    assert float(layerwise_distillation_loss(logits)) == 0.0
    assert float(feature_loss([torch.randn(2, 3, 4)], torch.ones(2, 3))) == 0.0


def test_layers_join_one_after_another():
    assert [active_layers(4, p, "shallow_to_deep") for p in (0.0, 0.24, 0.25, 0.5, 0.99, 1.0)] == [1, 1, 2, 3, 4, 4]
    assert active_layers(4, 0.0, "together") == 4


def test_the_distillation_loss_is_the_sum_of_its_terms(make_model, tokenizer, texts):
    model = make_model(exit_layers=[1, 3, 4])
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    labels = torch.arange(len(texts)) % 3
    (stage,) = get_recipe("distillation", alpha=0.5, temperature=3.0, pairing="deeper", feature=0.25).stages
    output = model(**inputs, **stage.forward)
    loss = stage.loss(output, Batch(labels, inputs["attention_mask"], (1, 3, 4)))
    states = [output.hidden_states[layer] for layer in (1, 3, 4)]
    expected = (
        joint_loss(output.exit_logits, labels)
        + 0.5 * layerwise_distillation_loss(output.exit_logits, "deeper", 3.0)
        + 0.25 * feature_loss(states, inputs["attention_mask"], "deeper")
    )
    torch.testing.assert_close(loss, expected)


def test_gradient_equilibrium_equals_scaling_where_exits_meet(make_model, tokenizer, texts):
    """Li et al. scale at each exit: the head's branch by 1/n, what comes from deeper by (n-1)/n, n exits here and deeper."""
    model = make_model(exit_layers=[1, 3, 4])
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    mask, labels = inputs["attention_mask"], torch.arange(len(texts)) % 3
    joint_loss(model(**inputs, output_exit_logits=True).exit_logits, labels).backward()
    got = {n: p.grad * gradient_equilibrium(n, (1, 3, 4)) for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
        return x.detach() + factor * (x - x.detach())

    hidden = model.embed(inputs["input_ids"], inputs["token_type_ids"])
    layer_mask = model.layer_mask(hidden, mask)
    loss, left = 0.0, 3
    for layer in range(1, 5):
        hidden = model.run_layer(layer, hidden, layer_mask)
        if layer in (1, 3, 4):
            # The head itself learns unscaled: only what flows on from it into the backbone is scaled.
            branch = scale(hidden, 1 / left)
            loss = loss + cross_entropy(model.exit_logits(layer, branch, mask), labels)
            hidden = scale(hidden, (left - 1) / left)
            left -= 1
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(got[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)
