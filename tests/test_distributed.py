"""Several processes: two CPU processes over gloo take the same steps as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECIPES = ["geep", "fastbert", "berxit", "distillation", "smartbert"]


def run(script: Path, *command: str) -> dict[str, list[list[float]]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, *command, str(script), *RECIPES]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"geep"')))


SCRIPT = """
import json, os, sys, tempfile
import torch
from transformers import BertTokenizer, DataCollatorWithPadding, TrainingArguments
from geep_triton import MultiExitBert, MultiExitTrainer
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.curriculum import Curriculum
from geep_triton.training.dataset import TextDataset
from geep_triton.training.recipes import get_recipe
from tests.conftest import WORDS, tiny_config
from tests.trainers import ROWS

processes = int(os.environ.get("WORLD_SIZE", 1))
tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})
data = TextDataset(ROWS, Encoder(tokenizer, 64), {"neg": 0, "pos": 1})
steps = {}
for name in sys.argv[1:]:
    torch.manual_seed(1)
    model = MultiExitBert(tiny_config(
        num_labels=2, head_dropout=0.0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        skip_gate="mean" if name == "smartbert" else None))
    # One over a mean of gates is not the mean of the processes' own.
    recipe = get_recipe(name, **({"skip_weight": 0.0} if name == "smartbert" else {}))
    curriculum = Curriculum() if name == "distillation" else None
    trainer = MultiExitTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=tempfile.mkdtemp(), report_to=[], disable_tqdm=True, save_strategy="no", logging_steps=1, seed=3,
            use_cpu=True, ddp_backend="gloo" if processes > 1 else None, num_train_epochs=3, learning_rate=1e-3,
            weight_decay=0.1, per_device_train_batch_size=4 // processes, gradient_accumulation_steps=2),
        train_dataset=data, data_collator=DataCollatorWithPadding(tokenizer), recipe=recipe,
        curriculum=curriculum, difficulty=None if curriculum is None else [float(i) for i in range(16)],
        class_weights=[1.0, 2.0])
    trainer.train()
    steps[name] = [[entry["loss"], entry["grad_norm"]] for entry in trainer.state.log_history if "loss" in entry]
    steps[name].append([float(sum(p.double().abs().sum() for p in model.parameters()))] * 2)
if trainer.is_world_process_zero():
    print(json.dumps(steps))
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("distributed") / "train.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def one(script) -> dict[str, list[list[float]]]:
    """What one process does."""
    return run(script)


@pytest.mark.parametrize(
    "launcher",
    [
        "torch.distributed.run --standalone --nproc-per-node 2",
        "accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no "
        "--main_process_port 0",
    ],
    ids=["torchrun", "accelerate launch"],
)
def test_two_processes_take_the_steps_of_one(script, one, launcher):
    """Losses, gradient norms, the sum of all final weights; with frozen parameters, turns, a curriculum, modules of
    a recipe's own and accumulation."""
    two = run(script, "-m", *launcher.split())
    for name in RECIPES:
        assert len(one[name]) == len(two[name]) == 7
        for step, (expected, got) in enumerate(zip(one[name], two[name], strict=True)):
            assert got == pytest.approx(expected, rel=2e-3), (name, step)
