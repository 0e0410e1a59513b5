"""SmartBERT's recipe (Hu et al., IJCAI 2023, arXiv 2303.09266; code HuBoren99/SmartBert): gates first, then exits."""

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
from geep_triton.modeling.model import NO_GATES, MultiExitBert
from geep_triton.modeling.outputs import MultiExitBertOutput
from geep_triton.training.losses import cross_entropy, joint_loss
from geep_triton.training.skip_losses import flops_budget_loss, inverse_gate_sum, skip_rate_loss, token_contrast
from geep_triton.training.stages import Batch, Recipe, Stage

PROJECTION = 128
Cost = Callable[[MultiExitBertOutput, bool], torch.Tensor]


class Contrasts(nn.Module):
    """What the losses compare, and the projections that the contrastive terms compare by; needed in training only.

    In the first stage it makes "inputs", the projections [B, S, 128] of every layer's input; and "costs" [B], each sample's
    share of a layer's FLOPs in the batch. In the second, for every early exit, "features": the projections [B, S, D] of its
    tokens.
    A projection is Linear, LayerNorm, tanh, Linear.
    """

    def __init__(self, config: MultiExitBertConfig, layers: bool, heads: bool, flops_budget: float | None = None) -> None:
        super().__init__()
        if config.skip_gate is None:
            raise ValueError(f"recipe 'smartbert' trains skip gates: {NO_GATES}")
        least = 1 - len(config.skip_layers) / config.num_hidden_layers
        if flops_budget is not None and flops_budget < least:
            raise ValueError(
                f"flops_budget must be at least {least:.3g} with skip_layers={config.skip_layers}, got {flops_budget}"
            )
        heads = heads and len(config.exit_layers) > 2  # neighbours to compare
        if heads and config.head != "attention":
            raise ValueError(
                f"recipe 'smartbert' with exit_contrast above 0 needs head='attention', the model has {config.head!r}"
            )
        number = config.num_hidden_layers if layers else 0
        early = config.exit_layers[:-1] if heads else ()
        self.layers = nn.ModuleList(_projection(config.hidden_size, PROJECTION) for _ in range(number))
        self.heads = nn.ModuleDict({str(number): _projection(config.head_size, config.head_size) for number in early})

    def forward(self, model: MultiExitBert, output: MultiExitBertOutput, attention_mask: torch.Tensor) -> dict[str, Any]:
        """See above."""
        if output.layer_outputs is None:
            inputs = [project(output.hidden_states[index]) for index, project in enumerate(self.layers)]
            costs = layer_flops(model.config, attention_mask.sum(1)).float()
            return {"inputs": inputs, "costs": costs / costs.sum()}
        outputs = {layer: output.layer_outputs[int(layer) - 1] for layer in self.heads}
        return {"features": [project(model.heads[layer].features(outputs[layer])) for layer, project in self.heads.items()]}


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
    """Two stages: backbone and skip gates by the last exit's answers, then the early heads with all else frozen.

    First stage: (1 - eta1) [CE(C_L(h_L), y) + cost] + eta1 sum_i con_i, with soft gates, then with hard ones (straight
    through); cost = lambda / sum_i mean(g_i). Second stage, hard gates: (1 - eta2) sum_i CE(C_i(T_i(h_{i-1})), y) + eta2
    mean_i con'_i. The defaults are the published ones; for RTE they are skip_weight .04, layer_contrast .01, exit_contrast .05.
    What else was published: gates that start at 0 (`skip_gate_bias`), exit heads with 4 attention heads, 9 epochs, batches of
    16, a learning rate of 5e-5 (RTE 2e-5).

    Args:
        skip_weight: lambda; None: .05, where no target is given.
        layer_contrast: eta1, 0..1.
        exit_contrast: eta2, 0..1.
        layer_temperature, exit_temperature: of the two contrastive terms.
        gate_epochs, exit_epochs: the stages' shares of the training; with num_train_epochs = 9 really 5 and 4 epochs. 0: the
            stage is left out.
        soft: share of the first stage that has soft gates.
        warm_up: share of the first stage, at its start, that runs every layer and pays nothing for it.
        skip_rate: instead of lambda, the mean gate to reach, 0..1; once gates are hard, the share of gated layers skipped in
            each batch.
        flops_budget: instead of lambda, the share of all layers' FLOPs to reach, 0..1; likewise.
        target_weight: weight of the squared distance to `skip_rate` or `flops_budget`; None: 1.

    The cost is that of a batch as one process holds it: with several processes or accumulated gradients, the mean of theirs.

    Raises:
        ValueError, TypeError: a setting out of range, both targets, a target beside lambda, a target's weight without a target,
            no stage left. In training: a model without gates, a budget below what layers without gates take, or early heads
            that have no token features for the second contrastive term (head "attention" has).
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
    """What the first stage pays for layers that run; a target binds what is really skipped once gates are hard."""
    if skip_rate is None and flops_budget is None:
        if target_weight is not None:
            raise ValueError("target_weight would be ignored: there is neither a skip_rate nor a flops_budget")
        weight = 0.05 if skip_weight is None else skip_weight
        check_number("skip_weight", weight, 0.0)
        return lambda output, hard: weight * inverse_gate_sum(output.gates)
    if skip_rate is not None and flops_budget is not None:
        raise ValueError("skip_rate and flops_budget are two ways to say one thing: give one of them")
    if skip_weight is not None:
        raise ValueError("skip_weight would be ignored: a skip_rate or flops_budget takes its place")
    target_weight = 1.0 if target_weight is None else target_weight
    check_number("target_weight", target_weight, 1e-6)
    if skip_rate is not None:
        check_number("skip_rate", skip_rate, 0.0, 1.0)
        return lambda output, hard: target_weight * skip_rate_loss(_binding(output, hard), skip_rate)
    check_number("flops_budget", flops_budget, 0.0, 1.0)

    def budget(output: MultiExitBertOutput, hard: bool) -> torch.Tensor:
        layers = len(output.hidden_states) - 1
        return target_weight * flops_budget_loss(_binding(output, hard), output.auxiliary["costs"], layers, flops_budget)

    return budget


def _binding(output: MultiExitBertOutput, hard: bool) -> Sequence[torch.Tensor]:
    """The gates; once they are hard the decisions, with the gates' gradient (straight through)."""
    if not hard:
        return output.gates
    decisions = (skips.to(gate.dtype) for gate, skips in zip(output.gates, output.skips, strict=True))
    return [gate + (decision - gate).detach() for gate, decision in zip(output.gates, decisions, strict=True)]


