"""Find the fastest policy that gives your own texts the full model's answers, and save it with the model. `geep calibrate` has
every promise.

    python examples/calibrate.py runs/mine texts.jsonl --agreement 0.98

The texts must be new to the model: not used for training and not for the exit table. They need no labels.
"""

from __future__ import annotations

import argparse

from geep_triton import Engine, calibrate
from geep_triton.files.rows import read_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a trained MultiExitBert; the policy is saved there")
    parser.add_argument("texts", help="file with the column text and maybe text_pair")
    parser.add_argument("--agreement", type=float, default=0.98, help="least share of texts with the answer of all layers")
    arguments = parser.parse_args()

    engine = Engine.from_pretrained(arguments.model, "full", progress=True)  # by the runner and dtype that will serve
    found = calibrate(engine, read_rows(arguments.texts), agreement=arguments.agreement)
    for candidate in found.candidates:  # each is the fastest of its family that keeps the promise
        print(
            f"{candidate.family}: {candidate.mean_layers:.2f} layers, {candidate.agreement:.3f} agree, "
            f"{candidate.speed_up:.2f} times as fast as all layers"
        )
    engine.save_pretrained(arguments.model)
    print(f"chosen: {found.chosen.policy}")


if __name__ == "__main__":
    main()
