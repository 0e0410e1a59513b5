"""One call from a fine-tuned BERT and unlabelled texts to early exits that keep a promise."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset
from transformers import AutoConfig, DataCollatorWithPadding, TrainingArguments

from geep_triton.answers import Score, kind_of
from geep_triton.checks import check_bool, check_choice, check_int, check_number
from geep_triton.engine.build_exit_table import build_exit_table
from geep_triton.engine.checks import as_list, check_device, text_limits
from geep_triton.engine.engine import Engine
from geep_triton.engine.loading import load_tokenizer
from geep_triton.engine.quantize import quantize
from geep_triton.modeling.loading import is_fine_tuned
from geep_triton.modeling.model import MultiExitBert
from geep_triton.promises.calibrate import calibrate
from geep_triton.promises.contenders import AUTO, check_dtypes, why_no_int8
from geep_triton.promises.families import error_shares, families_of
from geep_triton.promises.terms import Term, refuse_too_few, samples_for
from geep_triton.runners.make import DTYPES, multiplied_here
from geep_triton.table.exit_table import FORECASTS
from geep_triton.tokens.encoder import Encoder
from geep_triton.tokens.samples import Inputs
from geep_triton.training.checkpoints import last_whole_checkpoint
from geep_triton.training.dataset import TextDataset
from geep_triton.training.trainer import MultiExitTrainer
from geep_triton.unfinished import unfinished
from geep_triton.warn import loading_quietly

HELD_OUT = 1 / 3  # share of the texts
UNFINISHED = "give_exits.unfinished"  # folder in the output, of a call that goes on
THRESHOLD = 0.3  # of the table's counts. It matters little, because the table decides by learned agreement
CONFIDENCE = 0.95


def give_exits(
    pretrained_model_name_or_path: str | os.PathLike,
    texts: Inputs,
    *,
    output: str | os.PathLike,
    agreement: float = 0.98,
    decision: float | Sequence[float] | None = None,
    tolerance: float | None = None,
    epochs: float = 3.0,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    max_length: int | None = None,
    truncation: bool = False,
    dtype: str | torch.dtype | None = None,
    seed: int = 42,
    progress: bool = True,
    **config: Any,
) -> Engine:
    """Give a fine-tuned model early exits, and find the fastest policy that keeps its answers.

    Its answers may be classes, sets of labels (multi-label) or one score (num_labels=1). A score needs a decision (the cut from
    which on you take a text) or a tolerance.

    The recipe "frozen" trains the exits to give the classifier's own answers. The classifier itself does not change, so at full
    depth the result answers as before. A random two thirds of the texts train the exits and build the exit table. The rest are
    not used in training and calibrate the policy; equal texts are on the same side. A call that was killed continues when it is
    made again: until it has succeeded, the output has a folder "give_exits.unfinished".

    Args:
        pretrained_model_name_or_path: folder or hub id of a fine-tuned `BertForSequenceClassification` or `MultiExitBert` with
            its tokenizer.
        texts: a list of inputs of `Engine.predict`, or a `datasets.Dataset`, without labels. They should be like the texts that
            will be served.
        output: folder for model, exits, table, policy and tokenizer, as `Engine.save_pretrained` writes them.
        agreement: minimum share of texts that get the answer of all layers, with 95 % confidence. See `calibrate`.
        decision: the score from which on a text counts as positive, or the probability from which on a label is given. See
            `geep_triton.exit_config.ExitConfig`.
        tolerance: scores that differ by at most this are the same answer.
        epochs: number of training epochs.
        learning_rate: learning rate of the exit heads.
        batch_size: samples per training step.
        max_length: maximum number of tokens of a text. None: the maximum of the model and its tokenizer.
        truncation: whether to cut longer texts instead of raising an error.
        dtype: dtype of the layers when the model is served, as for `Engine`. The promise is made in it. "auto": on a CPU, the
            fastest whose answers keep the promise against float32; see `calibrate`.
        seed: seed of the split and of the training. It is set for random, numpy and torch, as transformers' Trainer does.
        progress: whether to show progress bars, and to print what was found.
        **config: fields of `MultiExitBertConfig`, such as exit_layers, head or pooling.

    Returns:
        The engine of the saved model with the best policy.

    Raises:
        ValueError: the checkpoint is not fine-tuned, there are too few texts for the promise (the error says how many are
            needed), the output is the folder of the checkpoint itself or has an unfinished call with other arguments, or
            another process is at work there. `Engine.predict`, `MultiExitBert.from_pretrained`, `MultiExitTrainer`,
            `build_exit_table` and `calibrate` raise their own errors too.
        TypeError: the texts cannot be counted.
    """
    texts = as_list(texts)
    check_number("agreement", agreement, 0.5, 0.9999)
    check_int("batch_size", batch_size, 1)
    check_int("seed", seed, 0)
    check_number("epochs", epochs, 1e-6)
    check_number("learning_rate", learning_rate, 0.0, 1.0)
    if dtype is not None:
        check_choice("dtype", str(dtype).removeprefix("torch."), (AUTO, *DTYPES))
    if dtype in (AUTO, "int8") and (device := check_device(None)).type != "cpu":
        raise ValueError(f"dtype {dtype!r} is for a CPU, and here the model is served on {device}: name another dtype")
    check_bool("truncation", truncation)
    check_bool("progress", progress)
    source, output = pretrained_model_name_or_path, Path(output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a folder, got the file {output}")
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise ValueError(f"output must be another folder than the model's, which would be overwritten, got {output}")
    if not is_fine_tuned(AutoConfig.from_pretrained(source, trust_remote_code=False)):
        raise ValueError(
            f"{source} is not fine-tuned: expected a BertForSequenceClassification or a MultiExitBert, whose answers exits can "
            "learn; MultiExitTrainer trains a model with labels"
        )
    torch.manual_seed(seed)  # the exits start at random
    with loading_quietly():  # the exits are new, and about to be trained
        model = MultiExitBert.from_pretrained(source, **config)
    if model.dtype != torch.float32:
        raise ValueError(f"{source}: expected a model in float32, got {model.dtype}")
    if dtype == "int8" and (why := why_no_int8(model)):
        raise ValueError(f"dtype 'int8': {why}")
    model.exit_table = None  # of its exits before
    model.exit_config.judge_by(decision, tolerance)
    if isinstance(model.answers, Score):
        model.answers.check_comparable()
    tokenizer = load_tokenizer(source)
    max_length, truncation = text_limits(model, tokenizer, False, max_length, truncation)
    encoder = Encoder(tokenizer, max_length, truncation, model.config.vocab_size, model.config.type_vocab_size)
    dataset = TextDataset(texts, encoder, label2id=None, progress=progress)
    hashes = dataset.tokens.hashes()
    training, held_out = _split(hashes, seed)
    dtypes = 1 + len(multiplied_here()) if dtype == AUTO else 1
    _check_enough(agreement, len(held_out), model, dtypes)
    call = {
        "model": model.weights_digest(), "texts": hashlib.sha256(hashes.numpy().tobytes()).hexdigest(), "seed": seed,
        "config": repr(sorted(config.items())), "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size,
        "max_length": max_length, "truncation": truncation,
        "decision": repr(model.exit_config.decision), "tolerance": model.exit_config.tolerance,
    }  # fmt: skip
    with unfinished(output / UNFINISHED, call):
        trainer = MultiExitTrainer(
            model=model,
            recipe="frozen",
            args=TrainingArguments(
                output_dir=str(output / UNFINISHED),
                num_train_epochs=epochs,
                per_device_train_batch_size=batch_size,
                learning_rate=learning_rate,
                warmup_steps=0.06,
                train_sampling_strategy="group_by_length",
                save_steps=0.1,  # of all steps
                save_total_limit=2,
                dataloader_pin_memory=False,
                disable_tqdm=not progress,
                report_to=[],
                seed=seed,
            ),
            train_dataset=Subset(dataset, training),
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        last = last_whole_checkpoint(output / UNFINISHED)
        _say(progress, f"1 of 3: the exits learn from {len(training):,} texts")
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        settings: dict[str, Any] = {"max_length": max_length, "truncation": truncation, "progress": progress}
        threshold = THRESHOLD if kind_of(model.config) == "classes" else None
        _say(progress, "2 of 3: the exit table learns from the same texts")
        model.exit_table = build_exit_table(model, tokenizer, [texts[index] for index in training], threshold, **settings)
        engine = Engine(model, tokenizer, "full", **settings)
        others = check_dtypes(AUTO, engine) if dtype == AUTO else None
        if "int8" in (dtype, *(others or ())):
            model.int8_layers = quantize(model, tokenizer, [texts[index] for index in training], **settings)
        engine.save_pretrained(output)
        if dtype != AUTO:
            engine = Engine.from_pretrained(output, "full", dtype=dtype, **settings)
        _say(progress, f"3 of 3: policies are judged and timed on {len(held_out):,} texts that were held out")
        held = [texts[index] for index in held_out]
        found = calibrate(engine, held, agreement=agreement, confidence=CONFIDENCE, dtypes=others).chosen
        if engine.dtype != "int8":
            engine.model.int8_layers = None
        engine.save_pretrained(output)
        if dtype == AUTO:  # that engine holds weights twice
            engine = Engine.from_pretrained(output, **settings)
    _say(
        progress,
        f"{output}: {found.policy}, {found.mean_layers:.1f} of {model.config.num_hidden_layers} layers, "
        f"{found.speed_up:.1f} times as fast as all layers; {found.agreement:.1%} of {len(held)} held-out texts get the "
        f"same answer, at least {agreement:.1%} are promised",
    )
    return engine


def _say(progress: bool, message: str) -> None:
    if progress:
        print(message, flush=True)


def _split(hashes: torch.Tensor, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the texts to train on and of those to hold out. Equal texts are on the same side."""
    distinct, of_text = hashes.unique(return_inverse=True)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))
    is_held_out = (order < HELD_OUT * len(distinct))[of_text]
    return (~is_held_out).nonzero()[:, 0].tolist(), is_held_out.nonzero()[:, 0].tolist()


def _check_enough(agreement: float, held_out: int, model: MultiExitBert, dtypes: int) -> None:
    """Refuse too few texts before the training, by what `calibrate` will need once the exit table has learned."""
    shares = error_shares(families_of(model, learned=("agreement", FORECASTS))).values()
    term = Term("agreement", agreement)
    needed = samples_for(term, [1 - (1 - CONFIDENCE) * share / dtypes for share in shares])
    total = math.ceil(needed / HELD_OUT)
    refuse_too_few(
        term, held_out, needed, f", {HELD_OUT:.0%} of all, which are held out to calibrate (give {total} in all, or more)"
    )
