"""The preview: the plan and the clips of any step, as training would have them."""

import subprocess
import sys

import fsspec
import pytest
from PIL import Image

from data import preview
from data.contact_sheet import drawn_frames
from data.errors import UserError
from data.mixture import build_mixture
from data.recipe import DataRecipe, load_data_recipe
from data.recipe_files import RECIPES
from tests.tiny_shards import make_classification_set, make_localisation_set
from train.recipe import Recipe, dump_recipe, load_recipe, view_config
from train.tasks import mixture, open_tasks

RECIPE = """
name: small
out: {folder}/run
data_root: {folder}
steps: 4
seed: 3
workers: 0
window: 2
model: {{name: vit_tiny, embed_dim: 32, depth: 2, num_heads: 2, num_frames: 4, image_size: 32}}
optim: {{lr: 1e-3}}
tasks:
  kinetics: {{kind: classification, shards: "${{data_root}}/kinetics-train", batch: 4, loss_weight: 2}}
  ava: {{kind: localisation, shards: "${{data_root}}/ava-train", batch: 4, micro_batch: 2, view: {{scale: [0.9, 1.0]}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preview")
    make_classification_set(folder, "kinetics", "train")
    make_localisation_set(folder, "ava", "train")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder


@pytest.fixture
def run(folder, capsys):
    def run(*args: str) -> str:
        preview.run(preview.parser().parse_intermixed_args([str(folder / "recipe.yaml"), *args]))
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_data_and_training_read_the_same_recipe(path):
    overrides = ["seed=5", "tasks.ava.batch=32", "tasks.ava.view.scale=[0.3,0.9]", "data_root=/elsewhere"]
    data, training = load_data_recipe(path, overrides), load_recipe(path, overrides)
    assert type(data) is DataRecipe and type(training) is Recipe
    for name in ("steps", "seed", "schedule", "window", "workers", "data_root"):
        assert getattr(data, name) == getattr(training, name)
    assert list(data.tasks) == list(training.tasks)
    for name, task in training.tasks.items():
        for key in ("kind", "shards", "val_shards", "batch", "micro_batch", "share"):
            assert getattr(data.tasks[name], key) == getattr(task, key)
        assert view_config(data.tasks[name].view, data.model) == view_config(task.view, training.model)


def test_no_key_of_training_is_taken_for_a_mistyped_one(tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(load_recipe()))  # every key that there is, as a run keeps it
    assert load_data_recipe(tmp_path / "recipe.yaml").tasks["ava"].batch == load_recipe().tasks["ava"].batch


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks.ava.bacth=3", "unknown key tasks.ava.bacth; did you mean tasks.ava.batch"),
        ("sede=3", "did you mean seed"),
        ("tasks.ava.view.scael=[0.5,1]", "tasks.ava.view.scael: unknown key; did you mean scale"),
        ("tasks.avaa.batch=3", "did you mean tasks.ava"),
        ("schedule=weighed", "must be one of accumulate, weighted"),
        ("tasks.ava.batch=0", "must be at least 1"),
    ],
)
def test_a_mistyped_key_is_told(override, message):
    with pytest.raises(UserError, match=message):
        load_data_recipe(RECIPES / "toy.yaml", [override])


def test_the_clips_are_those_of_training(folder, run):
    recipe = load_recipe(folder / "recipe.yaml")
    trained = mixture(open_tasks(recipe, val=False), recipe)
    lines = run("--step", "2", "--plan-only").splitlines()
    assert "step 2 of 4" in lines[0] and "schedule accumulate, seed 3, 1 rank" in lines[0]
    shown = [line.split() for line in lines if line.startswith(("  kinetics ", "  ava "))]
    assert [(row[0], int(row[1])) for row in shown] == [(t, p) for t in ("kinetics", "ava") for p in range(8, 12)]
    assert [int(row[4]) for row in shown] == [trained.orders[t].example(p) for t in (0, 1) for p in range(8, 12)]


def test_ranks_and_micro_steps_are_told(run):
    lines = run("--step", "1", "--plan-only", "--world", "2", "tasks.ava.micro_batch=1").splitlines()
    seats = [tuple(map(int, line.split()[1:4])) for line in lines if line.startswith("  ava ")]
    assert seats == [(4, 0, 1), (5, 0, 2), (6, 1, 1), (7, 1, 2)]
    assert any("each rank: 2 micro-steps of 1 clips" in line for line in lines)


def test_clips_are_loaded_and_drawn(folder, run, tmp_path):
    out = run("--step", "1", "--image", str(tmp_path / "sheet.png"), "--clips", "3")
    assert "class " in out and "action " in out and "decode_ms" in out and "loaded 6 clips" in out
    with Image.open(tmp_path / "sheet.png") as page:
        assert page.width == 4 * 128 and page.height > 6 * 128
        colours = {pixel for _, pixel in page.convert("RGB").getcolors(2**24)}
    assert (230, 159, 0) in colours, "no box"


@pytest.mark.parametrize("frames", [1, 2, 4, 7, 8, 15, 16, 31, 32, 64])
def test_the_keyframe_is_among_the_drawn(frames):
    numbers = drawn_frames(frames)
    assert frames // 2 in numbers and len(numbers) <= 8 and numbers == sorted(set(numbers)) and numbers[-1] < frames


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--step", "4"], "last step is 3"),
        (["--world", "3"], r"tasks.kinetics.batch=4 does not divide over 3 ranks"),
        (["--plan-only", "--image", "x.png"], "leave one of them out"),
        (["tasks.ava.shards=none/ava-train"], "tasks.ava.shards: no shards at none/ava-train"),
        (["tasks.ava.kind=classification"], "tasks.ava.shards: .*holds localisation"),
        (["--image", "/nowhere/sheet.png", "--clips", "1"], "cannot be written"),
        (["schedule=weighted", "tasks.ava.share=.inf"], "tasks.ava.share=inf: must be a finite number"),
        (["schedule=weighted", "tasks.ava.share=.nan"], "tasks.ava.share=nan: must be a finite number"),
        (
            ["schedule=weighted", "tasks.ava.share=1e308"],
            "tasks.ava.share=1e.308: must be a finite number from 0 to 1e9",
        ),
        (["tasks.ava.view=5"], "tasks.ava.view=5: must hold keys"),
        (["tasks.ava.view={1: 2}"], "tasks.ava.view.1: unknown key; known here: color_jitter"),
    ],
)
def test_a_mistake_is_told(run, args, message):
    with pytest.raises(UserError, match=message):
        run(*args)


def test_the_command(folder, tmp_path):
    command = [sys.executable, "-m", "data.preview"]
    done = subprocess.run([*command, "toy.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.startswith("error: no recipe at toy.yaml; the project's own are")
    assert "Traceback" not in done.stderr
    arguments = [str(folder / "recipe.yaml"), "--plan-only"]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "step 0 of 4" in done.stdout, done.stderr


def test_a_mixture_of_data_alone_equals_that_of_training(folder):
    recipe, data = load_recipe(folder / "recipe.yaml"), load_data_recipe(folder / "recipe.yaml")
    one, other = build_mixture(preview.open_sets(data), data), mixture(open_tasks(recipe, val=False), recipe)
    for task in (0, 1):
        assert (one[task, 5].clip == other[task, 5].clip).all()


def test_the_recipes_cache_is_used(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COFINETUNING_CACHE", "/proc/nowhere")
    for file in folder.glob("*-train*"):
        fsspec.filesystem("memory").pipe_file(f"/previewed/{file.name}", file.read_bytes())
    options = ["data_root=memory://previewed", "--plan-only"]
    arguments = [str(folder / "recipe.yaml"), *options, f"cache.folder={tmp_path / 'cache'}"]
    preview.run(preview.parser().parse_intermixed_args(arguments))
    assert "step 0 of 4" in capsys.readouterr().out and any((tmp_path / "cache").iterdir())


def test_mixed_clips_are_told_with_their_shares(run, tmp_path):
    told = run("tasks.kinetics.view.mixup=0.8", "--image", str(tmp_path / "mixed.png"))
    assert "% " in told and (tmp_path / "mixed.png").exists()
    shown = [line for line in told.splitlines() if line.strip().startswith("kinetics ") and "_" in line]
    assert len(shown) == 4 and all("%" in line for line in shown)
