"""The page on GPUs, made from the results files of `python -m bench.gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.environment import RESULTS
from bench.gpu.results import FILE, card, read

INTRODUCTION = """# On a GPU, measured

Made from `bench/results/gpu/*/results.jsonl` by `python -m bench.report`; `tests/test_report.py` holds it to them.
`python -m bench.gpu` measures, in one process of eight and a half minutes.
"""
NOTHING = """**Nothing here yet: no GPU has run it.** Until one has, this library claims no speed on a GPU. To fill this page,
make a folder that travels, on a machine with texts, and run the script where the GPU is:

```bash
python -m bench.gpu.inputs inputs --data DATA
GEEP_COMMIT=$(git describe --always --dirty) python -m bench.gpu --inputs inputs --output bench/results/gpu/NAME
python -m bench.report
```
"""
Row = dict[str, Any]
OURS = "ours, "


def page(folder: Path = RESULTS) -> str:
    """The whole page, in Markdown: a section for each results file of a GPU."""
    sections = []
    for path in sorted((folder / "gpu").glob(f"*/{FILE}")):
        rows = read(path)
        for one in dict.fromkeys(card(row["machine"]) for row in rows):
            sections.append(section([row for row in rows if card(row["machine"]) == one]))
    return "\n".join([INTRODUCTION, *(sections or [NOTHING])])


def section(rows: list[Row]) -> str:
    """One machine's results; of two of the same measurement the later counts."""
    latest = {(row["part"], row["key"]): row for row in rows}
    parts: dict[str, dict[str, Row]] = {}
    for (part, key), row in latest.items():
        parts.setdefault(part, {})[key] = row
    machine = rows[-1]["machine"]
    where = machine["gpu"] or f"a rehearsal on {machine['cpu']}, whose times mean nothing"
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("driver", "cuda", "cudnn", "torch", "triton") if machine.get(name)
    )
    dates = " to ".join(sorted({min(row["machine"]["date"] for row in rows), max(row["machine"]["date"] for row in rows)}))
    commits = ", ".join(sorted({row["machine"]["commit"] for row in rows}))
    lines = [f"## {where}", "", f"{versions}; {dates}, commit {commits}.", "", *summary(parts), ""]
    for part, write in WRITERS.items():
        if part in parts:
            lines += [*write(parts[part]), ""]
    failed = [row for row in latest.values() if "error" in row]
    if failed:
        lines += ["### What failed", "", *(f"- {row['part']}, {row['key']}: {_line(row['error'])}" for row in failed), ""]
    return "\n".join(lines)


def summary(parts: dict[str, dict[str, Row]]) -> Iterator[str]:
    """The fastest of each kind on batches of each size, over the fastest that knows no exits."""
    found: dict[tuple[int, int], dict[str, tuple[float, str]]] = {}

    def keep(row: Row, column: str, rate: float, name: str) -> None:
        columns = found.setdefault((row["length"], row["tokens"]), {})
        columns[column] = max(columns.get(column, (0.0, "")), (rate, name))

    for row in parts.get("dense", {}).values():
        for system in row.get("systems", []):
            name = system["system"].removeprefix(OURS)
            keep(row, "rival" if name == system["system"] else "ours", system["samples_per_second"], name)
    for key, row in parts.get("exits", {}).items():
        depth = key.partition("mean exit ")[2].split(",")[0]
        for system in row.get("systems", []) if depth else []:
            kind = system["system"].split(",")[0]
            keep(row, f"{kind} {depth}", system["samples_per_second"], row["way"])
    found = {size: columns for size, columns in found.items() if {"rival", "ours"} <= columns.keys()}
    if not found:
        return
    exits = sorted({column for columns in found.values() for column in columns if column.startswith(("planned", "scored"))})
    yield "### What comes of it"
    yield ""
    yield (
        "Texts a second of the fastest of each kind, and how many times as many as the fastest rival at full depth (which the "
        "last columns' mean exits, of 12 layers, would make 3.4 and 1.8 times as fast at best). In brackets how layers ran."
    )
    yield ""
    yield "| texts | batch | rival, full depth | ours, full depth | " + " | ".join(exits) + " |"
    yield "|---|---|---|---|" + "---|" * len(exits)
    for (length, tokens), columns in found.items():
        rival, name = columns["rival"]
        cells = [f"{rival:,.0f} ({name})"]
        for column in ("ours", *exits):
            rate, way = columns.get(column, (0.0, ""))
            cells.append(f"{rate:,.0f}, {rate / rival:.2f}x ({way})" if rate else "-")
        yield f"| {length} tokens | {tokens:,} tokens | {' | '.join(cells)} |"
    absent = sorted({name for row in parts["dense"].values() for name in row.get("missing", {})})
    if absent:
        yield f"\nNot among the rivals, for the reasons below: {', '.join(absent)}, which small batches would have to beat"
    yield (
        "\n*planned*: each text runs to the exit that it was told, and is not scored; *scored*: it is scored at each exit where"
        " some leave. *lean*: layers without what transformers' have around them, query, key and value in one product; the"
        " engine has them on a CPU only, so far."
    )