def _gate_forward(runs_all_until: float, soft_until: float, progress: float) -> Mapping[str, Any]:
    if progress < runs_all_until:
        return {"gating": "none", "output_hidden_states": True}
    gating = "soft" if progress < soft_until else "hard"
    return {"gating": gating, "output_gates": True, "output_hidden_states": True}


def _gate_loss(
    cost: Cost, weight: float, temperature: float, soft_until: float, output: MultiExitBertOutput, batch: Batch
) -> torch.Tensor:
    loss = cross_entropy(output.logits, batch.labels, batch.class_weights)
    if output.gates is not None:
        loss = loss + cost(output, batch.progress >= soft_until)
    contrast = sum(token_contrast(q, k, batch.attention_mask, temperature) for q, k in pairwise(output.auxiliary["inputs"]))
    return (1 - weight) * loss + weight * contrast


def _exit_loss(weight: float, temperature: float, output: MultiExitBertOutput, batch: Batch) -> torch.Tensor:
    pairs = list(pairwise(output.auxiliary["features"]))
    contrast = sum(token_contrast(q, k, batch.attention_mask, temperature, positive_below=False) for q, k in pairs)
    loss = joint_loss(output.exit_logits[:-1], batch.labels, class_weights=batch.class_weights)
    return (1 - weight) * loss + weight * contrast / len(pairs) if pairs else loss
