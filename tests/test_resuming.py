"""Trainings by a recipe that are gone on with: to the same weights, or refused."""

from __future__ import annotations

import json

import pytest

from geep_triton.training.curriculum import Curriculum
from geep_triton.training.recipes import get_recipe
from tests.trainers import build, changed

RESUMED = [
    ("geep", {}, None, "random"),
    ("geep", {}, None, "group_by_length"),
    ("fastbert", {}, None, "random"),
    ("fastbert", {}, Curriculum(), "random"),
    ("berxit", {}, None, "random"),
    ("joint", {"gradient_scale": True}, None, "random"),
    ("distillation", {"feature": 0.1, "order": "shallow_to_deep"}, Curriculum(until=0.7), "random"),
    ("distillation", {}, Curriculum("staged"), "group_by_length"),
]


@pytest.mark.parametrize(("name", "settings", "curriculum", "strategy"), RESUMED)
def test_resume_gives_the_same_weights(make_model, tokenizer, tmp_path, name, settings, curriculum, strategy):
    """Bit for bit, dropout included, from the middle of an epoch, of a stage and of a curriculum."""
    changes = {"save_strategy": "steps", "save_steps": 2, "train_sampling_strategy": strategy}

    def run(folder, resume=None):
        model = make_model(num_labels=2)
        trainer = build(model, tokenizer, tmp_path / folder, get_recipe(name, **settings), curriculum=curriculum, **changes)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("whole")
    for step in (2, 4, 8):
        resumed = run("resumed", str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert resumed.state.global_step == 9
        assert changed(whole.model.state_dict(), resumed.model.state_dict()) == set(), step


def test_resume_by_another_recipe_is_refused(make_model, tokenizer, tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    build(make_model(num_labels=2), tokenizer, tmp_path, "fastbert", **changes).train()
    for recipe, message in (
        (
            get_recipe("geep"),
            r"by recipe 'fastbert' with settings {'finetune': 0.5}, but this training uses 'geep' with settings {}:",
        ),
        (get_recipe("fastbert", finetune=0.3), r"but this training uses 'fastbert' with settings {'finetune': 0.3}:"),
    ):
        for resume in (True, str(tmp_path / "checkpoint-2")):
            with pytest.raises(ValueError, match=message):
                build(make_model(num_labels=2), tokenizer, tmp_path, recipe, **changes).train(resume)
    build(make_model(num_labels=2), tokenizer, tmp_path, "fastbert", **changes).train(True)


@pytest.mark.parametrize("own", [Curriculum(until=0.7), lambda progress: 1.0], ids=["Curriculum", "function"])
def test_resume_with_another_curriculum_is_refused(make_model, tokenizer, tmp_path, own):
    changes = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    build(make_model(num_labels=2), tokenizer, tmp_path, "joint", curriculum=own, **changes).train()
    name = r"Curriculum\(.*until=0.7\)" if isinstance(own, Curriculum) else ".*<lambda>"
    for other, now in ((None, ""), (Curriculum(until=0.6), r" and Curriculum\(.*until=0.6\)")):
        message = (
            rf"'joint' with settings {{'gradient_scale': False}} and {name}, but this training uses 'joint' with .*}}{now}:"
        )
        with pytest.raises(ValueError, match=message):
            build(make_model(num_labels=2), tokenizer, tmp_path, "joint", curriculum=other, **changes).train(True)
    build(make_model(num_labels=2), tokenizer, tmp_path, "joint", curriculum=own, **changes).train(True)


def test_a_checkpoint_of_version_0_1_has_no_record_of_a_curriculum(make_model, tokenizer, tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    build(make_model(num_labels=2), tokenizer, tmp_path, "geep", **changes).train()
    path = tmp_path / "checkpoint-2" / "trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["RecipeRecord"]["args"]["curriculum"]
    path.write_text(json.dumps(state))
    with pytest.raises(
        ValueError, match="was trained by recipe 'geep' with settings {}, but this training uses 'geep' with .* and Curr"
    ):
        build(make_model(num_labels=2), tokenizer, tmp_path, "geep", curriculum=Curriculum(), **changes).train(True)
    build(make_model(num_labels=2), tokenizer, tmp_path, "geep", **changes).train(True)


@pytest.mark.parametrize(("name", "curriculum"), [("fastbert", None), ("joint", Curriculum()), ("berxit", Curriculum())])
def test_going_on_with_another_number_of_steps(make_model, tokenizer, tmp_path, name, curriculum):
    """Stages and curriculum are shares of the steps: with more of them the training would fall back into an earlier stage."""
    settings = {"save_strategy": "steps", "save_steps": 2, "curriculum": curriculum}
    build(make_model(num_labels=2), tokenizer, tmp_path, name, num_train_epochs=1, **settings).train()
    more = build(make_model(num_labels=2), tokenizer, tmp_path, name, num_train_epochs=2, **settings)
    with pytest.raises(ValueError, match="belongs to a training of 3 steps, but this training has 6"):
        more.train(resume_from_checkpoint=True)
