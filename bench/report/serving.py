"""The page on the server under load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.environment import RESULTS
from bench.report.tables import lines, measured_on, short
from bench.rows import read, records

Record = dict[str, Any]
INTRODUCTION = """# The server under load

Made by `python -m bench.report` from `bench/results/serving`, which `python -m bench.serving` writes. `geep serve`
answers a MiniLM-L6 that was fine-tuned on sst2, at full depth and by exits that keep 98 % of its answers. Beside it
`transformers.pipeline` answers the same fine-tuned model behind the same server: by the batches that the server
fills, sorted by length, 16 at a time; and naively, one text at a time. Texts are sentences of sst2 (seven words or
more, all different): other rows than those that trained and calibrated, though rows of sst2 overlap. Every answer in
these tables was compared with the engine's own, made beforehand; where no table counts wrong or lost answers, one of
them would have failed the measurement. All threads of a server share one core, torch runs in one thread, and clients
on loopback have the other core.
"""
SYSTEMS = ("ours, exits", "ours, all layers", "pipeline", "pipeline, one text at a time")


def page(folder: Path = RESULTS / "serving") -> str:
    found = records(read(folder))
    if not found:
        return f"{INTRODUCTION}\nNot yet measured.\n"
    sections = {
        "load": load, "correct": correct, "overload": overload, "drain": drain, "slow": slow,
        "audit": audit, "audit_delay": audit_delay, "memory": memory, "batching": batching,
    }  # fmt: skip
    parts = [INTRODUCTION, _measured(found), ""]
    for case, section in sections.items():
        of_case = [one for one in found if one["case"] == case]
        if any(one["system"] for one in of_case):
            parts += section([one for one in of_case if one["system"]])
    return "\n".join(parts)


def _measured(found: Sequence[Record]) -> str:
    """Which sections were measured on which state of the code."""
    cases: dict[str, list[str]] = {}
    for one in found:
        of_state = cases.setdefault(measured_on(one["environment"]), [])
        if one["case"] not in of_state:
            of_state.append(one["case"])
    return "\n".join(f"- {', '.join(of_state)}: {state}." for state, of_state in cases.items())


def load(rows: Sequence[Record]) -> list[str]:
    """Answers a second, and waiting times."""
    systems = _systems(rows)
    of = {(_load(one), one["system"]): one for one in rows}
    names = list(dict.fromkeys(_load(one) for one in rows))
    waiting = [name for name in names if "wait" in name]
    return [
        "## Load",
        "",
        "Answers a second to clients each of which sends its next text when the last is answered; median of "
        "interleaved rounds, "
        "with the range:",
        "",
        lines(["load", *systems], [[name, *(_rate(of[name, system]) for system in systems)] for name in waiting]),
        "",
        "Milliseconds until the answer, median / 99 %. Arrivals are random (Poisson), at a rate that is a share "
        "of what the "
        "pipeline answers of 64 clients, and waiting counts from the moment at which a text was due. `+` marks "
        "a system that "
        "such a rate overloads.",
        "",
        lines(["load", *systems], [[name, *(_waiting(of[name, system]) for system in systems)] for name in names]),
        "",
        f"The generator was at most {max(one['generator_busy'] for one in rows):.0%} busy, and sent 99 % of the "
        "texts at most "
        f"{max(one['sent_late_p99_ms'] for one in rows):.1f} ms after they were due.",
        "",
    ]


def _systems(rows: Iterable[Record]) -> list[str]:
    there = {one["system"] for one in rows}
    return [system for system in SYSTEMS if system in there]


def _load(one: Record) -> str:
    if one["load"] == "clients that wait":
        return "1 client that waits" if one["clients"] == 1 else f"{one['clients']} clients that wait"
    at = f"at {one['share']:.0%} ({one['rate']:.0f} a second)"
    return f"bursts of {one['size']} {at}" if one["load"] == "bursts" else f"arrivals {at}"


def _rate(one: Record) -> str:
    name = "answers_per_second"
    return f"{one[name]:.0f} ({one[f'{name}.low']:.0f}-{one[f'{name}.high']:.0f})"


def _waiting(one: Record) -> str:
    overloaded = "rate" in one and (one["refused"] or one["answers_per_second"] < 0.8 * one["rate"])
    return f"{short(one['p50_ms'])} / {short(one['p99_ms'])}{' +' * bool(overloaded)}"


def correct(rows: Sequence[Record]) -> list[str]:
    """What became of each of many requests."""
    one = rows[0]
    kinds = {name.removeprefix("asked."): count for name, count in one.items() if name.startswith("asked.")}
    good = {kind: kinds.pop(kind) for kind in ("single", "pair", "batch")}
    return [
        "## Nothing lost, nothing mixed up",
        "",
        f"{one['requests']:,} requests from {one['clients']} clients in random order: {good['single']:,} texts, "
        f"{good['pair']:,} pairs, "
        f"{good['batch']:,} batches of four, and {sum(kinds.values()):,} that must be refused "
        f"({', '.join(sorted(kinds))}), each with its own "
        "status. An answer is right if all logits are within 0.001 of the engine's; it is moved if it is that "
        "of another exit, "
        "since texts beside it change a text's logits in the last digits and it may pass a threshold that it "
        "was next to. "
        f"The answer to another text would be taken for right in {one['confusable']:.2%} of cases, so that "
        "answers which are mixed up show.",
        "",
        lines(
            ["system", "right", "moved", "wrong", "lost", "200 a second", "p50, ms", "p99, ms"],
            [
                (
                    each["system"], f"{each['right']:,}", each["moved"], each["wrong"], each["lost"],
                    f"{each['answers_per_second']:.0f}", short(each["p50_ms"]), short(each["p99_ms"]),
                )
                for each in rows
            ],
        ),
        "",
    ]  # fmt: skip


def overload(rows: Sequence[Record]) -> list[str]:
    """More clients than are taken on."""
    return [
        "## Overload",
        "",
        f"`--max-concurrent-requests {rows[0]['limit']}`, and clients that ask again a while after a 429: those who heed "
        "Retry-After, and those who do not. All answers with status 200 are right; rates and waiting are of these.",
        "",
        lines(
            ["clients", "ask again after, s", "200", "429", "Retry-After, s", "200 a second", "p50, ms", "p99, ms"],
            [
                (
                    one["clients"], one["pause"] if one["refused"] else None, f"{one['right'] + one['moved']:,}",
                    f"{one['refused']:,}",
                    ", ".join(seconds for seconds, _ in one["retry_after"]) or None,
                    f"{one['answers_per_second']:.0f}", short(one["p50_ms"]), short(one["p99_ms"]),
                )
                for one in rows
            ],
        ),
        "",
    ]  # fmt: skip


def drain(rows: Sequence[Record]) -> list[str]:
    """SIGTERM."""
    (one,) = rows
    codes = ", ".join(sorted({str(code) for code in one["exit_codes"]}))
    return [
        "## SIGTERM",
        "",
        f"{one['clients']} clients send one text after another until they are hung up on; {one['rounds']} runs. "
        f"Of {one['in_hand']} "
        f"requests that were sent and not answered at the signal, {one['in_hand_right']} were answered rightly. "
        f"Of {one['sent_after']} sent "
        f"after it, {one['sent_after_right']} were answered rightly, and the connections of "
        f"{one['sent_after_closed']} closed without an answer. "
        f"The server ended with code {codes} within {max(one['seconds']):.1f} s.",
        "",
    ]


def slow(rows: Sequence[Record]) -> list[str]:
    """Bad company."""
    beside = [one for one in rows if "company" in one]
    (after,) = [one for one in rows if "company" not in one]
    seen = [f"{name.removeprefix('seen.')}: {count}" for name, count in beside[-1].items() if name.startswith("seen.")]
    return [
        "## Slow and vanishing clients",
        "",
        f"{beside[0]['clients']} clients that wait for their answers, alone and beside 16 that send a byte a second "
        "(`--receive-timeout 2`) and 8 that break connections off at each stage of a request "
        f"({'; '.join(seen)}). Requests in hand "
        f"afterwards: {after['in_hand']:.0f}; counted in `/metrics`: {after['counted_408']:.0f} with status 408, "
        f"{after['counted_499']:.0f} whose client went away.",
        "",
        lines(
            ["", "answers a second", "p50, ms", "p99, ms"],
            [
                (
                    "in bad company" if one["company"] else "alone", f"{one['answers_per_second']:.0f}",
                    short(one["p50_ms"]), short(one["p99_ms"]),
                )
                for one in beside
            ],
        ),
        "",
    ]  # fmt: skip


def audit(rows: Sequence[Record]) -> list[str]:
    """How long until a broken promise shows in /metrics."""
    return [
        "## A broken promise",
        "",
        f"`--audit {rows[0]['rate']:g}`: {rows[0]['audited_before']:.0f} audited texts of the usual kind, and "
        "then texts of another kind, whose agreement with all layers was taken beforehand. Audited texts until "
        "`geep_promise_broken` is 1, beside the audit's delay at that agreement by simulation (median, and within what 95 % "
        "of the runs are):",
        "",
        lines(
            ["texts", "promised", "agreement", "broken before", "audited until broken", "simulated median", "within 95 %"],
            [
                (
                    one["texts"], f"{one['promised']:.0%}", f"{one['agreement']:.1%}", f"{one['broken_before']:.0f}",
                    f"{one['audited']:.0f}" if one["broken"] else f"not within {one['audited']:.0f}",
                    one.get("simulated.median"), one.get("simulated.within_95_percent"),
                )
                for one in rows
            ],
        ),
        "",
    ]  # fmt: skip


def audit_delay(rows: Sequence[Record]) -> list[str]:
    """The delay by simulation."""
    return [
        f"Audited texts until an audit that was promised {rows[0]['promised']:.0%} says that this is broken, "
        f"{rows[0]['runs']} simulated runs each:",
        "",
        lines(
            ["true agreement", "median", "within 95 %"],
            [(f"{one['true']:.0%}", _delay(one["median"]), _delay(one["within_95_percent"])) for one in rows],
        ),
        "",
    ]


def _delay(texts: int) -> str:
    most = 20_000
    return f"{texts:,}" if texts < most else f"above {most:,}"


def memory(rows: Sequence[Record]) -> list[str]:
    """Resident memory over an hour's worth of requests."""
    (one,) = rows
    return [
        "## Memory",
        "",
        f"As many requests as come in an hour at {one['rate']:.0f} a second ({one['share']:.0%} of what the "
        "pipeline answers of as many clients), "
        f"sent by {one['clients']} clients as fast as they go: {one['sent'][-1]:,} of {one['hour']:,.0f} in "
        f"{one['seconds'] / 60:.1f} minutes, "
        "all kinds of requests among them, none lost or wrong. The server holds "
        f"{one['megabytes_at_start']:.0f} MB when it has started.",
        "",
        lines(
            ["requests", "resident, MB"], [(f"{n:,}", f"{mb:.0f}") for n, mb in zip(one["sent"], one["megabytes"], strict=True)]
        ),
        "",
    ]


