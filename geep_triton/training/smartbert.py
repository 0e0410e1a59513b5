"""The SmartBERT recipe: gates first, then exits (Hu et al., IJCAI 2023, arXiv 2303.09266; code HuBoren99/SmartBert)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from geep_triton.checks import check_number
from geep_triton.config import MultiExitBertConfig
from geep_triton.modeling.flops import layer_flops
from geep_triton.modeling.heads import AttentionHead
from geep_triton.modeling.model import NO_GATES, MultiExitBert
from geep_triton.modeling.outputs import MultiExitBertOutput
from geep_triton.training.losses import joint_loss
from geep_triton.training.skip_losses import flops_budget_loss, inverse_gate_sum, skip_rate_loss, token_contrast
from geep_triton.training.stages import Batch, Recipe, Stage, asked

PROJECTION = 128
Cost = Callable[[MultiExitBertOutput, bool], torch.Tensor]


class Contrasts(nn.Module):
    """Projections for the contrastive terms, and the costs of the samples. They are needed only in training.

    First stage: "inputs" are the projections [B, S, 128] of the input of every layer, and "costs" [B] is each sample's share of
    a layer's FLOPs in the batch.
    Second stage: "features" are the projections [B, S, D] of the token features of every early exit.
    A projection is Linear, LayerNorm, tanh, Linear.
    """

    def __init__(self, config: MultiExitBertConfig, layers: bool, heads: bool, flops_budget: float | None = None) -> None:
        super().__init__()
        if config.skip_gate is None or config.skip_layers is None:
            raise ValueError(f"recipe 'smartbert' trains skip gates: {NO_GATES}")
        least = 1 - len(config.skip_layers) / config.num_hidden_layers
        if flops_budget is not None and flops_budget < least:
            raise ValueError(
                f"flops_budget must be at least {least:.3g} with skip_layers={config.skip_layers}, got {flops_budget}"
            )
        heads = heads and len(config.exit_layers) > 2  # otherwise there are no neighbours to compare
        if heads and config.head != "attention":
            raise ValueError(
                f"recipe 'smartbert' with exit_contrast above 0 needs head='attention', the model has {config.head!r}"
            )
        number = config.num_hidden_layers if layers else 0
        early = config.exit_layers[:-1] if heads else ()
        self.layers = nn.ModuleList(_projection(config.hidden_size, PROJECTION) for _ in range(number))
        self.heads = nn.ModuleDict({str(number): _projection(config.head_size, config.head_size) for number in early})

    def forward(self, model: MultiExitBert, output: MultiExitBertOutput, attention_mask: torch.Tensor) -> dict[str, Any]:
        """The inputs and costs of the first stage, or the features of the second."""
        if output.layer_outputs is None:
            inputs = [project(asked(output.hidden_states)[index]) for index, project in enumerate(self.layers)]
            costs = layer_flops(model.config, attention_mask.sum(1)).float()
            return {"inputs": inputs, "costs": costs / costs.sum()}
        outputs = {layer: output.layer_outputs[int(layer) - 1] for layer in self.heads}
        heads = {layer: head for layer, head in model.heads.items() if isinstance(head, AttentionHead)}
        return {"features": [project(heads[layer].features(outputs[layer])) for layer, project in self.heads.items()]}


def _projection(features: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, size), nn.LayerNorm(size), nn.Tanh(), nn.Linear(size, size))


def smartbert(
    skip_weight: float | None = None,
    layer_contrast: float = 0.1,
    exit_contrast: float = 0.5,
    layer_temperature: float = 0.5,
    exit_temperature: float = 0.55,
    gate_epochs: float = 5.0,
    exit_epochs: float = 4.0,
    soft: float = 0.6,
    warm_up: float = 0.0,
    skip_rate: float | None = None,
    flops_budget: float | None = None,
    target_weight: float | None = None,
) -> Recipe:
    """Train the backbone and the skip gates on the last exit, then the early heads with everything else frozen.

    First stage: (1 - eta1) [CE(C_L(h_L), y) + cost] + eta1 sum_i con_i, where cost = lambda / sum_i mean(g_i). Gates are soft
    at first and then hard (straight-through).
    Second stage: (1 - eta2) sum_i CE(C_i(T_i(h_{i-1})), y) + eta2 mean_i con'_i, with hard gates.
    The defaults are the published ones. For RTE the paper uses skip_weight .04, layer_contrast .01 and exit_contrast .05. The
    paper also sets: a gate bias of 0 (`skip_gate_bias`), exit heads with 4 attention heads, 9 epochs, batches of 16, and a
    learning rate of 5e-5 (RTE 2e-5).
    The cost is computed on the batch of one process. With several processes or accumulated gradients, it is the mean of these
    costs.

    Args:
        skip_weight: lambda. None: .05 if there is no target.
        layer_contrast: eta1, 0..1.
        exit_contrast: eta2, 0..1.
        layer_temperature: temperature of the contrastive term between layers.
        exit_temperature: temperature of the contrastive term between exits.
        gate_epochs: length of the first stage relative to `exit_epochs`. With num_train_epochs = 9 the defaults are 5 and 4
            epochs. 0: the stage is left out.
        exit_epochs: length of the second stage, likewise.
        soft: share of the first stage with soft gates.
        warm_up: share of the first stage, at its start, that runs every layer and has no cost term.
        skip_rate: target for the mean gate, 0..1, instead of lambda. When gates are hard, it is the share of gated layers that
            each batch skips.
        flops_budget: target for the share of all layers' FLOPs that runs, 0..1, instead of lambda.
        target_weight: weight of the squared distance to `skip_rate` or `flops_budget`. None: 1.

    Raises:
        ValueError: a setting is out of range, both targets are given, a target is given with lambda, a target's weight is given
            without a target, or no stage is left. In training: the model has no gates, the budget is below the cost of the
            layers without gates, or the early heads have no token features for the second contrastive term (head "attention"
            has them).
        TypeError: a setting has another type.
    """
    for name, value in (
        ("layer_contrast", layer_contrast),
        ("exit_contrast", exit_contrast),
        ("soft", soft),
        ("warm_up", warm_up),
    ):
        check_number(name, value, 0.0, 1.0)
    for name, value in (("layer_temperature", layer_temperature), ("exit_temperature", exit_temperature)):
        check_number(name, value, 1e-3)
    for name, value in (("gate_epochs", gate_epochs), ("exit_epochs", exit_epochs)):
        check_number(name, value, 0.0)
    if warm_up + soft > 1:
        raise ValueError(f"warm_up and soft must be at most 1 together, got {warm_up} and {soft}")
    cost = _cost(skip_weight, skip_rate, flops_budget, target_weight)
    first = Stage(
        partial(_gate_loss, cost, layer_contrast, layer_temperature, warm_up + soft),
        partial(_gate_forward, warm_up, warm_up + soft),
        trains=_is_of_first_stage,
        share=gate_epochs or 1.0,
    )
    second = Stage(
        partial(_exit_loss, exit_contrast, exit_temperature),
        {"gating": "hard", "output_exit_logits": True, "output_layer_outputs": True},
        trains=_is_of_second_stage,
        share=exit_epochs or 1.0,
    )
    stages = tuple(stage for stage, epochs in ((first, gate_epochs), (second, exit_epochs)) if epochs > 0)
    heads = exit_contrast > 0 and exit_epochs > 0
    modules = partial(Contrasts, layers=layer_contrast > 0, heads=heads, flops_budget=flops_budget)
    return Recipe("smartbert", stages, modules=modules, gates=True)


def _is_of_second_stage(name: str, last_layer: int) -> bool:
    part, _, rest = name.removeprefix("auxiliary.").partition(".")
    return part == "heads" and not rest.startswith(f"{last_layer}.")


def _is_of_first_stage(name: str, last_layer: int) -> bool:
    return not _is_of_second_stage(name, last_layer)


def _cost(skip_weight: float | None, skip_rate: float | None, flops_budget: float | None, target_weight: float | None) -> Cost:
    """The cost term of the first stage. When gates are hard, a target applies to the layers that are really skipped."""
    if skip_rate is not None and flops_budget is not None:
        raise ValueError("skip_rate and flops_budget are two ways to say one thing: give one of them")
    if skip_weight is not None and (skip_rate is not None or flops_budget is not None):
        raise ValueError("skip_weight would be ignored: a skip_rate or flops_budget takes its place")
    factor = 1.0 if target_weight is None else target_weight
    check_number("target_weight", factor, 1e-6)
    if skip_rate is not None:
        check_number("skip_rate", skip_rate, 0.0, 1.0)
        return lambda output, hard: factor * skip_rate_loss(_effective_gates(output, hard), skip_rate)
    if flops_budget is not None:
        check_number("flops_budget", flops_budget, 0.0, 1.0)

        def budget(output: MultiExitBertOutput, hard: bool) -> torch.Tensor:
            costs, layers = asked(output.auxiliary)["costs"], len(asked(output.hidden_states)) - 1
            return factor * flops_budget_loss(_effective_gates(output, hard), costs, layers, flops_budget)

        return budget
    if target_weight is not None:
        raise ValueError("target_weight would be ignored: there is neither a skip_rate nor a flops_budget")
    weight = 0.05 if skip_weight is None else skip_weight
    check_number("skip_weight", weight, 0.0)
    return lambda output, hard: weight * inverse_gate_sum(asked(output.gates))


def _effective_gates(output: MultiExitBertOutput, hard: bool) -> Sequence[torch.Tensor]:
    """Soft gates, or hard decisions that pass the gradient to the gates (straight-through)."""
    gates = asked(output.gates)
    if not hard:
        return gates
    decisions = (skips.to(gate.dtype) for gate, skips in zip(gates, asked(output.skips), strict=True))
    return [gate + (decision - gate).detach() for gate, decision in zip(gates, decisions, strict=True)]


def _gate_forward(runs_all_until: float, soft_until: float, progress: float) -> Mapping[str, Any]:
    if progress < runs_all_until:
        return {"gating": "none", "output_hidden_states": True}
    gating = "soft" if progress < soft_until else "hard"
    return {"gating": gating, "output_gates": True, "output_hidden_states": True}


def _gate_loss(
    cost: Cost, weight: float, temperature: float, soft_until: float, output: MultiExitBertOutput, batch: Batch
) -> torch.Tensor:
    mask = asked(batch.attention_mask)
    loss = batch.objective.learn(asked(output.logits), asked(batch.labels), batch.class_weights)
    if output.gates is not None:
        loss = loss + cost(output, batch.progress >= soft_until)
    inputs = pairwise(asked(output.auxiliary)["inputs"])
    contrast = sum((token_contrast(q, k, mask, temperature) for q, k in inputs), start=loss.new_zeros(()))
    return (1 - weight) * loss + weight * contrast


def _exit_loss(weight: float, temperature: float, output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
    pairs, mask = list(pairwise(asked(output.auxiliary)["features"])), asked(batch.attention_mask)
    early = asked(output.exit_logits)[:-1]
    loss = joint_loss(early, asked(batch.labels), class_weights=batch.class_weights, objective=batch.objective)
    contrast = sum((token_contrast(q, k, mask, temperature, positive_below=False) for q, k in pairs), start=loss.new_zeros(()))
    return (1 - weight) * loss + weight * contrast / len(pairs) if pairs else loss
