"""Save models of `bench.plans` as their users would have them: with an exit table, and calibrated.

    GEEP_DATA=../shared/data python -m bench.plans.saved --work WORK --e5 E5 --backbones e5 --seeds 0 --folder RUNS

RUNS gets a folder for each model, and beside it, under the same name, a file of the texts that did not calibrate it.
`bench.pipeline` takes both. Nothing else should run on the machine: a calibration measures speed.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from bench.answers.training import folder_of, settings_of
from bench.plans.command import parser_of
from bench.plans.library import load
from bench.plans.promised import half_of
from bench.plans.record import JUDGE, parts_of, recorded_cells
from geep_triton import Engine, calibrate, quantize
from geep_triton.promises.calibration import Calibration
from geep_triton.promises.contenders import AUTO
from geep_triton.runners.make import make_runner
from geep_triton.tokens.columns import Row


def saved(source: Path, folder: Path, rows: list[Row], settings: dict, agreement: float, dtype: str) -> Calibration:
    """Calibrate a model on a half of its judge texts, and save it beside the other half.

    Args:
        source: what `bench.plans.train` and `bench.plans.record` left.
        folder: for the model. Its texts go to a file of the same name with ".jsonl".
        rows: the judge texts with their labels.
        settings: how the engine cuts texts.
        agreement: that is promised.
        dtype: that it is promised in. "auto": the fastest that keeps the promise against float32.
    """
    model, tokenizer, _ = load(source)
    ours, others = half_of(len(rows), 0)
    texts = [rows[index] for index in ours.tolist()]
    if dtype == "int8":
        model.int8_layers = quantize(model, tokenizer, texts, **settings)
    dtypes, dtype = (AUTO, "float32") if dtype == AUTO else (None, dtype)
    runner = make_runner(model, "onednn", dtype)  # which `Engine.from_pretrained` takes on a CPU
    engine = Engine(model, tokenizer, "full", runner=runner, **settings)
    calibration = calibrate(engine, texts, agreement=agreement, dtypes=dtypes)
    engine.save_pretrained(folder)
    lines = [json.dumps(rows[index], ensure_ascii=False) for index in others.tolist()]
    folder.with_suffix(".jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return calibration


def main() -> None:
    parser = parser_of(__doc__, None)
    parser.add_argument("--folder", type=Path, required=True, help="for the models and their texts")
    parser.add_argument("--agreement", type=float, default=0.98)
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, int8 or auto; RUNS is of one")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for cell in recorded_cells(arguments):
        rows = parts_of(cell.task, arguments.limit_samples)[JUDGE]
        source, folder = folder_of(cell, arguments.work, arguments.limit_samples), arguments.folder / cell.task.name
        found = saved(source, folder, rows, settings_of(cell.task), arguments.agreement, arguments.dtype)
        print(f"{cell.name}: {found.chosen}", flush=True)


if __name__ == "__main__":
    main()
