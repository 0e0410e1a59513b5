"""Give a BERT exits and train them by a recipe. Evaluate every exit in each epoch, then build the exit table.

    python examples/train.py --model google-bert/bert-base-uncased --train train.jsonl --dev dev.jsonl --output runs/mine
    python examples/train.py ... --recipe distillation --recipe-settings temperature=2 pairing=next
    python examples/train.py ... --curriculum competence --difficulty cross-review:5    # easy samples first
    python examples/train.py --model my-fine-tuned-bert --recipe frozen ...    # keeps its answers; needs no labels
    accelerate launch examples/train.py ...                                    # several processes; or torchrun

The files are JSON lines or CSV with the columns text, label and optionally text_pair, or hub ids. With --problem-type
regression a label is a number and the model has one score; with multi_label_classification it is a list of names. A run that
was killed continues when it is started again with the same --output, including cross review.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PretrainedConfig,
    TrainingArguments,
    set_seed,
)

from geep_triton import Engine, MultiExitBert, MultiExitTrainer, build_exit_table
from geep_triton.answers import Score, kind_of
from geep_triton.config import PROBLEM_TYPES
from geep_triton.data import Row, read_rows
from geep_triton.modeling.loading import is_fine_tuned
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.checkpoints import last_whole_checkpoint
from geep_triton.training.curriculum import SCHEDULES, Curriculum
from geep_triton.training.dataset import TextDataset, label_names
from geep_triton.training.difficulty import cross_review, difficulty_column, full_model_teacher, remembered
from geep_triton.training.recipes import RECIPES, get_recipe

METRICS = {"classes": "accuracy", "score": "mse", "label sets": "f1"}  # by the kind of the model's answers
MODEL_CHOICES = ("exit_layers", "head", "head_size", "pooling", "head_dropout", "skip_gate", "skip_layers")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="hub id or folder of a BERT with safetensors weights")
    parser.add_argument("--train", required=True, help="JSON lines, CSV or hub id, with text, label, maybe text_pair")
    parser.add_argument("--dev", required=True, help="the same, for evaluation; a hub id's split 'validation'")
    parser.add_argument("--output", required=True, type=Path, help="folder for the trained model")
    parser.add_argument("--recipe", default="joint", choices=sorted(RECIPES))
    parser.add_argument(
        "--recipe-settings", nargs="+", type=setting, default=[], metavar="NAME=VALUE", help="settings of the recipe"
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        help="names of the model's classes in their order; default: those of a fine-tuned --model, else of --train, sorted",
    )
    parser.add_argument(
        "--problem-type", choices=PROBLEM_TYPES, help="what the model answers with; default: that of --model, else one class"
    )
    parser.add_argument(
        "--decision",
        type=float,
        help="score from which on a text counts as positive, or probability from which on a label is given",
    )
    parser.add_argument("--tolerance", type=float, help="scores that differ by at most this are the same answer")
    parser.add_argument("--curriculum", choices=SCHEDULES, help="easy samples first; default: all samples from the start")
    parser.add_argument(
        "--curriculum-settings", nargs="+", type=setting, default=[], metavar="NAME=VALUE", help="start, buckets, until"
    )
    parser.add_argument(
        "--difficulty",
        type=difficulty_source,
        help="for --curriculum: cross-review:FOLDS, or a column of --train; default: cross-review:5",
    )
    parser.add_argument("--class-weights", choices=["balanced"], help="give rare classes more weight; default: equal weights")
    parser.add_argument("--exit-layers", type=int, nargs="+", help="layers with an exit, including the last (default: all)")
    parser.add_argument("--head", choices=["attention", "pooler", "linear"], help="default: attention")
    parser.add_argument("--head-size", type=int, help="inner width of an attention head; default: 128")
    parser.add_argument("--pooling", choices=["cls", "mean"], help="default: cls; mean for sentence-transformers models")
    parser.add_argument("--skip-gate", choices=["attention", "mean"], help="gates that skip layers, for --recipe smartbert")
    parser.add_argument("--skip-layers", type=int, nargs="+", help="layers that may be skipped (default: all)")
    parser.add_argument(
        "--gate-learning-rate", type=float, help="learning rate of the skip gates; default: that of the backbone"
    )
    parser.add_argument("--head-dropout", type=float, help="default: 0.5")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--head-learning-rate", type=float, default=1e-3, help="learning rate of the exit heads, which are new")
    parser.add_argument("--max-length", type=int, default=128, help="maximum number of tokens of a sample")
    parser.add_argument("--truncate", action="store_true", help="cut longer samples instead of stopping")
    parser.add_argument(
        "--threshold",
        type=float,
        help="uncertainty at which a sample leaves, for the exit table of a model of classes, 0..1; default: 0.3",
    )
    parser.add_argument("--ngram", type=int, default=2, help="highest order of the exit table's n-grams")
    parser.add_argument(
        "--save-records", action="store_true", help="save the texts' token ids with the table, so that it can be rebuilt"
    )
    parser.add_argument("--save-steps", type=int, default=500)
    parser.add_argument(
        "--keep-best",
        action="store_true",
        help="evaluate at each save and keep the weights that are best on --dev by the accuracy of the last exit, or by the "
        "loss of all exits if only early exits train at the end",
    )
    parser.add_argument("--patience", type=int, help="with --keep-best: stop after this many evaluations without improvement")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--gradient-accumulation-steps", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--fp16", action="store_true", help="mixed precision, on a GPU")
    arguments = parser.parse_args()
    if arguments.patience is not None and not arguments.keep_best:
        parser.error("--patience needs --keep-best")
    arguments.recipe_settings = dict(arguments.recipe_settings)
    arguments.curriculum_settings = dict(arguments.curriculum_settings)
    return arguments


def setting(text: str) -> tuple[str, Any]:
    """Parse name=value. The value is read as JSON if possible, else as text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def difficulty_source(text: str) -> str | int:
    """The name of a column, or a number of folds."""
    kind, _, folds = text.partition(":")
    if kind != "cross-review":
        return text
    if not folds.isdecimal() or int(folds) < 2:
        raise argparse.ArgumentTypeError(f"expected cross-review:FOLDS with at least 2 folds, got {text!r}")
    return int(folds)


