"""Answer a JSON lines file in Python, window by window. The command `geep predict` answers files of every format, and goes on
after a kill.

    python examples/predict.py --model runs/mine --input in.jsonl --output out.jsonl --policy threshold:0.3
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from geep_triton import Engine
from geep_triton.files.json_lines import read_json_lines
from geep_triton.over_files.predicting import describe_predictions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained MultiExitBert, or hub id")
    parser.add_argument("--input", required=True, type=Path, help="JSON lines with text and optionally text_pair")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--policy", help="full, constant:3, threshold:0.3, ... (default: as calibrated, else full)")
    arguments = parser.parse_args()
    engine = Engine.from_pretrained(arguments.model, arguments.policy)
    rows = exits = 0
    with arguments.output.open("x", encoding="utf-8") as output:
        for found in engine.predict_windows(read_json_lines(arguments.input, ("text",))):
            output.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in describe_predictions(found))
            rows += len(found)
            exits += int(found.exit_layers.sum())
    print(f"{rows} lines answered, mean exit layer {exits / rows:.2f}: {arguments.output}")


if __name__ == "__main__":
    main()
