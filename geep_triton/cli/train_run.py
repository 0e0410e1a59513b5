"""One training of `geep train`: from files to a saved model with its exit table and the record of the run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, DataCollatorWithPadding, EarlyStoppingCallback, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import set_seed

from geep_triton.answers import Score, kind_of
from geep_triton.checks import OutputTaken, check_int
from geep_triton.cli.console import say
from geep_triton.cli.train_options import PLACES, Options
from geep_triton.engine.build_exit_table import build_exit_table
from geep_triton.engine.engine import Engine
from geep_triton.engine.loading import load_tokenizer
from geep_triton.files.rows import read_rows
from geep_triton.modeling.model import MultiExitBert
from geep_triton.saving import write_json
from geep_triton.tokens.columns import Row
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.checkpoints import last_whole_checkpoint
from geep_triton.training.classes import class_names, config_of_classes
from geep_triton.training.curriculum import get_curriculum
from geep_triton.training.dataset import TextDataset
from geep_triton.training.difficulty import cross_review, difficulty_column, full_model_teacher, remembered, within_classes
from geep_triton.training.metrics import METRICS, exit_agreement
from geep_triton.training.recipes import get_recipe
from geep_triton.training.requirements import check_last_exit, trains_last_exit
from geep_triton.training.trainer import MultiExitTrainer
from geep_triton.unfinished import unfinished
from geep_triton.warn import loading_quietly

UNFINISHED = "train.unfinished"  # folder in the output, of a training that goes on
RECORD = "training.json"  # file in the output, of a training that is done
FOLDS = 5  # of a cross review
THRESHOLD = 0.3


def is_main_process() -> bool:
    """Whether this is the process of a training in several that writes and tells, as torchrun numbers them."""
    return os.environ.get("RANK", "0") == "0"


class TrainingRun:
    """Reads, trains, evaluates, and saves.

    Args:
        options: what to do.
        overwrite: replace a model that is in the output already.
        quiet: no progress bars and no messages.
    """

    def __init__(self, options: Options, overwrite: bool = False, quiet: bool = False) -> None:
        self.options = options
        self.overwrite = overwrite
        self.quiet = quiet
        self.recipe = get_recipe(options.recipe, **options.recipe_settings)
        self.curriculum = (
            None if options.curriculum is None else get_curriculum(options.curriculum, **options.curriculum_settings)
        )
        self.needs_labels = any(stage.needs_labels for stage in self.recipe.stages)

    def run(self) -> dict[str, Any] | None:
        """Train, or go on, or find that all is done.

        Returns:
            What the record holds, with "output" and, for each exit, how good it is. None in other processes than the main one.

        Raises:
            OutputTaken: the output holds a model of something else, or another process is at work there.
            ValueError: files, model or options do not fit.
        """
        set_seed(self.options.seed)  # the exits start at random
        rows, dev_rows = self._rows()
        make = self._maker(rows)
        tokenizer = load_tokenizer(self.options.model)
        model = make()
        self._check_kind(model)
        training, dev = self._dataset(rows, model, tokenizer), self._dataset(dev_rows, model, tokenizer)
        if cut := training.tokens.truncated + dev.tokens.truncated:
            say(f"{cut} of {len(training) + len(dev)} texts were cut to {self.options.max_length} tokens", self.quiet)
        call = {
            **self.options.of_the_run(), "labels": list(model.config.id2label.values()), "model": model.weights_digest(),
            "texts": _digest(training), "dev": _digest(dev),
        }  # fmt: skip
        if (done := self._finished(call)) is not None:
            say(f"{self.options.output} holds this training already", self.quiet)
            return done if is_main_process() else None
        with self._working(call):
            trainer = self._trainer(model, tokenizer, rows, training, dev, make)
            last = last_whole_checkpoint(self._folder)
            if last is not None:
                say(f"resuming from {last}", self.quiet)
            trained = trainer.train(resume_from_checkpoint=None if last is None else str(last))
            metrics = self._evaluated(trainer, dev)
            if not is_main_process():
                return None  # it ends, while the main one builds the table alone
            self._save(model, tokenizer, rows)
            return self._record(call, model, metrics, None if last is None else str(last), trained.metrics["train_runtime"])

    @property
    def _folder(self) -> Path:
        return self.options.output / UNFINISHED

    def _rows(self) -> tuple[list[Row], list[Row]]:
        """The rows to train on and those to evaluate on."""
        options, named = self.options, self.options.columns
        needed = [name for name in ("text", "text_pair", "label") if name in named and (name != "label" or self.needs_labels)]
        return read_rows(options.texts, "train", needed, named), read_rows(options.dev, "validation", needed, named)

    def _maker(self, rows: list[Row]) -> _Maker:
        """What makes the model."""
        options = self.options
        config = AutoConfig.from_pretrained(options.model, trust_remote_code=False)
        check_int("max_length", options.max_length, 3, config.max_position_embeddings)
        check_last_exit(self.recipe, config)
        names = class_names(config, rows, options.labels, options.problem_type) if self.needs_labels else None
        return _Maker(options, options.of_the_model() | config_of_classes(names, options.problem_type))

    def _check_kind(self, model: MultiExitBert) -> None:
        """Raise ValueError where an option is for a model of another kind."""
        _ = model.answers  # which checks decision and tolerance
        if (kind := kind_of(model.config)) == "classes":
            return
        if self.options.threshold is not None:
            raise ValueError(f"--threshold is for models of classes, and this one is of {kind}")
        if self.curriculum is not None:
            raise ValueError(f"--curriculum ranks texts by their class, and this model is of {kind}")

    def _dataset(self, rows: list[Row], model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> TextDataset:
        config = model.config
        encoder = Encoder(tokenizer, self.options.max_length, self.options.truncate, config.vocab_size, config.type_vocab_size)
        label2id, problem_type = (config.label2id, config.problem_type) if self.needs_labels else (None, None)
        return TextDataset(rows, encoder, label2id, progress=not self.quiet, problem_type=problem_type)

    def _finished(self, call: Mapping[str, Any]) -> dict[str, Any] | None:
        """What this training found when it was run before. None: it has not ended yet.

        Raises:
            OutputTaken: the output holds another training, or a model of something else.
        """
        output = self.options.output
        if self._folder.exists() or self.overwrite or not (output / "config.json").exists():
            return None
        record = output / RECORD
        before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        call = json.loads(json.dumps(call))
        for name, value in call.items():
            if name not in before.get("arguments", {}):
                raise OutputTaken(f"{output} holds a model already: choose another --output, or --overwrite replaces it")
            if before["arguments"][name] != value:
                raise OutputTaken(
                    f"{output} has a run with another {name} ({before['arguments'][name]!r}, now {value!r}): choose another "
                    "--output, or --overwrite replaces it"
                )
        return {"output": str(output), **before}

    def _working(self, call: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Hold the output while this training works there. One of several processes holds it for all."""
        return unfinished(self._folder, call) if is_main_process() else nullcontext()

    def _trainer(
        self,
        model: MultiExitBert,
        tokenizer: PreTrainedTokenizerBase,
        rows: list[Row],
        training: TextDataset,
        dev: TextDataset,
        make: _Maker,
    ) -> MultiExitTrainer:
        options, collator = self.options, DataCollatorWithPadding(tokenizer)
        kind = kind_of(model.config)
        # If only early exits train at the end, the last exit's accuracy never changes, so the mean loss of all exits decides.
        # A score's metric is an error, and Trainer would take the greatest.
        by_loss = kind == "score" or not trains_last_exit(self.recipe.stages[-1:], model.config.num_hidden_layers)
        trainer = MultiExitTrainer(
            model=model,
            args=self._arguments(
                self._folder,
                eval_strategy="steps" if options.keep_best else "epoch" if self.needs_labels else "no",
                eval_steps=options.save_steps,
                load_best_model_at_end=options.keep_best,
                metric_for_best_model="loss" if by_loss else METRICS[kind],
                save_steps=options.save_steps,
                save_total_limit=2,
            ),
            train_dataset=training,
            eval_dataset=dev,
            data_collator=collator,
            recipe=self.recipe,
            head_learning_rate=options.head_learning_rate,
            gate_learning_rate=options.gate_learning_rate,
            curriculum=self.curriculum,
            difficulty=self._difficulty(rows, training, collator, make),
            class_weights=options.class_weights,
            callbacks=[] if options.patience is None else [EarlyStoppingCallback(options.patience)],
        )
        if self.quiet:
            trainer.remove_callback(PrinterCallback)
        return trainer

    def _arguments(self, folder: Path, **changes: Any) -> TrainingArguments:
        options = self.options
        return TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=128,
            learning_rate=options.learning_rate,
            warmup_steps=0.06,
            train_sampling_strategy="group_by_length",
            logging_steps=100,
            report_to=[],
            seed=options.seed,
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            bf16=options.bf16,
            fp16=options.fp16,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
            disable_tqdm=self.quiet,
            **changes,
        )

    def _difficulty(
        self, rows: list[Row], training: TextDataset, collator: DataCollatorWithPadding, make: _Maker
    ) -> torch.Tensor | None:
        """How hard each row is, for a curriculum; where teachers judge, among the rows of its class."""
        if self.curriculum is None:
            return None
        source, seed = self.options.difficulty or FOLDS, self.options.seed
        if isinstance(source, str):
            return difficulty_column(rows, source)
        folder = self._folder / "teachers"
        arguments = self._arguments(folder, save_strategy="no")
        teach = full_model_teacher(make, arguments, collator, training, self.options.class_weights)
        labels = torch.tensor(training.labels)
        return within_classes(cross_review(labels, training, remembered(teach, folder), source, seed), labels, seed)

    def _evaluated(self, trainer: MultiExitTrainer, dev: TextDataset) -> dict[str, float]:
        """How good every exit is: by labels, or how often it agrees with the last one."""
        if self.needs_labels:
            return trainer.evaluate()
        if not _comparable(trainer.model):
            return {}
        logits = torch.as_tensor(trainer.predict(dev).predictions)
        shares = exit_agreement(trainer.model.answers, logits).tolist()
        layers = trainer.model.config.exit_layers
        return {f"eval_agreement_exit_{layer}": share for layer, share in zip(layers, shares, strict=True)}

    def _save(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
        """Build the exit table where answers can be compared, and save all."""
        options, threshold = self.options, self.options.threshold
        if kind_of(model.config) == "classes":
            threshold = THRESHOLD if threshold is None else threshold
            model.exit_config.thresholds = threshold
        if _comparable(model):
            model.exit_table = build_exit_table(
                model,
                tokenizer,
                rows,
                threshold,
                ngram=options.ngram,
                learn=None if options.skip_gate is None else ("agreement", "skips"),
                save_records=options.save_records,
                progress=not self.quiet,
                max_length=options.max_length,
                truncation=options.truncate,
            )
        else:
            lacks = "--decision or --tolerance says when two scores are the same answer"
            say(f"no exit table, which rankings do without: {lacks}", self.quiet)
        model.exit_config.max_length, model.exit_config.truncation = options.max_length, options.truncate
        Engine(model, tokenizer, "full").save_pretrained(options.output)

    def _record(
        self, call: Mapping[str, Any], model: MultiExitBert, metrics: dict[str, float], last: str | None, seconds: float
    ) -> dict[str, Any]:
        """Write down what was run and found."""
        what = METRICS[kind_of(model.config)] if self.needs_labels else "agreement"
        layers = model.config.exit_layers if metrics else ()
        record = {
            "arguments": call,
            "places": {name: getattr(self.options, name) for name in PLACES} | {"output": str(self.options.output)},
            "resumed_from": last,
            "seconds": seconds,  # since the start or the last resume
            "metrics": metrics,
            "exits": [{"layer": layer, what: metrics[f"eval_{what}_exit_{layer}"]} for layer in layers],
            "exit_table": model.exit_table is not None,
        }
        write_json(self.options.output / RECORD, record)
        return {"output": str(self.options.output), **record}


@dataclass(frozen=True)
class _Maker:
    """Makes a new model to train.

    Attributes:
        options: name the checkpoint.
        changes: to its configuration.
    """

    options: Options
    changes: dict[str, Any]

    def __call__(self) -> MultiExitBert:
        with loading_quietly():  # the exits are new, and about to be trained
            model = MultiExitBert.from_pretrained(self.options.model, **self.changes)
        model.exit_config.judge_by(self.options.decision, self.options.tolerance)
        model.exit_config.max_length = model.exit_config.truncation = None  # they were of another training
        return model


def _comparable(model: MultiExitBert) -> bool:
    """Whether it is known when two of the model's answers are the same."""
    answers = model.answers
    return not isinstance(answers, Score) or answers.comparable


def _digest(dataset: TextDataset) -> str:
    """SHA-256 (hex) over token ids and labels."""
    found = hashlib.sha256(dataset.tokens.hashes().numpy().tobytes())
    found.update(json.dumps(dataset.labels).encode())
    return found.hexdigest()
