"""Give a BERT exits and train them by a recipe; evaluate every exit each epoch; build the exit table.

    python examples/train.py --model google-bert/bert-base-uncased --train train.jsonl --dev dev.jsonl --output runs/mine
    python examples/train.py ... --recipe curriculum-kd --recipe-settings temperature=2 pairing=next --difficulty cross-review:5
    python examples/train.py --model my-fine-tuned-bert --recipe frozen ...    # its own answers stay as they are

The files are JSON lines or CSV with the columns text, label and optionally text_pair, or hub ids. A run that was
killed goes on from its last checkpoint when it is started again with the same --output.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, DataCollatorWithPadding, TrainingArguments, set_seed

from geep_triton import MultiExitBert, MultiExitTrainer, build_exit_table
from geep_triton.data import Encoder, read_rows
from geep_triton.training.checkpoints import last_whole_checkpoint
from geep_triton.training.dataset import TextDataset, label_names
from geep_triton.training.difficulty import cross_review, difficulty_column, full_model_teacher
from geep_triton.training.recipes import RECIPES, get_recipe

MODEL_CHOICES = ("exit_layers", "head", "head_size", "pooling", "head_dropout", "skip_gate", "skip_layers")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="hub id or folder of a BERT with safetensors weights")
    parser.add_argument("--train", required=True, help="JSON lines, CSV or hub id, with text, label, maybe text_pair")
    parser.add_argument("--dev", required=True, help="the same, for evaluation; a hub id's split 'validation'")
    parser.add_argument("--output", required=True, type=Path, help="folder for the trained model")
    parser.add_argument("--recipe", default="geep", choices=sorted(RECIPES))
    parser.add_argument("--recipe-settings", nargs="+", type=setting, default=[], metavar="NAME=VALUE", help="of the recipe")
    parser.add_argument(
        "--difficulty", help="for recipes with a curriculum: 'cross-review:FOLDS', or a column of --train; default: 5 folds"
    )
    parser.add_argument("--class-weights", choices=["balanced"], help="rare classes count more; default: all count alike")
    parser.add_argument("--exit-layers", type=int, nargs="+", help="layers with an exit, the last included (default: all)")
    parser.add_argument("--head", choices=["attention", "pooler", "linear"], help="default: attention")
    parser.add_argument("--head-size", type=int, help="width of an attention head's inside; default: 128")
    parser.add_argument("--pooling", choices=["cls", "mean"], help="default: cls; mean for sentence-transformers models")
    parser.add_argument("--skip-gate", choices=["attention", "mean"], help="gates that skip layers, for --recipe smartbert")
    parser.add_argument("--skip-layers", type=int, nargs="+", help="layers that may be skipped (default: all)")
    parser.add_argument("--gate-learning-rate", type=float, help="of the skip gates; default: that of the backbone")
    parser.add_argument("--head-dropout", type=float, help="default: 0.5")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--head-learning-rate", type=float, default=1e-3, help="of the exit heads, which are new")
    parser.add_argument("--max-length", type=int, default=128, help="most tokens a sample may have")
    parser.add_argument("--truncate", action="store_true", help="cut longer samples instead of stopping")
    parser.add_argument("--threshold", type=float, default=0.3, help="uncertainty at which the exit table lets go, 0..1")
    parser.add_argument("--ngram", type=int, default=1, help="highest order of the exit table's n-grams")
    parser.add_argument("--save-steps", type=int, default=500)
    parser.add_argument(
        "--keep-best",
        action="store_true",
        help="evaluate at each save and keep the weights that are best on --dev: in the accuracy of the last exit, or in the "
        "loss of all where only the early ones train at the end",
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    arguments = parser.parse_args()
    arguments.recipe_settings = dict(arguments.recipe_settings)
    return arguments


def setting(text: str) -> tuple[str, Any]:
    """name=value; the value as JSON where it is, else as text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


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
        bf16=arguments.bf16,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        **changes,
    )


