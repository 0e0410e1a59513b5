"""A model's own policy on padded batches, for its forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from geep_triton.engine.batching import BATCH_COSTS, schedule
from geep_triton.engine.checks import check_calibrated
from geep_triton.engine.layers import WindowLayers
from geep_triton.engine.planner import Planner
from geep_triton.engine.promise import Promise
from geep_triton.engine.run import WindowRun
from geep_triton.engine.scorer import Scorer
from geep_triton.exit_config import PROMISES_ON_ANSWERS
from geep_triton.modeling.model import MultiExitBert
from geep_triton.modeling.outputs import MultiExitBertOutput
from geep_triton.policies.policy import Policy
from geep_triton.policies.start import LastLayer
from geep_triton.policies.text import parse_policy
from geep_triton.runners.attention import attention_kernels
from geep_triton.runners.make import dtype_name
from geep_triton.runners.padded import PaddedRunner
from geep_triton.tokens.ragged import Tokens

Tell = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Serving:
    """Answers padded batches by the policy of a model's `exit_config`, with the parts of an engine.

    Attributes:
        runner: runs the model's own layers.
        policy: None: the model answers at full depth.
        settings: what the policy was checked with.
        longest: the most tokens of a sample that the calibration's promise is for. None: there is no such limit.
        tell: gives a warning once.
    """

    runner: PaddedRunner
    policy: Policy | None
    settings: tuple[Any, ...]
    longest: int | None
    tell: Tell

    @classmethod
    def of(cls, model: MultiExitBert, tell: Tell) -> Serving:
        """Make one for a model as it is now. It tells why the policy cannot run, or why its promise does not hold."""
        calibration = model.exit_config.calibration or {}
        promises = bool(calibration) and calibration["promise"][0] in PROMISES_ON_ANSWERS
        longest = calibration.get("max_length") if promises else None
        policy: Policy | None = None
        try:
            policy = parse_policy(model.exit_config.policy or "full")
            policy.check(model, None)
            if _is_full(policy, model):
                policy = None
            else:
                check_calibrated(model, dtype_name(model), ranks=False)
                # How long texts are, and whether they were cut, is not known yet.
                Promise.saved(model, calibration.get("max_length", 0))
        except ValueError as error:
            policy = None
            tell(f"the model answers at full depth, because its policy cannot run here: {error}")
        return cls(PaddedRunner(model), policy, _settings(model), longest, tell)

    def is_of(self, model: MultiExitBert) -> bool:
        """Whether it is for this model, and nothing has changed that the policy depends on."""
        return self.runner.model is model and self.settings == _settings(model)

    @property
    def runs(self) -> bool:
        """Whether the policy runs. If not, the model's plain forward pass gives the answers."""
        return self.policy is not None

    def answer(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, token_type_ids: torch.Tensor | None
    ) -> MultiExitBertOutput:
        """Answer a batch, in the order of its samples.

        Args:
            input_ids: [B, S] int64 or int32.
            attention_mask: [B, S], not 0 for real tokens. None: all tokens are real.
            token_type_ids: [B, S] int64 or int32. None: all are 0.

        Returns:
            The logits [B, C] in the model's dtype, and the exit layers [B] int64, both on the model's device.

        Raises:
            ValueError: a sample has no real token, or an exit gave logits that are NaN or infinite.
        """
        model, policy = self.runner.model, self.policy or Policy(LastLayer())
        tokens = _tokens_of(input_ids, attention_mask, token_type_ids)
        if self.longest is not None and int(tokens.lengths.max()) > self.longest:
            self.tell(
                f"the model was calibrated with texts of at most {self.longest} tokens (max_length): its promise does not hold "
                "for longer ones"
            )
        model.table_fits()  # no engine watches the weights here
        rule, plan = policy.rule(model), policy.plan(model)
        with attention_kernels(self.runner.cudnn_attention):
            layers = WindowLayers(self.runner, tokens, policy.skip_on(model))
            scorer = None if rule is None else Scorer(rule, layers)
            planner = None if plan is None else Planner(plan, layers)
            # The caller chose the size of the batch, so all of it may run at once.
            batches = schedule(
                policy.stops(model, tokens),
                tokens.lengths,
                input_ids.numel(),
                layers.groups,
                BATCH_COSTS.get(model.device.type, BATCH_COSTS["cuda"]),
            )
            run = WindowRun(layers, scorer, policy.answer_head, planner=planner)
            answers = list(run.answers(batches))
        run.check(0, len(tokens))
        back = torch.cat([answer.rows for answer in answers]).argsort()
        exits = torch.cat([torch.full_like(answer.rows, answer.exit_layer) for answer in answers])[back]
        logits = torch.cat([answer.logits for answer in answers])
        return MultiExitBertOutput(logits=logits[back.to(logits.device)], exit_layers=exits.to(logits.device))


def _is_full(policy: Policy, model: MultiExitBert) -> bool:
    """Whether a policy is what the plain forward pass does: all layers, and the gates skip if there are any."""
    return isinstance(policy.start, LastLayer) and policy.skip_on(model).mode == ("gates" if len(model.gates) else "never")


def _settings(model: MultiExitBert) -> tuple[Any, ...]:
    return (*vars(model.exit_config).values(), model.exit_table, model.dtype, model.device)


def _tokens_of(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, token_type_ids: torch.Tensor | None) -> Tokens:
    """The real tokens of a padded batch, on the host. ValueError where a sample has none."""
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
    real = real.cpu()
    lengths = real.sum(1)
    if int(lengths.min()) == 0:
        raise ValueError(f"attention_mask must have a token for each sample, got none for sample {int(lengths.argmin())}")
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    type_ids = None if token_type_ids is None else token_type_ids.cpu()[real].long()
    return Tokens(input_ids.cpu()[real].long(), offsets, type_ids)
