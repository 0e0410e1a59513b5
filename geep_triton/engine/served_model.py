"""The model that transformers' Auto classes load. It answers by its own policy, so that a pipeline exits early."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

import torch

from geep_triton.config import MultiExitBertConfig
from geep_triton.modeling.model import MultiExitBert
from geep_triton.modeling.outputs import MultiExitBertOutput
from geep_triton.warn import warn

if TYPE_CHECKING:
    from geep_triton.engine.serving import Serving


@torch.compiler.assume_constant_result  # it is run while the model is compiled, and not by what comes out
def _tell_of_fixed_depth() -> bool:
    warn("a model that is compiled, traced or exported has one depth for all texts: it answers at full depth, by no policy")
    return True


class ServedMultiExitBert(MultiExitBert):
    """A MultiExitBert whose plain forward pass answers by the policy of its `exit_config`.

    `AutoModelForSequenceClassification` loads it, and so does `pipeline("text-classification", model=folder)`. It is saved as a
    MultiExitBert, which it is in everything else.

    In evaluation mode, a call with no more than `input_ids`, `attention_mask` and `token_type_ids` answers each sample as
    `Engine` does with runner "torch", in the model's own dtype. The output's `exit_layers` say where each sample was answered.
    Tokens that the attention mask excludes are left out, wherever they are. In training mode, and where labels or any other
    option is given, it is the forward pass of MultiExitBert; `model(**inputs, exit_layer=L)` with the last layer L is the full
    model.

    Where the policy cannot run, the full model answers, and one warning says why: the policy does not fit the model; the
    calibration was made in another dtype; or the model is being compiled, traced or exported. A warning also says where the
    policy runs but its promise does not hold. The model sees no tokenizer. So it does not notice that texts were cut earlier
    than in the calibration, or that another tokenizer made the ids; `Engine` does.
    """

    def __init__(self, config: MultiExitBertConfig) -> None:
        super().__init__(config)
        self._serving: Serving | None = None
        self._told: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_serving": None}  # it is of this very object, and a copy makes its own

    @wraps(MultiExitBert.forward, assigned=(), updated=())  # transformers' Trainer reads the names of the arguments
    def forward(  # type: ignore[override]  # the same arguments
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        *arguments: Any,
        **options: Any,
    ) -> MultiExitBertOutput | tuple:
        """Answer by the policy, or as `MultiExitBert.forward` does, which has the arguments and errors; see the class.

        Args:
            input_ids: [B, S] int64 or int32.
            attention_mask: [B, S], 1 for real tokens. None: all tokens are real.
            token_type_ids: [B, S] segment ids, int64 or int32. None: all are 0.
            *arguments: further arguments of `MultiExitBert.forward`. With any, this is the forward pass of MultiExitBert.
            **options: the same by name. With any but `return_dict` that is not None or False, too.

        Raises:
            ValueError: a sample has no real token, or logits of an early exit are NaN or infinite.
        """
        inputs = (input_ids, attention_mask, token_type_ids)
        asked = any(value is not None and value is not False for name, value in options.items() if name != "return_dict")
        if self.training or arguments or asked:
            return super().forward(*inputs, *arguments, **options)
        return_dict = options.pop("return_dict", True)
        serving = self._served()
        result: Any
        if serving is None:
            result = super().forward(*inputs, **options)
            result.exit_layers = torch.full_like(input_ids[:, 0], self.config.num_hidden_layers, dtype=torch.int64)
        else:
            self._check_inputs(input_ids, None, "student", False)
            self._check_mask_and_segments(*inputs)
            if attention_mask is None:
                self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
            result = serving.answer(*inputs)
        return result if return_dict else result.to_tuple()

    def _served(self) -> Serving | None:
        """How the policy answers. None: the full model answers."""
        if self.exit_config.policy is None:
            return None
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            _tell_of_fixed_depth()
            return None
        from geep_triton.engine.serving import Serving  # imported here because it takes long, and few programs need it

        if self._serving is None or not self._serving.is_of(self):
            self._serving = Serving.of(self, self._tell)
        return self._serving if self._serving.runs else None

    def _tell(self, message: str) -> None:
        """Warn once."""
        if message not in self._told:
            self._told.add(message)
            warn(message)
