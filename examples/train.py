"""Train a BERT with exits on labelled texts, and build its exit table.

    python examples/train.py google-bert/bert-base-uncased train.jsonl dev.jsonl runs/mine

`geep train` has every option, and goes on after a kill.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoTokenizer, DataCollatorWithPadding, TrainingArguments

from geep_triton import Engine, MultiExitBert, MultiExitTrainer, build_exit_table
from geep_triton.files.rows import read_rows
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.dataset import TextDataset, label_names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="hub id or folder of a BERT")
    parser.add_argument("train", help="file with the columns text, label and maybe text_pair")
    parser.add_argument("dev", help="the same, to evaluate on")
    parser.add_argument("output", type=Path, help="folder for the trained model")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--max-length", type=int, default=128, help="longer texts are cut to so many tokens")
    arguments = parser.parse_args()

    rows, dev_rows = read_rows(arguments.train), read_rows(arguments.dev)
    names = label_names(rows)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = MultiExitBert.from_pretrained(
        arguments.model,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    limits = {"max_length": arguments.max_length, "truncation": True}
    encoder = Encoder(tokenizer, **limits, vocab_size=model.config.vocab_size)
    trainer = MultiExitTrainer(
        model=model,
        recipe="joint",  # or "geep", "fastbert", "distillation", ...
        head_learning_rate=1e-3,  # the exits are new
        args=TrainingArguments(
            str(arguments.output / "checkpoints"),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=32,
            learning_rate=3e-5,
            train_sampling_strategy="group_by_length",
            dataloader_pin_memory=False,
            report_to=[],
        ),
        train_dataset=TextDataset(rows, encoder, model.config.label2id),
        eval_dataset=TextDataset(dev_rows, encoder, model.config.label2id),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    metrics = trainer.evaluate()
    for layer in model.config.exit_layers:
        print(f"exit {layer}: accuracy {metrics[f'eval_accuracy_exit_{layer}']:.4f}")
    # The table counts at which exit each token's texts leave. It needs no labels: any texts will do.
    model.exit_table = build_exit_table(model, tokenizer, rows, threshold=0.3, **limits)
    Engine(model, tokenizer, "full").save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
