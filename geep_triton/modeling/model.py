"""MultiExitBert: Hugging Face's BERT with an exit head after any of its layers, and gates that let samples skip layers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import BertModel
from transformers.utils import logging

from geep_triton.checks import check_choice, check_int, check_kind, shorten
from geep_triton.compat import (
    BertPreTrainedModel,
    ForSequenceClassificationLoss,
    attention_implementation,
    create_bidirectional_mask,
)
from geep_triton.config import MultiExitBertConfig
from geep_triton.exit_config import ExitConfig, write_exit_config
from geep_triton.labels import check_targets
from geep_triton.modeling.gates import GateLinear, build_gates
from geep_triton.modeling.heads import XavierLinear, build_heads
from geep_triton.modeling.loading import load_pretrained
from geep_triton.modeling.outputs import MultiExitBertOutput
from geep_triton.modeling.storing import write_model
from geep_triton.ops.skip_gate import SkipGate
from geep_triton.saving import Replacement, replacing
from geep_triton.table.exit_table import OTHER_WEIGHTS, ExitTable
from geep_triton.tensor_files import tensors_digest

if TYPE_CHECKING:
    from transformers.masking_utils import BlockMask

ID_DTYPES = (torch.int64, torch.int32)  # what torch's embeddings take
ANSWER_HEADS = ("student", "shared")
GATINGS = ("soft", "hard", "none")
MASK_ALIGNMENT = 16  # values at which the rows of a mask begin
NO_GATES = "this model has no skip gates: load it with skip_gate='attention' or 'mean' and train it by recipe 'smartbert'"
PUSH_ARGUMENTS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


logger = logging.get_logger(__name__)


def additive_mask(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Attention mask [B, S] -> what SDPA adds to the scores, [B, 1, 1, S] in the states' dtype: 0, or -inf on padding.

    It is what transformers would make, but not spread over the queries, and without its wait for a GPU. SDPA would make the
    same of a bool mask in every layer, and again of one whose rows do not begin at whole 16 values.
    """
    samples, length = attention_mask.shape
    added = hidden_states.new_zeros(samples, 1, 1, -(-length // MASK_ALIGNMENT) * MASK_ALIGNMENT)[..., :length]
    return added.masked_fill_(attention_mask[:, None, None, :] == 0, -torch.inf)


@dataclass(frozen=True)
class Converted:
    """What an engine that owns a model did to it in place.

    Attributes:
        layers: dtype in which its layers were laid out for inference, such as "float32" or "int8"; the model is then for
            inference only, where it is. None: they are as they were.
        digest: of the weights before they were rounded, by which they are known; None: they were not rounded.
        dtype: of the weights before.
    """

    layers: str | None
    digest: str | None
    dtype: str


class MultiExitBert(BertPreTrainedModel):
    """A BERT classifier that can answer after any of `config.exit_layers`.

    The backbone is `transformers.BertModel` without its pooler: its own embeddings and layers, called one by one.
    `heads[str(k)]` answers after layer k (counted from 1). `gates[str(k)]`, where `config.skip_layers` names layer k, decides
    which samples skip it (SmartBERT, Hu et al. 2023). An optional `exit_table` predicts exits from tokens. `config` says what
    shape the model has, `exit_config` how it is served.

    Shapes: B samples, S tokens, H hidden size, C labels, L layers.
    """

    config: MultiExitBertConfig
    config_class = MultiExitBertConfig
    # A checkpoint of an unfinished training also holds what only its recipe needs.
    _keys_to_ignore_on_load_unexpected = (r"^auxiliary\.",)

    def __init__(self, config: MultiExitBertConfig) -> None:
        config.check_labels()
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = BertModel(config, add_pooling_layer=False)
        self.heads = build_heads(config)
        self.gates = build_gates(config)
        self.auxiliary: nn.Module | None = None  # what a recipe trains along; see `geep_triton.training.stages.Recipe`
        self.converted: Converted | None = None
        self._exit_table: ExitTable | None = None
        self._exit_config = ExitConfig()
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *model_args: Any, **kwargs: Any
    ) -> MultiExitBert:
        """Load a BERT, a fine-tuned BertForSequenceClassification, or a saved MultiExitBert.

        Args:
            pretrained_model_name_or_path: hub id or folder with config.json and safetensors weights.
            **kwargs: any field of `MultiExitBertConfig` (num_labels, exit_layers, head, pooling, ...), what `exit_config` shall
                have in place of what was saved (exit_policy, skipping, exit_thresholds, exit_temperatures, calibration) and any
                argument of `transformers.PreTrainedModel.from_pretrained` (dtype, device_map, revision, ...).
                A checkpoint that only has a pickle is refused unless use_safetensors=False.

        A BertForSequenceClassification keeps its pooler and classifier as the last exit: its full-depth logits do not
        change. Heads that the checkpoint lacks start untrained, as transformers reports.

        Raises:
            ValueError: for a checkpoint of another architecture, without safetensors, damaged, or with missing or
                wrong-shaped tensors; for another kind of head than a saved MultiExitBert was trained with; for an exit table or
                an exit_config.json that does not fit the model.
            TypeError: for a value of another type.
        """
        return load_pretrained(super().from_pretrained, pretrained_model_name_or_path, *model_args, **kwargs)

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write config.json, exit_config.json, the weights and, where there is one, the exit table; tensors as safetensors.

        All or nothing: where it fails or is killed, the folder holds what it held before, or all of this. Weights that are
        there already are not written again. config.json has digests of the parts, by which `from_pretrained` tells that they
        belong together.

        The exit table's file holds the token ids of the texts it was built from only where the table was built with
        `save_records=True`.

        Args:
            save_directory: made where it does not exist.
            is_main_process: whether this process writes.
            push_to_hub: upload the same to the hub, by `push_to_hub` with the arguments of its that are in **kwargs.
            **kwargs: of `transformers.PreTrainedModel.save_pretrained` and `push_to_hub`.

        Raises:
            ValueError: a configuration that was changed to other classes or another vocabulary than the weights have, or an
                `exit_config` that does not fit the exits.
            OSError: what writing raises.
        """
        hub = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if name in kwargs}
        # The names of the checkpoint that this model was loaded from may not fit a model with exits.
        kwargs.setdefault("save_original_format", False)
        if is_main_process and not kwargs.get("distributed_checkpoint"):
            with replacing(save_directory) as new:
                self.save_into(new, **kwargs)
        else:  # it writes nothing, or its part of what all processes write
            super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
            if is_main_process:
                write_exit_config(self.exit_config, save_directory, None)
        if push_to_hub and is_main_process:
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), **hub)

    def save_into(self, new: Replacement, **kwargs: Any) -> None:
        """Write what `save_pretrained` saves, with its **kwargs, among other files that shall appear together."""
        self.check_config()
        self._drop_stale_table()
        kwargs.setdefault("save_original_format", False)
        write_model(super().save_pretrained, self, new, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (XavierLinear, GateLinear)):
            module.init_weights()
        else:
            super()._init_weights(module)

    @property
    def _rounded(self) -> Converted | None:
        return None if self.converted is None or self.converted.digest is None else self.converted

    def train(self, mode: bool = True) -> MultiExitBert:
        """As torch's. ValueError for a model whose layers an engine converted."""
        if mode:
            self._refuse_converted("cannot be trained")
        return super().train(mode)

    def load_state_dict(self, *arguments: Any, **kwargs: Any) -> Any:
        """As torch's. ValueError for a model whose layers an engine converted."""
        self._refuse_converted("takes no other weights")
        return super().load_state_dict(*arguments, **kwargs)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> MultiExitBert:
        now = next(self.parameters()).detach()[:0]
        then = fn(now)
        if (then.device, then.dtype) != (now.device, now.dtype):
            self._refuse_converted(f"stays in {now.dtype} on {now.device}, got {then.dtype} on {then.device}")
        return super()._apply(fn, recurse)

    def _refuse_converted(self, what: str) -> None:
        if self.converted is not None and self.converted.layers is not None:
            raise ValueError(f"the model's layers were converted for inference: it {what}; load it again")

    def weights_digest(self) -> str:
        """Digest of the weights, or of those that they were before an engine rounded them in place."""
        return tensors_digest(self.state_dict()) if self._rounded is None else self._rounded.digest

    def original_weights(self) -> dict[str, torch.Tensor] | None:
        """The weights before an engine rounded them in place, loaded again; None where none did.

        Raises:
            ValueError: they are not there any more.
        """
        if self._rounded is None:
            return None
        source = self.config.name_or_path
        state = type(self).from_pretrained(source, dtype=self._rounded.dtype).state_dict()
        if tensors_digest(state) != self._rounded.digest:
            raise ValueError(
                f"an engine rounded this model's weights for inference, and {source} does not hold what they were any more: "
                "load the model by MultiExitBert.from_pretrained and save that"
            )
        return state

    def check_config(self) -> None:
        """Raise ValueError where the configuration was changed to what this model is not: other classes, layers or tokens.

        Also where `exit_config` has another number of thresholds or temperatures than the exits need.
        """
        config = self.config
        config.check_labels()
        found = {
            "num_labels": self.num_labels,
            "vocab_size": self.bert.embeddings.word_embeddings.num_embeddings,
            "num_hidden_layers": len(self.bert.encoder.layer),
            "exit_layers": [int(layer) for layer in self.heads],
        }
        for name, value in found.items():
            if getattr(config, name) != value:
                raise ValueError(
                    f"config.{name} must be {value}, as the weights have it, got {getattr(config, name)}"
                    f"{f' (id2label={shorten(config.id2label)})' if name == 'num_labels' else ''}"
                )
        self.exit_config.check_fits(len(config.exit_layers))

    def resize_token_embeddings(self, *arguments: Any, **kwargs: Any) -> nn.Embedding:
        """As transformers'; with another vocabulary the exit table and the calibration are dropped, aloud."""
        before = self.config.vocab_size
        embeddings = super().resize_token_embeddings(*arguments, **kwargs)
        if self.config.vocab_size != before:
            self._drop_stale_table()
            self.forget_calibration()
        return embeddings

    def _drop_stale_table(self) -> None:
        if self._exit_table is not None and self._exit_table.vocab_size != self.config.vocab_size:
            logger.warning(
                f"The model's exit table is dropped: it was built for a vocabulary of {self._exit_table.vocab_size}, now the "
                f"model has {self.config.vocab_size}. Build it again."
            )
            self.exit_table = None

    def forget_calibration(self) -> None:
        """Drop the calibrated policy and its promise, which hold for these weights, exits, temperatures and table only."""
        served = self.exit_config
        if served.calibration is not None:
            logger.warning("The model's calibration is dropped, since what it was made for has changed: calibrate again.")
        served.policy = served.skipping = served.calibration = None

    @property
    def exit_config(self) -> ExitConfig:
        """How the model is served; saved and loaded with the model, as exit_config.json.

        Setting one takes over its values, which are checked: ValueError where they do not fit the exits. So this stays one and
        the same object, which an engine's copies of the model share.
        """
        return self._exit_config

    @exit_config.setter
    def exit_config(self, exit_config: ExitConfig) -> None:
        check_kind("exit_config", exit_config, ExitConfig)
        exit_config.check_fits(len(self.config.exit_layers))
        self._exit_config.take_over(exit_config)

    @property
    def exit_table(self) -> ExitTable | None:
        """Predicts exits from tokens; saved and loaded with the model.

        Setting one of another vocabulary or other exits raises ValueError; one that was built with other weights is warned of.
        """
        return self._exit_table

    @exit_table.setter
    def exit_table(self, table: ExitTable | None) -> None:
        if table is not None:
            check_kind("exit_table", table, ExitTable)
            before = None if self._exit_table is None else self._exit_table.weights
            if table.weights not in (None, before, self.weights_digest()):
                logger.warning(OTHER_WEIGHTS)
        self.attach_table(table)

    def attach_table(self, table: ExitTable | None) -> None:
        """Set `exit_table`, whose weights need not be looked at."""
        if table is not None:
            table.check_fits(self.config.vocab_size, self.config.exit_layers)
        if self._exit_table is not None and (table is None or not table.predicts_as(self._exit_table)):
            self.forget_calibration()  # it was measured with the other table
        self._exit_table = table

    def embed(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids [B, S] -> h_0 [B, S, H]."""
        return self.bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)

    def layer_mask(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor | BlockMask | None:
        """Attention mask [B, S] -> the mask that this model's attention implementation wants (None: nothing masked).

        For SDPA it is that of `additive_mask`.
        """
        if attention_implementation(self.config) == "sdpa":
            return additive_mask(hidden_states, attention_mask)
        return create_bidirectional_mask(config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask)

    def run_layer(self, layer: int, hidden_states: torch.Tensor, layer_mask: Any) -> torch.Tensor:
        """h_{layer-1} [B, S, H] -> h_layer [B, S, H]; layers count from 1."""
        return self.bert.encoder.layer[layer - 1](hidden_states, layer_mask)

    def run_layers(self, first: int, last: int, hidden_states: torch.Tensor, layer_mask: Any) -> torch.Tensor:
        """h_{first-1} [B, S, H] -> h_last [B, S, H], one layer after another; as it is where last < first."""
        for layer in range(first, last + 1):
            hidden_states = self.run_layer(layer, hidden_states, layer_mask)
        return hidden_states

    def skip_gate(self, layer: int, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> SkipGate | None:
        """h_{layer-1} [B, S, H] -> who skips the layer; None where it has no gate."""
        if str(layer) not in self.gates:
            return None
        return self.gates[str(layer)](hidden_states, attention_mask, self.config.skip_threshold)

    def exit_logits(self, layer: int, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """h_layer [B, S, H] -> logits [B, C] of the head at `layer`, at its temperature."""
        return self.at_temperature(layer, self.heads[str(layer)](hidden_states, attention_mask))

    def at_temperature(self, layer: int, logits: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] of the head at `layer`, divided by the temperature of that exit."""
        if self.exit_config.temperatures is None:
            return logits
        return logits / self.exit_config.temperatures[self.config.exit_layers.index(layer)]

    def shared_logits(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, layer_mask: Any) -> torch.Tensor:
        """h_k [B, S, H] -> logits [B, C] of the last head on the last layer, ungated, on h_k (GEEP's sub-network k)."""
        last = self.config.num_hidden_layers
        return self.exit_logits(last, self.run_layer(last, hidden_states, layer_mask), attention_mask)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        exit_layer: int | None = None,
        answer_head: str = "student",
        output_exit_logits: bool = False,
        output_shared_logits: bool = False,
        output_hidden_states: bool = False,
        gating: str | None = None,
        output_gates: bool = False,
        output_layer_outputs: bool = False,
        return_dict: bool = True,
    ) -> MultiExitBertOutput | tuple:
        """Run the batch to one depth.

        With gates, h_i = (1 - g_i) T_i(h_{i-1}) + g_i h_{i-1}: every layer runs for every sample here and gates choose between
        its output and its input, which is what training needs; `Engine` gives the same answers and saves the skipped layers.
        An early head reads its layer's output T_i, also for who skips the layer: it never sees another layer's states.

        Args:
            input_ids: [B, S] int64.
            attention_mask: [B, S], 1 for real tokens; None: all are.
            token_type_ids: [B, S] segment ids; None: all 0.
            labels: [B] int64 classes, or float targets for regression. The loss is that of the answer where
                `exit_layer` is given, else the mean over all exits, so that any training loop trains every head.
            exit_layer: an exit to stop at; None: the last.
            answer_head: what answers at an early `exit_layer`: its own head ("student"), or the last layer and last head on
                top of it ("shared"; one layer more, trained by the GEEP recipe).
            output_exit_logits: also return the logits of every exit up to the depth.
            output_shared_logits: also return GEEP's sub-networks' logits; full depth only.
            output_hidden_states: also return h_0 and every layer's output.
            gating: "hard" (g_i is 0 or 1, with the gradient of the soft gate: straight through), "soft" (in 0..1), or "none"
                (every layer runs). None: hard where the model has gates.
            output_gates: also return gates and decisions of the gated layers.
            output_layer_outputs: also return what each layer gave before its gate.
            return_dict: False returns a tuple of what is not None.

        Raises:
            ValueError: token ids outside the vocabulary or labels that are no classes (checked on a CPU), inputs longer than
                the position embeddings, an `exit_layer` that is no exit, gates asked of a model without gates.
        """
        self._check_inputs(input_ids, exit_layer, answer_head, output_shared_logits)
        self._check_labels(labels, len(input_ids))
        self._check_beside(input_ids, attention_mask, token_type_ids)
        gating = self._gating(gating, output_gates)
        last = self.config.num_hidden_layers
        depth = last if exit_layer is None else exit_layer
        every_exit = output_exit_logits or output_shared_logits or (labels is not None and exit_layer is None)
        if attention_mask is None:
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
            attention_mask = torch.ones_like(input_ids)

        hidden = self.embed(input_ids, token_type_ids)
        mask = self.layer_mask(hidden, attention_mask)
        states = [hidden] if output_hidden_states else []
        outputs: list[torch.Tensor] = []
        gates: list[SkipGate] = []
        exits: dict[int, torch.Tensor] = {}
        shared: list[torch.Tensor] = []
        for layer in range(1, depth + 1):
            gate = self.skip_gate(layer, hidden, attention_mask) if gating != "none" else None
            output = self.run_layer(layer, hidden, mask)
            if gate is None:
                hidden = output
            else:
                gates.append(gate)
                share = (gate.soft if gating == "soft" else gate.hard).to(output.dtype)[:, None, None]
                hidden = (1 - share) * output + share * hidden
            if output_layer_outputs:
                outputs.append(output)
            if output_hidden_states:
                states.append(hidden)
            if layer in self.config.exit_layers and (every_exit or layer == depth):
                exits[layer] = self.exit_logits(layer, hidden if layer == last else output, attention_mask)
                if output_shared_logits and layer < last - 1:
                    shared.append(self.shared_logits(hidden, attention_mask, mask))
        logits = exits[depth]
        if answer_head == "shared" and depth < last:
            logits = self.shared_logits(hidden, attention_mask, mask)

        loss = None
        if labels is not None:
            answers = list(exits.values()) if exit_layer is None else [logits]
            losses = [ForSequenceClassificationLoss(labels, answer, self.config) for answer in answers]
            loss = torch.stack(losses).mean()
        result = MultiExitBertOutput(
            loss=loss,
            logits=logits,
            exit_logits=tuple(exits.values()) if output_exit_logits else None,
            shared_logits=tuple(shared) if output_shared_logits else None,
            hidden_states=tuple(states) if output_hidden_states else None,
            gates=tuple(gate.soft for gate in gates) if output_gates else None,
            skips=tuple(gate.hard.bool() for gate in gates) if output_gates else None,
            layer_outputs=tuple(outputs) if output_layer_outputs else None,
        )
        if self.auxiliary is not None and self.training:
            # Within the forward pass, where mixed precision and several processes see it.
            result.auxiliary = self.auxiliary(self, result, attention_mask)
        return result if return_dict else result.to_tuple()

    def _gating(self, gating: str | None, output_gates: bool) -> str:
        if gating is None:
            gating = "hard" if len(self.gates) else "none"
        check_choice("gating", gating, GATINGS)
        if (gating != "none" or output_gates) and not len(self.gates):
            raise ValueError(f"gating={gating!r}, output_gates={output_gates}: {NO_GATES}")
        return gating

    def _check_beside(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, token_type_ids: torch.Tensor | None
    ) -> None:
        """What comes beside the ids must be of their shape, and segments the model's own."""
        for name, value in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if value is None:
                continue
            check_kind(name, value, torch.Tensor)
            if value.shape != input_ids.shape:
                raise ValueError(f"{name} must have shape {tuple(input_ids.shape)}, as input_ids, got {tuple(value.shape)}")
        if token_type_ids is None:
            return
        if token_type_ids.dtype not in ID_DTYPES:
            raise TypeError(f"token_type_ids must be int64 or int32, got {token_type_ids.dtype}")
        if token_type_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = token_type_ids.aminmax()
            if low < 0 or high >= self.config.type_vocab_size:
                raise ValueError(
                    f"token_type_ids must be between 0 and {self.config.type_vocab_size - 1}, got {int(low)}..{int(high)}"
                )

    def _check_labels(self, labels: torch.Tensor | None, samples: int) -> None:
        """Before transformers takes floats for one label of several, or the loss reads a class that is none."""
        if labels is not None:
            check_kind("labels", labels, torch.Tensor)
            if labels.ndim == 0 or len(labels) != samples:
                raise ValueError(f"labels must be one per sample ({samples}), got shape {tuple(labels.shape)}")
        if labels is None or labels.ndim != 1 or labels.device.type != "cpu" or torch.compiler.is_compiling():
            return
        if self.num_labels > 1 and self.config.problem_type in (None, "single_label_classification"):
            check_targets(labels, self.num_labels, ignored=-100)

    def _check_inputs(
        self, input_ids: torch.Tensor, exit_layer: int | None, answer_head: str, output_shared_logits: bool
    ) -> None:
        check_kind("input_ids", input_ids, torch.Tensor)
        if input_ids.dtype not in ID_DTYPES:
            raise TypeError(f"input_ids must be int64 or int32, got {input_ids.dtype}")
        if input_ids.ndim != 2 or input_ids.numel() == 0:
            raise ValueError(f"input_ids must have shape [batch, tokens] with at least one token, got {tuple(input_ids.shape)}")
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"input_ids must have at most {self.config.max_position_embeddings} tokens, got {input_ids.shape[1]}"
            )
        # On a GPU the check would cost a synchronisation; there the embedding itself asserts.
        if input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = input_ids.aminmax()
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(
                    f"input_ids must be between 0 and {self.config.vocab_size - 1}, got {int(low)}..{int(high)}: "
                    "is this the model's own tokenizer?"
                )
        check_choice("answer_head", answer_head, ANSWER_HEADS)
        if exit_layer is not None:
            check_int("exit_layer", exit_layer, 1, self.config.num_hidden_layers)
            if exit_layer not in self.config.exit_layers:
                raise ValueError(f"exit_layer {exit_layer} is not an exit; exit_layers: {self.config.exit_layers}")
            if output_shared_logits:
                raise ValueError("output_shared_logits needs the full depth: leave exit_layer out")