def start_or_resume(output: Path, run: dict) -> Path | None:
    """Record what this run is made of; returns the checkpoint to go on from, and refuses to go on as another run."""
    record, last = output / "run.json", last_whole_checkpoint(output / "checkpoints")
    if last is not None:
        before = json.loads(record.read_text()) if record.is_file() else {}
        changed = [name for name in run if run[name] != before.get(name)]
        if changed:
            raise SystemExit(
                f"{output} holds a run with another {changed[0]} ({before.get(changed[0])!r}, now {run[changed[0]]!r}): "
                "go on with the same, or choose another --output"
            )
        print(f"resuming from {last}", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(run, indent=1) + "\n")
    return last


def main() -> None:
    arguments = parse_arguments()
    set_seed(arguments.seed)
    recipe = get_recipe(arguments.recipe, **arguments.recipe_settings)
    train_rows = read_rows(arguments.train, "train", ("text", "label"))
    dev_rows = read_rows(arguments.dev, "validation", ("text", "label"))
    names = label_names(train_rows)
    last = start_or_resume(arguments.output, {**vars(arguments), "output": str(arguments.output), "labels": names})

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    choices = {name: getattr(arguments, name) for name in MODEL_CHOICES}

    def make_model() -> MultiExitBert:
        return MultiExitBert.from_pretrained(
            arguments.model,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
            **{name: value for name, value in choices.items() if value is not None},
        )

    model = make_model()
    encoder = Encoder(tokenizer, arguments.max_length, arguments.truncate, model.config.vocab_size)
    train_set = TextDataset(train_rows, encoder, model.config.label2id)
    dev_set = TextDataset(dev_rows, encoder, model.config.label2id)
    if encoder.truncated:
        print(f"{encoder.truncated} of {len(train_set) + len(dev_set)} samples were cut to {arguments.max_length} tokens")

    collator = DataCollatorWithPadding(tokenizer)
    if arguments.difficulty and recipe.curriculum is None:
        raise SystemExit(f"--difficulty would be ignored: recipe {recipe.name!r} has no curriculum")
    difficulty, kind = None, arguments.difficulty or "cross-review:5"
    if not kind.startswith("cross-review:"):
        difficulty = difficulty_column(train_rows, kind)
    elif recipe.curriculum is not None:
        quiet = training_arguments(arguments, arguments.output / "teachers", save_strategy="no")
        teach = full_model_teacher(make_model, quiet, collator, train_set)
        folds = int(kind.partition(":")[2])
        difficulty = cross_review(torch.tensor(train_set.labels), train_set, teach, folds, arguments.seed)

    last_layer = model.config.num_hidden_layers
    trainer = MultiExitTrainer(
        model=model,
        args=training_arguments(
            arguments,
            arguments.output / "checkpoints",
            eval_strategy="steps" if arguments.keep_best else "epoch",
            eval_steps=arguments.save_steps,
            load_best_model_at_end=arguments.keep_best,
            # While only early exits train, the last one's accuracy stands still: then the mean loss of all exits counts.
            metric_for_best_model="accuracy" if recipe.stages[-1].wants(f"heads.{last_layer}.", last_layer) else "loss",
            save_steps=arguments.save_steps,
            save_total_limit=2,
        ),
        train_dataset=train_set,
        eval_dataset=dev_set,
        data_collator=collator,
        recipe=recipe,
        head_learning_rate=arguments.head_learning_rate,
        gate_learning_rate=arguments.gate_learning_rate,
        difficulty=difficulty,
        class_weights=arguments.class_weights,
    )
    result = trainer.train(resume_from_checkpoint=None if last is None else str(last))
    metrics = trainer.evaluate()
    if not trainer.is_world_process_zero():
        return

    settings = {"threshold": arguments.threshold, "ngram": arguments.ngram, "learn_skips": arguments.skip_gate is not None}
    model.exit_table = build_exit_table(
        model, tokenizer, train_rows, **settings, max_length=arguments.max_length, truncation=arguments.truncate
    )
    model.config.exit_thresholds = arguments.threshold
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    report = {
        "arguments": vars(arguments) | {"output": str(arguments.output)},
        "resumed_from": None if last is None else str(last),
        "seconds": result.metrics["train_runtime"],  # since it was started or resumed
        "metrics": metrics,
    }
    (arguments.output / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    for layer in model.config.exit_layers:
        print(f"exit {layer}: accuracy {metrics[f'eval_accuracy_exit_{layer}']:.4f}")
    print(f"model, tokenizer and exit table: {arguments.output}")


if __name__ == "__main__":
    main()