def ceilings(rows: dict[str, Row]) -> Iterator[str]:
    """What the machine can do."""
    yield "### Ceilings"
    yield ""
    for key, row in rows.items():
        if "flops_per_second" in row:
            yield f"- matrix product of {row['size']} rows in bfloat16: {row['flops_per_second'] / 1e12:.0f} TFLOP/s"
        elif "bytes_per_second" in row:
            yield f"- copy, read and written: {row['bytes_per_second'] / 1e12:.2f} TB/s"
        elif "launch_seconds" in row:
            yield f"- the host asks for a kernel in {_us(row['launch_seconds'])}, and waits for one {_us(row['wait_seconds'])}"
        elif "first_seconds" in row:
            yield (
                f"- {key}: the first call at a batch size {_us(row['first_seconds'])} (median of {row['batches']}; at worst "
                f"{_us(row['worst_first_seconds'])}), the second {_us(row['second_seconds'])}"
            )


def tests(rows: dict[str, Row]) -> Iterator[str]:
    """How many of the chosen tests passed."""
    yield "### Tests"
    yield ""
    counts = rows.get("tests", {})
    yield ", ".join(f"{counts[name]} {name}" for name in ("passed", "failed", "skipped") if name in counts) + "."
    yield from (f"- failed: {key}: {_line(row['message'])}" for key, row in rows.items() if "message" in row)
    kernels = rows.get("kernels", {})
    if "kernels" in kernels:
        yield f"{kernels['kernels']} kernels compiled, {len(kernels['failed'])} failed."


def steps(rows: dict[str, Row]) -> Iterator[str]:
    """A layer's and a stop's steps: by the host's clock, and replayed by the device's for each size of batch."""
    yield "### Steps of a layer and of a stop, on the base shape"
    yield ""
    yield "What the host takes to ask for a step, and the device to do it, by tokens of a batch; half of the texts are padded."
    yield ""
    sizes = [key for key, row in rows.items() if key != "host" and "steps" in row]
    found = {key: {step["step"]: step["seconds"] for step in row.get("steps", [])} for key, row in rows.items()}
    yield f"| step | host | {' | '.join(key.removeprefix('device, ') for key in sizes)} |"
    yield f"|---|---|{'---|' * len(sizes)}"
    for name in dict.fromkeys(name for steps in found.values() for name in steps):
        values = (found.get(key, {}).get(name) for key in ("host", *sizes))
        yield f"| {name} | {' | '.join('-' if value is None else _us(value) for value in values)} |"
    yield from missing(rows)


def missing(rows: dict[str, Row]) -> Iterator[str]:
    """What a part's cells went on without, and why."""
    for key, row in rows.items():
        for name, reason in row.get("missing", {}).items():
            yield f"\nWithout {name} at {key}: {_line(reason)}"