def batching(rows: Sequence[Record]) -> list[str]:
    """What to wait for, and how much to run together."""
    settings = list(dict.fromkeys((one["system"], one["max_wait_ms"], one["max_batch_tokens"]) for one in rows))
    of = {(one["system"], one["max_wait_ms"], one["max_batch_tokens"], one["load"]): one for one in rows}

    def row(setting: tuple[str, float, int]) -> list[str]:
        loads = [of[(*setting, load)] for load in ("8 clients", "64 clients", "arrivals")]
        rates = [f"{one['answers_per_second']:.0f}" for one in loads[:2]]
        return [*map(str, setting), *rates, *(f"{short(one['p50_ms'])} / {short(one['p99_ms'])}" for one in loads)]

    return [
        "## How long to wait, and how much to run together",
        "",
        "`--max-wait-ms` and `--max-batch-tokens`: answers a second to clients that wait, and milliseconds "
        "until the answer (median / 99 %); "
        "arrivals at 60 % of what the pipeline answers of 64 clients. One short run each: differences of some "
        "percent mean nothing.",
        "",
        lines(
            ["system", "wait", "tokens", "8 clients", "64 clients", "8 clients, ms", "64 clients, ms", "arrivals, ms"],
            [row(setting) for setting in sorted(settings)],
        ),
        "",
    ]
