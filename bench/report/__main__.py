"""Turns result files into README's table, the pages in docs/results, and their plots.

python -m bench.report            # rewrites the table between the markers in README.md, the pages, and the plots
python -m bench.report --check    # fails where a page differs from the result files
"""

from __future__ import annotations

import argparse

from bench.environment import RESULTS
from bench.report import PAGES, ops, pages, pipeline, plans
from bench.rows import read, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    for path, text in pages().items():
        if arguments.check and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            raise SystemExit(f"{path.name} differs from bench/results: run python -m bench.report")
        path.write_text(text, encoding="utf-8")
    if not arguments.check:
        for path in sorted(RESULTS.glob("ops*.jsonl")):
            ops.plot(table(read(path)), PAGES / f"{path.stem}.png")
        plans.plot(PAGES / plans.PICTURE)
        found = pipeline.results()
        for name in pipeline.machines(found):
            of_machine = found[found["machine"] == name]
            pipeline.plot(of_machine, PAGES / pipeline.plot_name(of_machine))


if __name__ == "__main__":
    main()