def dense(rows: dict[str, Row]) -> Iterator[str]:
    """All layers."""
    yield "### All layers: BERT's base shape in bfloat16, token ids in, answers out"
    yield ""
    yield "| texts | batch | system | texts/s | TFLOP/s | of the matrix product's |"
    yield "|---|---|---|---|---|---|"
    for row in rows.values():
        for system in sorted(row.get("systems", []), key=lambda system: system["seconds"]):
            share = system["share_of_ceiling"]
            yield (
                f"| {row['length']} tokens | {row['tokens']:,} tokens | {system['system']} | "
                f"{system['samples_per_second']:,.0f} | {system['flops_per_second'] / 1e12:.1f} | "
                f"{'-' if share is None else f'{share:.0%}'} |"
            )
    yield from missing(rows)


def exits(rows: dict[str, Row]) -> Iterator[str]:
    """Exits replayed."""
    yield "### Exits replayed on the base shape"
    yield ""
    yield "A system's share is what full depth would take for the layers that were run, over what it took."
    yield ""
    yield "| texts | batch | layers | system | mean exit | texts/s | over full depth | share | shapes |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows.values():
        for system in row.get("systems", []):
            long = row.get("length") or f"up to {row['longest']}"
            speed, share = (
                "-" if name not in system else f"{system[name]:{form}}"
                for name, form in (("speed_up", ".2f"), ("share_of_bound", ".0%"))
            )
            yield (
                f"| {long} tokens | {row['tokens']:,} tokens | {row.get('way', '-')} | {system['system']} | "
                f"{system['mean_exit']:.2f} | "
                f"{system['samples_per_second']:,.0f} | {speed} | {share} | {system.get('shapes', '-')} |"
            )
    costs = rows.get("costs", {})
    for way, found in costs.items():
        if isinstance(found, dict) and "head_layers" in found:
            yield (
                f"\nLayers {way}: a head takes {found['head_layers']:.2f} layers of a full batch, a stop besides "
                f"{found['stop_layers']:.2f} ({_us(found['stop_seconds'])}), a move {found['move_layers']:.2f}."
            )


def texts(rows: dict[str, Row]) -> Iterator[str]:
    """Texts in."""
    yield "### Texts in, answers out, exits trained"
    yield ""
    yield "| model | system | texts/s | mean layers | answers as of all layers |"
    yield "|---|---|---|---|---|"
    for key, row in rows.items():
        for system in row.get("systems", []):
            yield (
                f"| {key} ({row['mean_tokens']:.0f} tokens a text) | {system['system']} | {system['texts_per_second']:,.0f} | "
                f"{system['mean_layers']:.2f} of {row['layers']} | {system['agreement']:.1%} |"
            )


def ops(rows: dict[str, Row]) -> Iterator[str]:
    """Ops, and the best launch configurations."""
    yield "### Ops"
    yield ""
    yield "| op | size | provider | time | items/s | GB/s |"
    yield "|---|---|---|---|---|---|"
    for row in rows.values():
        for each in row.get("ops", []):
            size = ", ".join(f"{name} {value:g}" for name, value in each["config"].items())
            yield (
                f"| {each['op']} | {size} | {each['provider']} | {_us(each['seconds'])} | {each['items_per_second']:.3g} | "
                f"{each['gb_per_second']:.1f} |"
            )
    best = {key: row["candidates"][0] for key, row in rows.items() if row.get("candidates")}
    for key, found in best.items():
        how = "replayed" if found["replayed"] else "with its launches"
        yield f"\n{key}: block {found['block']}, {found['warps']} warps, {_us(found['seconds'])} {how}"


WRITERS = {"ceilings": ceilings, "tests": tests, "steps": steps, "dense": dense, "exits": exits, "texts": texts, "ops": ops}


def _us(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def _line(text: str) -> str:
    """The last line of a message, which says most, in one."""
    return (text.strip().splitlines() or [""])[-1][:200]