def class_names(arguments: argparse.Namespace, config: PretrainedConfig, rows: list[Row]) -> list[str] | None:
    """Names of the classes by number. None: the checkpoint's own names, whose numbers never change."""
    if arguments.labels is not None:
        return arguments.labels
    problem_type = arguments.problem_type or config.problem_type
    if not is_fine_tuned(config):
        return None if problem_type == "regression" else label_names(rows, problem_type)
    if problem_type is not None and problem_type != "single_label_classification":
        return None
    known = list(config.id2label.values())
    given = {str(row["label"]) for row in rows if row.get("label") is not None}
    numbers = [str(number) for number in range(len(known))]
    if given <= set(known) or known != [f"LABEL_{number}" for number in numbers]:
        return None
    if given <= set(numbers):
        return numbers
    raise SystemExit(
        f"{arguments.model} has no names for its classes ({', '.join(known)}), and --train calls them "
        f"{', '.join(sorted(given))}: give --labels in the order of the model's classes"
    )


def training_arguments(arguments: argparse.Namespace, folder: Path, **changes: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=128,
        learning_rate=arguments.learning_rate,
        warmup_steps=0.06,
        train_sampling_strategy="group_by_length",
        logging_steps=100,
        report_to=[],
        seed=arguments.seed,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        bf16=arguments.bf16,
        fp16=arguments.fp16,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        **changes,
    )


