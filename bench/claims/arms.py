"""The ways to train, declared before they run: an arm is a sequence of steps, each a stage of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from geep_triton.training.curriculum import Curriculum

LAYERS = 12
GEEP_EXITS = (1, 2, 3, 4, 5, 6, LAYERS)  # E = 6 is GEEP's published default
EVERY_LAYER = tuple(range(1, LAYERS + 1))


@dataclass(frozen=True)
class Step:
    """One training, which starts from the weights of the step before.

    Attributes:
        recipe, settings: see `geep_triton.training.recipes.get_recipe`.
        epochs: of this step.
        best: whether the weights of that epoch are kept after which the last exit is best on the tuning rows.
        curriculum: of the training rows, easiest first within each class, or None.
        separate: whether an exit's loss stops at the exit below, so that no two exits train one layer (as SWEET does).
    """

    recipe: str
    settings: dict[str, Any] = field(default_factory=dict)
    epochs: float = 3.0
    best: bool = False
    curriculum: Curriculum | None = None
    separate: bool = False


@dataclass(frozen=True)
class Arm:
    """What is trained.

    Attributes:
        name: in tables and files.
        steps: one after another.
        layers: of the model, the lowest ones of the pretrained model.
        exit_layers: of the model.
        model: further settings of the model's configuration.
    """

    name: str
    steps: tuple[Step, ...]
    layers: int = LAYERS
    exit_layers: tuple[int, ...] = GEEP_EXITS
    model: dict[str, Any] = field(default_factory=dict)


# What rows that start from another data set start from: its last exit fine-tuned. Its rows' difficulties, too, come from models
# that are trained so.
START = Arm("start", (Step("fastbert", {"finetune": 1.0}),), exit_layers=(LAYERS,))

# A: GEEP beside FastBERT at the same core seconds: 3 + 3 epochs cost as much as 2.6, as the page shows from every cell.
JOINT = Arm("joint", (Step("joint"),))
FASTBERT = Arm("fastbert", (Step("fastbert", {"finetune": 1.0}), Step("frozen")))
GEEP = Arm("geep", (Step("geep", epochs=2.6),))
# Its rivals: no two exits train one layer (SWEET-like), and complete small models before the full one (CascadeBERT-like).
SEPARATE = Arm("separate", (Step("joint", separate=True),))
SMALL = tuple(
    Arm(f"small{depth}", (Step("fastbert", {"finetune": 1.0}),), layers=depth, exit_layers=(depth,)) for depth in (2, 4)
)

# B: SmartBERT beside the same exits without gates (DeeBERT's recipe), published epochs and losses. Its lambda pushes a gate by
# lambda / (sum of mean gates)^2, which is the published push at 12 layers.
GATE_EPOCHS, EXIT_EPOCHS = 5.0, 4.0
SMARTBERT_HEADS = {"head_attention_heads": 4}
EXITS = Arm(
    "exits",
    (Step("fastbert", {"finetune": 1.0}, GATE_EPOCHS, best=True), Step("deebert", {"finetune": 0.0}, EXIT_EPOCHS)),
    exit_layers=EVERY_LAYER,
    model=SMARTBERT_HEADS,
)


def smartbert(skip_weight: float, gate: str = "attention") -> Arm:
    """SmartBERT's two stages.

    Args:
        skip_weight: lambda.
        gate: kind of the skip gates. The published one ("attention") reads the first token, which a model that was pretrained
            for the mean of its tokens leaves nearly empty. "mean" reads that mean.
    """
    settings = {"skip_weight": skip_weight}
    return Arm(
        f"smartbert-{gate}-{skip_weight:g}",
        (
            Step("smartbert", {**settings, "gate_epochs": GATE_EPOCHS, "exit_epochs": 0.0}, GATE_EPOCHS, best=True),
            Step("smartbert", {**settings, "gate_epochs": 0.0, "exit_epochs": EXIT_EPOCHS}, EXIT_EPOCHS),
        ),
        exit_layers=EVERY_LAYER,
        model={**SMARTBERT_HEADS, "skip_gate": gate, "skip_gate_bias": 0.0},
    )


SKIPPING = (smartbert(0.05), smartbert(0.0125), smartbert(0.2), smartbert(0.05, "mean"))

# C: distillation and curriculum (our reconstruction of Gu et al.). An exit at every layer.
SHALLOW_TO_DEEP = {"pairing": "next", "order": "shallow_to_deep"}


def distilled(name: str, curriculum: Curriculum | None = None, **settings: Any) -> Arm:
    """An exit at every layer, trained with distillation between exits."""
    return Arm(name, (Step("distillation", settings, curriculum=curriculum),), exit_layers=EVERY_LAYER)


EVERY_EXIT = Arm("every-exit", (Step("joint"),), exit_layers=EVERY_LAYER)
LAST_LOGITS = distilled("last-logits", pairing="last")
NEXT_FEATURES = distilled("next-features", alpha=0.0, feature=1.0, **SHALLOW_TO_DEEP)
NEXT_BOTH = distilled("next-features-logits", feature=1.0, **SHALLOW_TO_DEEP)
CURRICULUM = Arm("curriculum", (Step("joint", curriculum=Curriculum()),), exit_layers=EVERY_LAYER)
CURRICULUM_FEATURES = distilled("curriculum-next-features", Curriculum(), alpha=0.0, feature=1.0, **SHALLOW_TO_DEEP)
