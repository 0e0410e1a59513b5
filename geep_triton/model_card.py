"""The model card: a README.md beside a saved model, with metadata for the Hugging Face hub. It holds numbers only, no texts."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import ModelCardData, try_to_load_from_cache

from geep_triton.answers import kind_of
from geep_triton.calibrated import Calibrated, Candidate, percent, ranking_sentences
from geep_triton.config import MultiExitBertConfig
from geep_triton.exit_config import ExitConfig
from geep_triton.saving import Replacement

CARD = "README.md"
BEGIN = "<!-- geep_triton: begin. This part is written again at each save; what is outside of it stays. -->"
END = "<!-- geep_triton: end -->"
TAGS = ["early-exit", "multi-exit", "bert", "geep_triton"]
TASK = "text-classification"
LABELS_NAMED = 20
READS = {"classes": "labels, answers.probabilities", "score": "scores", "label sets": "label_sets, answers.probabilities"}


def write_card(new: Replacement, config: MultiExitBertConfig, exit_config: ExitConfig) -> None:
    """Write README.md into `new.path`, or the part of it between `BEGIN` and `END` where the folder has one.

    A README.md without this part is the user's own and stays as it is, as does all outside of the part.

    Args:
        new: the atomic replacement of the model's folder.
        config: of the model.
        exit_config: how it is served.
    """
    path, part = new.folder / CARD, card_part(config, exit_config)
    if path.is_dir():
        return
    if not path.exists():
        (new.path / CARD).write_bytes(f"{_head(config)}\n{part}\n".encode())
        return
    before = path.read_bytes()
    begin, end = BEGIN.encode(), END.encode()
    if before.count(begin) == before.count(end) == 1 and before.index(begin) < before.index(end):
        kept = before[: before.index(begin)], before[before.index(end) + len(end) :]
        (new.path / CARD).write_bytes(kept[0] + part.encode() + kept[1])


def card_part(config: MultiExitBertConfig, exit_config: ExitConfig) -> str:
    """What the card says of a model, in Markdown: what it is, how to use it, what it promises."""
    calibration = exit_config.calibration
    parts = [
        BEGIN,
        _what_it_is(config),
        _use(config),
        *([_uncalibrated(exit_config)] if calibration is None else _promise(Calibrated.of(calibration), config)),
    ]
    if exit_config.ranking_calibration is not None:
        parts.append("## Ranking\n\n" + "\n".join(ranking_sentences(exit_config.ranking_calibration)))
    return "\n\n".join([*parts, END])


def _head(config: MultiExitBertConfig) -> str:
    """Metadata for the hub, and a title. What is not known, such as a license, is left to the user."""
    data = ModelCardData(
        library_name="geep_triton", pipeline_tag=TASK, tags=list(TAGS), base_model=hub_id(str(config.name_or_path))
    )
    return f"---\n{data.to_yaml()}\n---\n\n# BERT with early exits\n"


def hub_id(name_or_path: str) -> str | None:
    """The hub id that a model was loaded from. None for a folder, or where nothing shows that this is a hub id.

    A name such as "runs/mine" may be either: a hub id is one of which the hub's cache on this machine has the config.json.
    """
    if not name_or_path or Path(name_or_path).exists():
        return None
    try:
        return name_or_path if isinstance(try_to_load_from_cache(name_or_path, "config.json"), str) else None
    except ValueError:  # no hub id has such a form
        return None


def _what_it_is(config: MultiExitBertConfig) -> str:
    layers = "each of them" if len(config.exit_layers) == config.num_hidden_layers else _listed(config.exit_layers)
    kind = kind_of(config)
    answer = "Its answer is one score."
    if kind != "score":
        names = [_plain(config.id2label[index]) for index in range(config.num_labels)]
        others = f" and {len(names) - LABELS_NAMED} more" if len(names) > LABELS_NAMED else ""
        named = f"{', '.join(names[:LABELS_NAMED])}{others}"
        answer = f"Its answer is {'one' if kind == 'classes' else 'a set'} of {len(names)} labels: {named}."
    return (
        f"A BERT of {config.num_hidden_layers} layers that can answer after {layers}: easy texts leave early and run no "
        f"further layer. {answer}"
    )


def _use(config: MultiExitBertConfig) -> str:
    return f"""## Use it

```python
from geep_triton import Engine

engine = Engine.from_pretrained("MODEL")  # this folder, or this model's id on the hub
answers = engine.predict(["A text.", "Another one."])
answers.{READS[kind_of(config)]}, answers.exit_layers
```

```bash
geep predict MODEL texts.jsonl -o answers.jsonl
```"""


def _uncalibrated(exit_config: ExitConfig) -> str:
    return (
        "## Promise\n\nThis model was not calibrated, so nothing is promised of its answers. It is served with the policy "
        f"{_code(exit_config.policy or 'full')}. `geep calibrate` holds it to a promise."
    )


def _promise(calibrated: Calibrated, config: MultiExitBertConfig) -> list[str]:
    """The promise with what it rests on, and the policies that were compared."""
    chosen = calibrated.chosen
    sentences = [f"**{_plain(sentence)}**" for sentence in calibrated.sentences()]
    told = [calibrated.how_sure(), *([] if calibrated.samples is None else [f"It rests on {calibrated.samples:,} texts."])]
    told += [calibrated.holds_for()] if calibrated.holds_for() else []
    found = ["## Promise\n\n" + "  \n".join(sentences) + "\n\n" + " ".join(told)]
    if chosen is not None:
        rows = [(calibrated.named(each), each) for each in calibrated.with_chosen()]
        table = "\n".join(_row(name, each, each == chosen, config.num_hidden_layers) for name, each in rows)
        found.append(
            "## Policies\n\n"
            "| policies | layers run | same answer as all layers | speed-up |\n|---|---|---|---|\n"
            f"{table}\n\n"
            f"Figures of the calibration's texts; speed is of the machine that calibrated. The policy in bold is used: "
            f"{_code(chosen.policy)}."
        )
    return found


def _row(name: str, candidate: Candidate, chosen: bool, num_layers: int) -> str:
    speed_up = "" if candidate.speed_up is None else f"{candidate.speed_up:.2f}×"
    cells = [_plain(name), f"{candidate.mean_layers:.2f} of {num_layers}", percent(candidate.agreement), speed_up]
    return f"| {' | '.join(f'**{cell}**' if chosen and cell else cell for cell in cells)} |"


def _listed(layers: list[int]) -> str:
    return "its last layer" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"


def _plain(text: str) -> str:
    """A text that Markdown shows as it is, in one line."""
    line = " ".join(str(text).encode("utf-8", "replace").decode().split())
    escaped = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", escaped)


def _code(text: str) -> str:
    """A text as code in Markdown, in one line."""
    line = " ".join(text.split()).replace("`", "'")
    return f"`{line}`"
