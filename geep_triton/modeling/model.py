"""MultiExitBert: Hugging Face's BERT with an exit head after any of its layers and gates that skip layers per sample."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import CommitInfo
from torch import nn
from transformers import BertModel
from transformers.utils import logging

from geep_triton.answers import Answers, answers_of, is_logistic, kind_of
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
from geep_triton.modeling.converted import Converted
from geep_triton.modeling.gates import GateLinear, build_gates
from geep_triton.modeling.heads import XavierLinear, build_heads
from geep_triton.modeling.int8_layers import Int8Layers
from geep_triton.modeling.loading import load_pretrained
from geep_triton.modeling.outputs import MultiExitBertOutput
from geep_triton.modeling.seen_weights import SeenWeights
from geep_triton.modeling.storing import write_model
from geep_triton.ops.skip_gate import SkipGate
from geep_triton.pushing import PushOptions, push
from geep_triton.saving import Replacement, replacing
from geep_triton.table.exit_table import OTHER_WEIGHTS, ExitTable
from geep_triton.tensor_files import tensors_digest

if TYPE_CHECKING:
    from transformers.masking_utils import BlockMask
    from typing_extensions import Unpack

ID_DTYPES = (torch.int64, torch.int32)  # the dtypes that torch's embeddings take
ANSWER_HEADS = ("student", "shared")
GATINGS = ("soft", "hard", "none")
MASK_ALIGNMENT = 16  # the rows of a mask start at multiples of this many values
NO_GATES = "this model has no skip gates: load it with skip_gate='attention' or 'mean' and train it by recipe 'smartbert'"
PUSH_ARGUMENTS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


logger = logging.get_logger(__name__)


def additive_mask(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The mask that SDPA adds to the attention scores: 0 for real tokens, -inf for padding.

    transformers makes the same mask, but it expands the mask over the queries and waits for the GPU. From a bool mask, or one
    whose rows do not start at multiples of 16 values, SDPA would make this mask again in every layer.

    Args:
        hidden_states: [B, S, H]. They give the dtype and the device.
        attention_mask: [B, S], 1 for real tokens.

    Returns:
        [B, 1, 1, S] in the dtype of the states.
    """
    samples, length = attention_mask.shape
    added = hidden_states.new_zeros(samples, 1, 1, -(-length // MASK_ALIGNMENT) * MASK_ALIGNMENT)[..., :length]
    return added.masked_fill_(attention_mask[:, None, None, :] == 0, -torch.inf)


class MultiExitBert(BertPreTrainedModel):
    """A BERT classifier that can answer after any of `config.exit_layers`.

    The backbone is `transformers.BertModel` without its pooler. Its own embeddings and layers are called one by one.
    `heads[str(k)]` answers after layer k (counted from 1). `gates[str(k)]` exists for each layer k in `config.skip_layers` and
    decides which samples skip it (SmartBERT, Hu et al. 2023). An optional `exit_table` predicts exits from tokens. `config`
    describes the shape of the model, `exit_config` how it is served.

    Shapes: B samples, S tokens, H hidden size, C labels, L layers.
    """

    config: MultiExitBertConfig
    config_class = MultiExitBertConfig
    # A checkpoint of an unfinished training also has the weights of the recipe's own modules.
    _keys_to_ignore_on_load_unexpected = (r"^auxiliary\.",)  # type: ignore[assignment]  # a list that cannot change

    if TYPE_CHECKING:  # transformers does not type these two, and a decorator hides that `to` is a method

        def to(self, *arguments: Any, **kwargs: Any) -> MultiExitBert:  # type: ignore[override]
            """As torch's."""

        def eval(self) -> MultiExitBert:
            """As torch's."""

    def __init__(self, config: MultiExitBertConfig) -> None:
        config.check_labels()
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = BertModel(config, add_pooling_layer=False)
        self.heads = build_heads(config)
        self.gates = build_gates(config)
        self.auxiliary: nn.Module | None = None  # a recipe's own module; see `geep_triton.training.stages.Recipe`
        self.converted: Converted | None = None
        self._exit_table: ExitTable | None = None
        self._int8_layers: Int8Layers | None = None
        self._table_fits_weights = True
        self._seen_weights: SeenWeights | None = None
        self._exit_config = ExitConfig()
        self.post_init()

    @classmethod
    def from_pretrained(  # type: ignore[override]  # no None; the rest passes through
        cls, pretrained_model_name_or_path: str | os.PathLike, *model_args: Any, **kwargs: Any
    ) -> MultiExitBert:
        """Load a BERT, a fine-tuned BertForSequenceClassification, or a saved MultiExitBert.

        A BertForSequenceClassification keeps its pooler and classifier as the last exit, so its full-depth logits do not
        change. Heads that the checkpoint lacks start untrained, as transformers reports.

        Args:
            pretrained_model_name_or_path: hub id or folder with config.json and safetensors weights.
            *model_args: passed on to `transformers.PreTrainedModel.from_pretrained`.
            **kwargs: any field of `MultiExitBertConfig` (num_labels, exit_layers, head, pooling, ...), any field of
                `exit_config` that replaces the saved one (exit_policy, exit_thresholds, exit_temperatures, calibration), and
                any argument of `transformers.PreTrainedModel.from_pretrained` (dtype, device_map, revision, ...). A checkpoint
                that only has a pickle is refused unless use_safetensors=False.

        Raises:
            ValueError: the checkpoint has another architecture, has no safetensors, is damaged, or has missing or wrong-shaped
                tensors.
            ValueError: a saved MultiExitBert was trained with another kind of head, or its exit table or exit_config.json does
                not fit the model.
            TypeError: a value has another type.
        """
        # A pair with output_loading_info=True, of which transformers' own type says nothing, either.
        return load_pretrained(super().from_pretrained, pretrained_model_name_or_path, *model_args, **kwargs)  # type: ignore[return-value]

    def save_pretrained(  # type: ignore[override]  # the rest passes through
        self, save_directory: str | os.PathLike, is_main_process: bool = True, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Save config.json, exit_config.json, the weights, the exit table if there is one, and a model card.

        Tensors are saved as safetensors. The card (README.md) says what the model promises, in numbers. Of a README.md that is
        there only the part between the card's two comments is replaced; one without them stays as it is.

        Saving is atomic. If it fails or is killed, the folder has either its old content or all of the new content. Weights
        that are already in the folder are not written again. config.json has digests of the parts, with which `from_pretrained`
        checks that they belong together.

        The exit table's file has the token ids of the texts that it was built from only if the table was built with
        `save_records=True`.

        Args:
            save_directory: folder to save to. It is created if it does not exist.
            is_main_process: whether this process writes.
            push_to_hub: whether to upload the same files to the hub. **kwargs may have the arguments of `push_to_hub`.
            **kwargs: arguments of `transformers.PreTrainedModel.save_pretrained` and `push_to_hub`.

        Raises:
            ValueError: the configuration was changed to other classes or another vocabulary than the weights have, or
                `exit_config` does not fit the exits.
            OSError: writing fails.
        """
        hub = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if name in kwargs}
        # The names of tensors in the original checkpoint may not fit a model with exits.
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
        """Write the files of `save_pretrained`, with its **kwargs, as part of a larger atomic replacement."""
        self.check_config()
        self._drop_stale_table()
        kwargs.setdefault("save_original_format", False)
        write_model(super().save_pretrained, self, new, **kwargs)

    def push_to_hub(  # type: ignore[override]  # transformers types no argument
        self, repo_id: str, *, max_shard_size: int | str = "50GB", **options: Unpack[PushOptions]
    ) -> CommitInfo:
        """Upload the files of `save_pretrained` to the Hugging Face hub, in one commit.

        transformers' own method would put a card of its own in the place of this model's.

        Args:
            repo_id: see `geep_triton.pushing.push`.
            max_shard_size: as for `transformers.PreTrainedModel.save_pretrained`.
            **options: see `geep_triton.pushing.PushOptions`; the tags come besides those of `add_model_tags`.

        Returns:
            The commit, which is also its URL as a string.

        Raises:
            ValueError: as `save_pretrained`.
            OSError: the hub refuses or cannot be reached.
        """
        tags = options.get("tags") or ()
        options["tags"] = [*(self.model_tags or ()), *([tags] if isinstance(tags, str) else tags)]
        return push(partial(self.save_pretrained, max_shard_size=max_shard_size), repo_id, **options)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (XavierLinear, GateLinear)):
            module.init_weights()
        else:
            super()._init_weights(module)

    def train(self, mode: bool = True) -> MultiExitBert:
        """Set training mode as in torch.

        Raises:
            ValueError: an engine converted the model's layers, or rounded its weights.
        """
        if mode and self.converted is not None and self.converted.rounded is not None:
            raise ValueError("an engine rounded the model's weights for inference: it cannot be trained; load it again")
        if mode:
            self._refuse_converted("cannot be trained")
        return super().train(mode)

    def load_state_dict(self, *arguments: Any, **kwargs: Any) -> Any:
        """Load weights as in torch.

        Raises:
            ValueError: an engine converted the model's layers.
        """
        self._refuse_converted("cannot load other weights")
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
        """Digest of the weights. If an engine rounded them in place, it is the digest of the original weights."""
        rounded = None if self.converted is None else self.converted.rounded
        if rounded is None or rounded.version != self.weights_version():
            return tensors_digest(self.state_dict())
        return rounded.digest

    def weights_version(self) -> int:
        """A number that changes when torch writes to a weight."""
        return sum(weight._version for weight in self.parameters() if not weight.is_inference())

    def original_weights(self) -> dict[str, torch.Tensor] | None:
        """The weights before an engine rounded them in place, loaded again. None if they were not rounded, or edited since.

        Raises:
            ValueError: they are no longer at the place that the model was loaded from.
        """
        rounded = None if self.converted is None else self.converted.rounded
        if rounded is None:
            return None
        if rounded.version != self.weights_version():
            logger.warning("The weights were edited after an engine had rounded them: they are saved as they are now.")
            return None
        state = type(self).from_pretrained(rounded.source, dtype=rounded.dtype).state_dict()
        if tensors_digest(state) != rounded.digest:
            raise ValueError(
                f"an engine rounded this model's weights for inference, and {rounded.source} does not have the weights of "
                "before: load the model by MultiExitBert.from_pretrained and save that"
            )
        return state

    def check_config(self) -> None:
        """Check that the configuration still describes this model, and that `exit_config` fits the exits.

        Raises:
            ValueError: the configuration was changed to other classes, layers, exits or another vocabulary, or the number of
                thresholds or temperatures does not fit the exits.
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
        _ = self.answers
        if self.exit_config.temperatures is not None and kind_of(config) == "score":
            raise ValueError("temperatures are of probabilities, by which exits are compared: they would change a score")

    @property
    def answers(self) -> Answers:
        """What the logits mean: one class, one score or a set of labels.

        Raises:
            ValueError: the decision or the tolerance of `exit_config` does not fit the number of labels or the problem type.
        """
        return answers_of(self.config, self.exit_config)

    def resize_token_embeddings(self, *arguments: Any, **kwargs: Any) -> nn.Embedding:
        """Resize as in transformers. With another vocabulary, the exit table and the calibration are dropped with a warning."""
        before = self.config.vocab_size
        embeddings = super().resize_token_embeddings(*arguments, **kwargs)
        if self.config.vocab_size != before:
            self._drop_stale_table()
            self.forget_calibration()
        return embeddings

    def _drop_stale_table(self) -> None:
        if self._exit_table is not None and self._exit_table.vocab_size != self.config.vocab_size:
            logger.warning(
                f"The model's exit table is dropped: it was built for a vocabulary of {self._exit_table.vocab_size}, but the "
                f"model now has {self.config.vocab_size}. Build it again."
            )
            self.exit_table = None

    def forget_calibration(self, of_ranking: bool = True) -> None:
        """Drop the calibrated policy and its promise. They are valid only for these weights, exits, temperatures and this
        table.

        Args:
            of_ranking: whether to drop those of ranking too, which do not depend on a table.
        """
        served = self.exit_config
        if of_ranking:
            if served.ranking is not None:
                logger.warning("The model's ranking is dropped, because the model has changed since: calibrate it again.")
            served.ranking = served.ranking_calibration = None
        if served.calibration is not None:
            logger.warning("The model's calibration is dropped, because the model has changed since: calibrate again.")
        served.policy = served.calibration = None

    @property
    def exit_config(self) -> ExitConfig:
        """How the model is served. It is saved and loaded with the model as exit_config.json.

        Setting it copies the values into the existing object, because an engine's copies of the model share that object.

        Raises:
            ValueError: when set, the values do not fit the exits.
            TypeError: when set, the value is not an `ExitConfig`.
        """
        return self._exit_config

    @exit_config.setter
    def exit_config(self, exit_config: ExitConfig) -> None:
        check_kind("exit_config", exit_config, ExitConfig)
        exit_config.check_fits(len(self.config.exit_layers))
        self._exit_config.take_over(exit_config)

    @property
    def exit_table(self) -> ExitTable | None:
        """The table that predicts exits from tokens, or None. It is saved and loaded with the model.

        Setting a table that was built with other weights gives a warning.

        Raises:
            ValueError: when set, the table has another vocabulary or other exits.
            TypeError: when set, the value is not an `ExitTable`.
        """
        return self._exit_table

    @exit_table.setter
    def exit_table(self, table: ExitTable | None) -> None:
        if table is not None:
            check_kind("exit_table", table, ExitTable)
            before = None if self._exit_table is None else self._exit_table.weights
            if before is not None and table.weights == before:  # known already
                fits = self.table_fits()
            else:
                fits = table.fits_weights(self.weights_digest())
            if not fits:
                logger.warning(OTHER_WEIGHTS)
            self.attach_table(table, fits)
        else:
            self.attach_table(None)

    @property
    def int8_layers(self) -> Int8Layers | None:
        """The layers in int8, as `quantize` found them, or None. They are saved and loaded with the model.

        Raises:
            ValueError: when set, they are of another shape than the model's layers.
            TypeError: when set, the value is no `Int8Layers`.
        """
        return self._int8_layers

    @int8_layers.setter
    def int8_layers(self, int8: Int8Layers | None) -> None:
        if int8 is not None:
            check_kind("int8_layers", int8, Int8Layers)
            int8.check_fits(self)
        self._int8_layers = int8

    @property
    def own_table(self) -> ExitTable | None:
        """The exit table.

        Raises:
            ValueError: it was built with other weights than the model's, as `table_fits` last found. Then what it says of
                tokens is a guess, and what it says of answers is wrong.
        """
        if self._exit_table is not None and not self._table_fits_weights:
            raise ValueError(f"exit_table: {OTHER_WEIGHTS}")
        return self._exit_table

    def table_fits(self) -> bool:
        """Whether the exit table, if there is one, goes with the weights. Those that were written since are compared again.

        This looks at every weight, so it is asked when a policy is taken, not in every window: an engine refuses to run weights
        that were written later.
        """
        if self._exit_table is None:
            return True
        if self._seen_weights is not None and self._seen_weights.changed(self):
            self._table_fits_weights = self._exit_table.fits_weights(self.weights_digest())
            self._seen_weights = None
        if self._seen_weights is None:
            self._seen_weights = SeenWeights(self)
        return self._table_fits_weights

    def table_to_save(self, digest: str) -> ExitTable | None:
        """The exit table with the digest of the weights that are saved with it. It gives a warning if they are other weights.

        Weights that were only cast since the table was set are the same.
        """
        table, seen = self._exit_table, self._seen_weights
        if table is None:
            return None
        cast = seen is not None and seen.cast(self) and self.table_fits()
        if cast or table.fits_weights(digest):
            return table.of_weights(digest)
        logger.warning(OTHER_WEIGHTS)
        return table

    def attach_table(self, table: ExitTable | None, fits_weights: bool = True) -> None:
        """Set `exit_table` without a check of the weights; `fits_weights` says whether it was built with these."""
        if table is not None:
            table.check_fits(self.config.vocab_size, self.config.exit_layers)
        if self._exit_table is not None and (table is None or not table.predicts_as(self._exit_table)):
            self.forget_calibration(of_ranking=False)  # the calibration used the other table
        self._exit_table, self._table_fits_weights = table, fits_weights
        self._seen_weights = None if table is None else SeenWeights(self)

    def embed(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids [B, S] -> h_0 [B, S, H]."""
        return self.bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)

    def layer_mask(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor | BlockMask | None:
        """Attention mask [B, S] -> the mask for this model's attention implementation. None: nothing is masked.

        For SDPA it is that of `additive_mask`.
        """
        if attention_implementation(self.config) == "sdpa":
            return additive_mask(hidden_states, attention_mask)
        return create_bidirectional_mask(config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask)

    def run_layer(self, layer: int, hidden_states: torch.Tensor, layer_mask: Any) -> torch.Tensor:
        """h_{layer-1} [B, S, H] -> h_layer [B, S, H]; layers count from 1."""
        return self.bert.encoder.layer[layer - 1](hidden_states, layer_mask)

    def run_layers(self, first: int, last: int, hidden_states: torch.Tensor, layer_mask: Any) -> torch.Tensor:
        """h_{first-1} [B, S, H] -> h_last [B, S, H]. The input is returned as it is if last < first."""
        for layer in range(first, last + 1):
            hidden_states = self.run_layer(layer, hidden_states, layer_mask)
        return hidden_states

    def skip_gate(self, layer: int, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> SkipGate | None:
        """h_{layer-1} [B, S, H] -> the gate's decisions about `layer`. None if the layer has no gate."""
        if str(layer) not in self.gates:
            return None
        return self.gates[str(layer)](hidden_states, attention_mask, self.config.skip_threshold)

    def exit_logits(self, layer: int, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """h_layer [B, S, H] -> logits [B, C] of the head at `layer`, divided by its temperature."""
        return self.at_temperature(layer, self.heads[str(layer)](hidden_states, attention_mask))

    def at_temperature(self, layer: int, logits: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] of the head at `layer`, divided by the temperature of that exit."""
        if self.exit_config.temperatures is None:
            return logits
        return logits / self.exit_config.temperatures[self.config.exit_layers.index(layer)]

    def shared_logits(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, layer_mask: Any) -> torch.Tensor:
        """h_k [B, S, H] -> logits [B, C] of the last layer, without its gate, and the last head (GEEP's sub-network k)."""
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

        With gates, h_i = (1 - g_i) T_i(h_{i-1}) + g_i h_{i-1}. Here every layer runs for every sample and gates choose between
        its output and its input, because training needs both. `Engine` gives the same answers without running the skipped
        layers. An early head reads its layer's output T_i even for samples that skip the layer, so it never sees the states of
        another layer.

        Args:
            input_ids: [B, S] int64 or int32.
            attention_mask: [B, S], 1 for real tokens. None: all tokens are real.
            token_type_ids: [B, S] segment ids, int64 or int32. None: all are 0.
            labels: [B] int64 classes; [B] numbers for one score; [B, C] numbers from 0 to 1 for label sets. The loss is the
                answer's if `exit_layer` is given, else the mean over all exits, so that any training loop trains every head.
            exit_layer: the exit to stop at. None: the last.
            answer_head: which head answers at an early `exit_layer`: its own ("student"), or the last layer and last head on
                top of it ("shared", one layer more, trained by the GEEP recipe).
            output_exit_logits: whether to return the logits of every exit up to the depth.
            output_shared_logits: whether to return the logits of GEEP's sub-networks (full depth only).
            output_hidden_states: whether to return h_0 and the states after every layer.
            gating: "hard" (g_i is 0 or 1, with the gradient of the soft gate, straight-through), "soft" (g_i in 0..1), or
                "none" (every layer runs). None: "hard" if the model has gates.
            output_gates: whether to return gates and decisions of the gated layers.
            output_layer_outputs: whether to return the output of each layer before its gate.
            return_dict: if False, return a tuple of the values that are not None.

        Raises:
            ValueError: token ids are outside the vocabulary or labels are not classes (checked on a CPU only), inputs are
                longer than the position embeddings, `exit_layer` is not an exit, or gates are requested from a model without
                gates.
            TypeError: an input has another type or dtype.
        """
        self._check_inputs(input_ids, exit_layer, answer_head, output_shared_logits)
        labels = self._targets(labels, len(input_ids))
        self._check_mask_and_segments(input_ids, attention_mask, token_type_ids)
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
            # It runs within the forward pass, so that mixed precision and several processes apply to it.
            result.auxiliary = self.auxiliary(self, result, attention_mask)
        return result if return_dict else result.to_tuple()

    def _gating(self, gating: str | None, output_gates: bool) -> str:
        if gating is None:
            gating = "hard" if len(self.gates) else "none"
        check_choice("gating", gating, GATINGS)
        if (gating != "none" or output_gates) and not len(self.gates):
            raise ValueError(f"gating={gating!r}, output_gates={output_gates}: {NO_GATES}")
        return gating

    def _check_mask_and_segments(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, token_type_ids: torch.Tensor | None
    ) -> None:
        """The mask and the segments must have the shape of the ids, and the model must know the segments."""
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

    def _targets(self, labels: torch.Tensor | None, samples: int) -> torch.Tensor | None:
        """The labels as the loss takes them.

        They are checked here, because transformers would take floats for multi-label targets and the loss would index unknown
        classes.
        """
        if labels is None:
            return None
        check_kind("labels", labels, torch.Tensor)
        if labels.ndim == 0 or len(labels) != samples:
            raise ValueError(f"labels must be one per sample ({samples}), got shape {tuple(labels.shape)}")
        if kind_of(self.config) != "classes":
            wanted = (samples, self.num_labels) if is_logistic(self.config) else (samples,)
            if labels.numel() != math.prod(wanted):
                raise ValueError(f"labels must have shape {wanted}, got {tuple(labels.shape)}")
            return labels.float().view(wanted)
        if labels.ndim == 1 and labels.device.type == "cpu" and not torch.compiler.is_compiling():
            check_targets(labels, self.num_labels, ignored=-100)
        return labels

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
        # On a GPU this check would cost a synchronisation. There the embedding itself asserts.
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