def start_or_resume(output: Path, run: dict) -> Path | None:
    """Record what this run depends on and return the checkpoint to resume from. A different run is refused."""
    record, last = output / "run.json", last_whole_checkpoint(output / "checkpoints")
    if last is not None:
        before = json.loads(record.read_text()) if record.is_file() else {}
        changed = [name for name in run if run[name] != before.get(name)]
        if changed:
            raise SystemExit(
                f"{output} has a run with another {changed[0]} ({before.get(changed[0])!r}, now {run[changed[0]]!r}): "
                "resume with the same, or choose another --output"
            )
        print(f"resuming from {last}", flush=True)
    if int(os.environ.get("RANK", 0)) == 0:
        output.mkdir(parents=True, exist_ok=True)
        unfinished = record.with_suffix(".part")
        unfinished.write_text(json.dumps(run, indent=1) + "\n")
        unfinished.replace(record)
    return last


def agreements(trainer: MultiExitTrainer, dataset: TextDataset) -> dict[str, float]:
    """Share of samples for which each exit gives the last exit's answer, for data without labels."""
    logits = torch.as_tensor(trainer.predict(dataset).predictions)
    shares = trainer.model.answers.agree(logits, logits[:, -1:]).double().mean(0).tolist()
    return {f"eval_agreement_exit_{k}": share for k, share in zip(trainer.model.config.exit_layers, shares, strict=True)}


def take_decision(model: MultiExitBert, arguments: argparse.Namespace) -> bool:
    """Set the model's decision and tolerance. Returns whether its answers can be compared by them."""
    served = model.exit_config
    served.decision = served.decision if arguments.decision is None else arguments.decision
    served.tolerance = served.tolerance if arguments.tolerance is None else arguments.tolerance
    answers = model.answers
    return not isinstance(answers, Score) or answers.decision is not None or answers.tolerance is not None


