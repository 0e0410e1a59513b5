"""Reports how good a prediction of exits is, beside predictions that cost nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bench.claims.metrics import ascending_layers, spearman
from geep_triton.checks import check_tensor


def predictor_report(
    exit_logits: torch.Tensor,
    targets: torch.Tensor,
    predicted: torch.Tensor,
    actual: torch.Tensor,
    exit_layers: Sequence[int],
) -> dict[str, float]:
    """Judge predicted exits against actual ones. Accuracy is against the targets: labels, or the full model's answers.

    Args:
        exit_logits: [N, E, C], every exit's answers.
        targets: [N] int64 classes: labels, or `exit_logits[:, -1].argmax(-1)` for agreement with the full model.
        predicted: [N] int64 layers.
        actual: [N] int64 layers, where a threshold lets the samples leave.
        exit_layers: the E exits' layers, ascending.

    Returns:
        samples: N.
        exact_match, over_prediction, under_prediction: shares of samples predicted at, beyond and before the exit that the
            threshold takes; they sum to 1.
        rank_correlation: Spearman's, of predicted and actual exits; NaN where either is constant.
        mean_layers: mean predicted layer.
        accuracy: at the predicted exits.
        constant_accuracy: of one depth for all at the same mean (a mix of the two neighbouring exits).
        random_accuracy: expected, of the predicted exits handed out at random.
        threshold_accuracy, threshold_mean_layers: of the exits that the threshold takes.
        oracle_accuracy, oracle_mean_layers: of each sample's earliest right exit (the last where none is right).

    Raises:
        ValueError: no samples, lengths that differ, or a layer that is no exit.
    """
    check_tensor("exit_logits", exit_logits, 3)
    for name, value in (("targets", targets), ("predicted", predicted), ("actual", actual)):
        check_tensor(name, value, 1, torch.int64)
        if value.numel() != exit_logits.shape[0] or not value.numel():
            raise ValueError(f"{name} must have {exit_logits.shape[0]} elements, at least one, got {value.numel()}")
    layers = torch.tensor(ascending_layers(exit_layers, exit_logits.shape[1]))
    correct = exit_logits.argmax(-1) == targets[:, None]
    accuracies = correct.double().mean(0)
    index, actual_index = _exit_index("predicted", predicted, layers), _exit_index("actual", actual, layers)
    earliest = correct.clone()
    earliest[:, -1] = True
    earliest = earliest.int().argmax(-1)
    mean_layers = float(predicted.double().mean())
    return {
        "samples": predicted.numel(),
        "exact_match": _share(predicted == actual),
        "over_prediction": _share(predicted > actual),
        "under_prediction": _share(predicted < actual),
        "rank_correlation": spearman(predicted, actual),
        "mean_layers": mean_layers,
        "accuracy": _share(_pick(correct, index)),
        "constant_accuracy": accuracy_at_depth(accuracies, layers, mean_layers),
        "random_accuracy": float(accuracies[index].mean()),
        "threshold_accuracy": _share(_pick(correct, actual_index)),
        "threshold_mean_layers": float(actual.double().mean()),
        "oracle_accuracy": _share(_pick(correct, earliest)),
        "oracle_mean_layers": float(layers[earliest].double().mean()),
    }


def accuracy_at_depth(accuracies: torch.Tensor, layers: torch.Tensor, depth: float) -> float:
    """Accuracy of one depth for all with mean `depth`: [E] accuracies at [E] layers, linear between two exits."""
    return float(np.interp(depth, layers.numpy(), accuracies.numpy()))


def _exit_index(name: str, values: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
    index = torch.searchsorted(layers, values).clamp(max=layers.numel() - 1)
    wrong = layers[index] != values
    if wrong.any():
        raise ValueError(f"{name} holds layer {int(values[wrong][0])}, which is no exit; exits: {layers.tolist()}")
    return index


def _pick(correct: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return correct.gather(1, index[:, None])[:, 0]


def _share(flags: torch.Tensor) -> float:
    return float(flags.double().mean())
