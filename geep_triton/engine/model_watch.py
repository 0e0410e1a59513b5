"""A watch over the model of an engine: it must not change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from geep_triton.answers import is_logistic, kind_of
from geep_triton.compat import attention_implementation
from geep_triton.engine.weight_watch import WeightWatch
from geep_triton.runners.attention import attention_kernels
from geep_triton.runners.base import Runner


class ModelWatch:
    """Refuses to run layers of a model that has changed since the engine was made.

    A calibration holds for the weights that it was made with. And a runner may share some weights with the model and hold
    copies of others: after a change they no longer belong together.
    """

    def __init__(self, runner: Runner[Any]) -> None:
        self._runner = runner
        self._modules = tuple(runner.modules())
        self._weights = WeightWatch(runner.model)
        self._attention = attention_implementation(runner.model.config)
        self._config = self._config_now()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run layers within this context: with the same weights from the first to the last, and in inference mode.

        Raises:
            ValueError: weights, configuration or attention implementation have changed, or the model was trained meanwhile.
        """
        self._check_model()
        for module in self._modules:
            if module.training:
                module.eval()
        with torch.inference_mode(), attention_kernels(self._runner.cudnn_attention):
            yield
        # Otherwise a window would be answered half by the old weights and half by the new ones.
        self.check_weights()
        if any(module.training for module in self._modules):
            raise ValueError("the model was set to training mode while the engine ran it: its answers are not kept")

    def _check_model(self) -> None:
        model = self._runner.model
        if self._config_now() != self._config:
            model.check_config()
        if attention_implementation(model.config) != self._attention:
            raise ValueError(
                "the model was given another attention implementation since this engine was made: make a new engine"
            )
        self.check_weights()
        model.exit_config.check_fits(len(model.config.exit_layers))

    def check_weights(self) -> None:
        """Raise ValueError where weights have changed since the engine was made."""
        if self._weights.changed():
            raise ValueError(
                "the model's weights have changed since this engine was made (by training, loading or moving them): make a new "
                "engine"
            )

    def _config_now(self) -> tuple[Any, ...]:
        config = self._runner.model.config
        return (
            dict(config.id2label),
            dict(config.label2id),
            kind_of(config),
            is_logistic(config),
            list(config.exit_layers),
            config.num_hidden_layers,
            config.vocab_size,
        )