def main() -> None:
    arguments = parse_arguments()
    set_seed(arguments.seed)
    recipe = get_recipe(arguments.recipe, **arguments.recipe_settings)
    for option, value in (("--difficulty", arguments.difficulty), ("--curriculum-settings", arguments.curriculum_settings)):
        if value and arguments.curriculum is None:
            raise SystemExit(f"{option} would be ignored without --curriculum")
    curriculum = None if arguments.curriculum is None else Curriculum(arguments.curriculum, **arguments.curriculum_settings)
    needs_labels = any(stage.needs_labels for stage in recipe.stages)
    columns = ("text", "label") if needs_labels else ("text",)
    config = AutoConfig.from_pretrained(arguments.model, trust_remote_code=False)
    if arguments.max_length > config.max_position_embeddings:
        raise SystemExit(
            f"--max-length must be at most the model's {config.max_position_embeddings}, got {arguments.max_length}"
        )
    last_layer = config.num_hidden_layers
    if not is_fine_tuned(config) and not any(stage.wants(f"heads.{last_layer}.", last_layer) for stage in recipe.stages):
        raise SystemExit(f"recipe {recipe.name!r} leaves the last exit as it is, but {arguments.model} is not fine-tuned")
    train_rows = read_rows(arguments.train, "train", columns)
    dev_rows = read_rows(arguments.dev, "validation", columns)
    names = class_names(arguments, config, train_rows) if needs_labels else None
    last = start_or_resume(arguments.output, {**vars(arguments), "output": str(arguments.output), "labels": names})

    tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=False)
    choices = {name: getattr(arguments, name) for name in MODEL_CHOICES}
    if arguments.problem_type is not None:
        choices["problem_type"] = arguments.problem_type
    if names is None and arguments.problem_type == "regression":
        choices["num_labels"] = 1
    if names is not None:
        choices |= {"num_labels": len(names), "id2label": dict(enumerate(names))}
        choices["label2id"] = {name: index for index, name in enumerate(names)}

    def make_model() -> MultiExitBert:
        return MultiExitBert.from_pretrained(
            arguments.model, **{name: value for name, value in choices.items() if value is not None}
        )

    model = make_model()
    comparable, kind = take_decision(model, arguments), kind_of(model.config)
    if kind == "classes":
        arguments.threshold = 0.3 if arguments.threshold is None else arguments.threshold
    elif arguments.threshold is not None:
        raise SystemExit(f"--threshold is for models of classes, and this one is of {kind}")
    if curriculum is not None and kind != "classes":
        raise SystemExit(f"--curriculum ranks samples by their class, and this model is of {kind}")
    encoder = Encoder(tokenizer, arguments.max_length, arguments.truncate, model.config.vocab_size)
    label2id = model.config.label2id if needs_labels else None
    problem_type = model.config.problem_type if needs_labels else None
    train_set, dev_set = (TextDataset(rows, encoder, label2id, problem_type=problem_type) for rows in (train_rows, dev_rows))
    if cut := train_set.tokens.truncated + dev_set.tokens.truncated:
        print(f"{cut} of {len(train_set) + len(dev_set)} samples were cut to {arguments.max_length} tokens")

    collator = DataCollatorWithPadding(tokenizer)
    difficulty, source = None, arguments.difficulty or 5
    if isinstance(source, str):
        difficulty = difficulty_column(train_rows, source)
    elif curriculum is not None:
        folder = arguments.output / "teachers"
        quiet = training_arguments(arguments, folder, save_strategy="no")
        teach = full_model_teacher(make_model, quiet, collator, train_set, arguments.class_weights)
        labels = torch.tensor(train_set.labels)
        difficulty = cross_review(labels, train_set, remembered(teach, folder), source, arguments.seed)

    trainer = MultiExitTrainer(
        model=model,
        args=training_arguments(
            arguments,
            arguments.output / "checkpoints",
            eval_strategy="steps" if arguments.keep_best else "epoch" if needs_labels else "no",
            eval_steps=arguments.save_steps,
            load_best_model_at_end=arguments.keep_best,
            # If only early exits train, the last exit's accuracy never changes, so the mean loss of all exits decides.
            # A score's metric is an error, and Trainer would take the greatest.
            metric_for_best_model="loss"
            if kind == "score" or not recipe.stages[-1].wants(f"heads.{last_layer}.", last_layer)
            else METRICS[kind],
            save_steps=arguments.save_steps,
            save_total_limit=2,
        ),
        train_dataset=train_set,
        eval_dataset=dev_set,
        data_collator=collator,
        recipe=recipe,
        head_learning_rate=arguments.head_learning_rate,
        gate_learning_rate=arguments.gate_learning_rate,
        curriculum=curriculum,
        difficulty=difficulty,
        class_weights=arguments.class_weights,
        callbacks=[] if arguments.patience is None else [EarlyStoppingCallback(arguments.patience)],
    )
    result = trainer.train(resume_from_checkpoint=None if last is None else str(last))
    metrics = {}
    if needs_labels or comparable:
        metrics = trainer.evaluate() if needs_labels else agreements(trainer, dev_set)
    if not trainer.is_world_process_zero():
        return

    settings = {"threshold": arguments.threshold if kind == "classes" else None, "ngram": arguments.ngram}
    settings |= {} if arguments.skip_gate is None else {"learn": ("agreement", "skips")}
    settings |= {"save_records": arguments.save_records, "max_length": arguments.max_length, "truncation": arguments.truncate}
    if comparable:
        model.exit_table = build_exit_table(model, tokenizer, train_rows, **settings)
    else:
        print("no exit table, which rankings do without: --decision or --tolerance says when two scores are the same answer")
    if kind == "classes":
        model.exit_config.thresholds = arguments.threshold
    Engine(model, tokenizer, "full").save_pretrained(arguments.output)
    report = {
        "arguments": vars(arguments) | {"output": str(arguments.output)},
        "resumed_from": None if last is None else str(last),
        "seconds": result.metrics["train_runtime"],  # since the start or the last resume
        "metrics": metrics,
    }
    (arguments.output / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    what = METRICS[kind] if needs_labels else "agreement"
    for layer in model.config.exit_layers if metrics else ():
        print(f"exit {layer}: {what} {metrics[f'eval_{what}_exit_{layer}']:.4f}")
    print(f"{'model, tokenizer and exit table' if comparable else 'model and tokenizer'}: {arguments.output}")


if __name__ == "__main__":
    main()
