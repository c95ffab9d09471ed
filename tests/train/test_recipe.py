"""Recipes: defaults, overrides, and errors that name the nearest right key."""

from pathlib import Path

import pytest

from data.errors import UserError
from data.recipe import load_data_recipe
from data.view import ViewConfig
from train.recipe import (
    PROJECT,
    TOY_RECIPE,
    ModelRecipe,
    Recipe,
    ViewRecipe,
    dump_recipe,
    load_recipe,
    parse_recipe,
    recipe_differences,
    view_config,
)

SMALL = """
name: small
out: /tmp/run
steps: 10
tasks:
  kinetics: {kind: classification, shards: /shards/kinetics-train}
"""


def test_without_a_path_it_is_the_toy_recipe():
    recipe = load_recipe()
    assert recipe.name == "toy" and set(recipe.tasks) == {"kinetics", "moments", "ssv2", "ava"}
    assert recipe.tasks["ava"].shards == f"{PROJECT}/demo/shards/ava-train"
    assert not recipe.tasks["ssv2"].view.flip, "left and right are what its labels are about"


@pytest.mark.parametrize("path", sorted((PROJECT / "train" / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_of_the_project_loads(path):
    assert load_recipe(path).tasks


def test_overrides_win_and_keep_the_rest():
    recipe = load_recipe(None, ["steps=7", "optim.lr=5e-4", "tasks.ava.batch=8", "tasks.ava.view.scale=[0.3,0.9]"])
    assert (recipe.steps, recipe.optim.lr, recipe.tasks["ava"].batch) == (7, 5e-4, 8)
    assert recipe.tasks["ava"].view.scale == [0.3, 0.9] and recipe.tasks["ava"].view.stride == 2
    assert recipe.optim.warmup_steps == load_recipe().optim.warmup_steps


def test_every_setting_of_a_view_is_a_key_of_a_recipe_with_the_same_default():
    model = ModelRecipe()
    assert view_config(ViewRecipe(), model) == ViewConfig(
        num_frames=model.num_frames, stride=2, image_size=model.image_size
    )
    view = view_config(ViewRecipe(short_side=[256, 320], eval_views=[4, 3], mixup=0.8, randaugment_ops=2), model)
    assert (view.short_side, view.eval_views, view.mixup, view.randaugment_ops) == ((256, 320), (4, 3), 0.8, 2)
    recipe = load_recipe(None, ["tasks.kinetics.view.short_side=[64,80]", "tasks.kinetics.view.eval_views=[2,3]"])
    assert recipe_differences(recipe, parse_recipe(dump_recipe(recipe), "again")) == []


def test_a_recipe_survives_its_own_text():
    recipe = load_recipe(None, ["seed=3"])
    again = parse_recipe(dump_recipe(recipe), "again")
    assert isinstance(again, Recipe) and recipe_differences(recipe, again) == []
    again.tasks["ava"].batch = 99
    assert recipe_differences(recipe, again) == [f"tasks.ava.batch: {recipe.tasks['ava'].batch} -> 99"]


def test_shards_that_have_moved_are_found_by_data_root_in_a_kept_recipe():
    kept = dump_recipe(load_recipe(None, ["data_root=/old", "tasks.ssv2.shards=/else/ssv2-train"]))
    moved = parse_recipe(kept, "kept", ["data_root=/new/place"])
    assert moved.tasks["ava"].val_shards == "/new/place/ava-val"
    assert moved.tasks["ssv2"].shards == "/else/ssv2-train"
    assert parse_recipe(kept, "kept").tasks["ava"].shards == "/old/ava-train"


def test_a_key_without_a_default_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"^mine: (name|out|steps): is missing, and has no default$"):
        parse_recipe("tasks: {a: {kind: classification, shards: none}}", "mine")
    model = "model: {name: vit_tiny, num_frames: 4, image_size: 32}"
    whole = f"{{name: a, out: b, steps: 1, {model}, tasks: {{a: {{kind: classification}}}}}}"
    with pytest.raises(UserError, match=r"^mine: tasks\.a\.shards: is missing, and has no default$"):
        parse_recipe(whole, "mine")


def test_a_relative_path_is_looked_for_in_the_project_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("train/recipes/toy.yaml").name == "toy"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stps=5", "unknown key stps; did you mean steps"),
        ("tasks.avaa.batch=3", "unknown key tasks.avaa; did you mean tasks.ava"),
        ("tasks.ava.btch=3", "unknown key tasks.ava.btch; did you mean tasks.ava.batch"),
        ("optim.weight_deacy=3", "did you mean optim.weight_decay"),
        ("steps=abc", "steps: .*Integer"),
        ("model=3", "model must hold keys"),
        ("optim.lr=-1", "optim.lr=-1.0: must be above 0"),
        ("schedule=weighed", "must be one of accumulate, weighted"),
        ("steps", "write key=value"),
        ("=3", "write key=value"),
        ("tasks.ava.view.scale=[2,1]", "tasks.ava.view.scale: must be two numbers"),
        ("tasks.ava.view.short_side=[32,40]", "tasks.ava.view.short_side: must be .* neither below image_size"),
        ("tasks.kinetics.view.eval_views=[0,3]", "tasks.kinetics.view.eval_views: must be two whole numbers"),
        ("tasks.kinetics.view.mixup=-1", "tasks.kinetics.view.mixup: must be a number of at least 0"),
        ("tasks.ava.view.mixup=0.8", "tasks.ava.view.mixup: is for classification only"),
        ("tasks.ava.label_smoothing=0.1", "tasks.ava.label_smoothing=0.1: is for classification only"),
        ("tasks.kinetics.label_smoothing=2", "must be a share from 0 to 1"),
        ("tasks.ava.view.stride=0", "tasks.ava.view.stride: must be a whole number"),
        ("tasks.ava.kind=detection", "tasks.ava.kind=detection: must be one of classification, localisation"),
        ("tasks.ava.batch=0", "tasks.ava.batch=0: must be at least 1"),
        ("out=${nowhere}", "nowhere"),
        ("tasks={}", "override 'tasks={}' changes nothing"),
        ("name=[1,2", "override 'name=.1,2': its value is not YAML"),
        ("name='", "its value is not YAML"),
        ("tasks.avas=null", "unknown key tasks.avas; did you mean tasks.ava?"),
        ("steps=", "steps: must not be null"),
        ("optim.lr=inf", "optim.lr=inf: must be finite"),
        ("tasks.ava.loss_weight=nan", "tasks.ava.loss_weight=nan: must be finite"),
        ("optim.min_lr=1", "optim.min_lr=1.0: must be from 0 to optim.lr"),
        ("optim.warmup_steps=-1", "optim.warmup_steps=-1: must not be below 0"),
        ("optim.betas=[0.9,1.5]", "optim.betas=.*: must be two numbers in"),
        ("seed=18446744073709551616", "seed=.*below 2"),
    ],
)
def test_a_wrong_override_says_what_is_right(override, message):
    with pytest.raises(UserError, match=message):
        load_recipe(None, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL + "stepss: 3\n", "recipe x.yaml: unknown key stepss; did you mean steps"),
        (SMALL.replace("steps: 10\n", ""), "steps"),
        (SMALL.replace("shards: /shards/kinetics-train", "batch: 3"), "tasks.kinetics.shards"),
        ("- a list", "must be a mapping"),
        ("a: [", "not YAML"),
        (SMALL.replace("kinetics:", "kin etics:"), "letters, digits"),
    ],
)
def test_a_wrong_file_says_where(text, message):
    with pytest.raises(UserError, match=message):
        parse_recipe(text, "recipe x.yaml")


def test_a_missing_file_names_those_there_are():
    with pytest.raises(UserError, match=r"no recipe at nowhere.yaml.*train/recipes/toy.yaml"):
        load_recipe("nowhere.yaml")


def write(folder: Path, **files: str) -> Path:
    """Recipe files, the last of which is returned."""
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


def test_a_recipe_overrides_what_it_builds_on(tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "first.yaml").write_text(SMALL + "optim: {lr: 1, weight_decay: 2, min_lr: 0.5}\n")
    (tmp_path / "parts" / "second.yaml").write_text("optim: {lr: 3}\nseed: 4\ndata_root: /here\n")
    recipe = write(
        tmp_path,
        child="base: [parts/first.yaml, parts/second.yaml]\nname: child\noptim: {weight_decay: 6}\n"
        "tasks: {kinetics: {batch: 2}, ava: {kind: localisation, shards: '${data_root}/ava-train'}}\n",
    )
    monkeypatch.chdir("/")  # bases are relative to the file that names them
    loaded = load_recipe(recipe, ["optim.min_lr=0.25"])
    assert (loaded.name, loaded.steps, loaded.seed) == ("child", 10, 4)
    assert (loaded.optim.lr, loaded.optim.weight_decay, loaded.optim.min_lr) == (3, 6, 0.25)
    assert list(loaded.tasks) == ["kinetics", "ava"] and loaded.tasks["kinetics"].batch == 2
    assert loaded.tasks["kinetics"].shards == "/shards/kinetics-train"
    assert loaded.tasks["ava"].shards == "/here/ava-train"
    assert "base" not in dump_recipe(loaded), "a run keeps its recipe whole"
    assert load_data_recipe(recipe).tasks["kinetics"].batch == 2


def test_a_file_that_is_built_on_twice_counts_once(tmp_path):
    """Otherwise its values would come back over those of the file that overrode them."""
    recipe = write(
        tmp_path,
        root=SMALL + "seed: 1\n",
        left="base: root.yaml\nseed: 2\n",
        right="base: root.yaml\nwindow: 3\n",
        child="base: [left.yaml, right.yaml]\n",
    )
    assert (load_recipe(recipe).seed, load_recipe(recipe).window) == (2, 3)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"child": "base: gone.yaml\n"},
            r"child.yaml: base: no file at .*gone.yaml; .*relative to the recipe",
        ),
        ({"one": "base: child.yaml\n", "child": "base: one.yaml\n"}, r"circle: child.yaml -> one.yaml -> child.yaml"),
        ({"child": "base: child.yaml\n"}, r"circle: child.yaml -> child.yaml"),
        ({"child": "base: {a: b}\n"}, r"child.yaml: base: must be a file or a list of files"),
        ({"child": "base: [1]\n"}, r"child.yaml: base: must be a file or a list of files"),
        ({"one": "stepss: 3\n", "child": "base: one.yaml\n"}, r"one.yaml: unknown key stepss; did you mean steps"),
        ({"one": "- a\n", "child": "base: one.yaml\n"}, r"one.yaml: must be a mapping"),
        ({"one": SMALL, "child": "base: one.yaml\ntasks: [1]\n"}, r"child.yaml: tasks must hold names"),
        (
            {"one": SMALL, "child": "base: one.yaml\ntasks: {kinetics: {view: {scale: {a: 1}}}}\n"},
            r"child.yaml: .*incompatible container types",
        ),
        ({"child": "base: .\n"}, r"base: no file at"),
    ],
)
def test_a_base_that_cannot_be_says_which_file(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        load_recipe(write(tmp_path, **files))


def test_null_takes_a_task_of_a_base_away(tmp_path):
    assert list(load_recipe(None, ["tasks.moments=null", "tasks.ssv2=null"]).tasks) == ["kinetics", "ava"]
    own = tmp_path / "mine.yaml"
    own.write_text(f"base: {TOY_RECIPE}\ntasks:\n  moments: null\n  ava:\n")
    assert list(load_recipe(own).tasks) == ["kinetics", "ssv2"]
    assert list(load_data_recipe(own, ["tasks.ssv2=null"]).tasks) == ["kinetics"]
    own.write_text(f"base: {TOY_RECIPE}\ntasks: {{moment: null}}\n")
    with pytest.raises(
        UserError, match=r"there is none of that name: unknown key tasks.moment; did you mean .*moments"
    ):
        load_recipe(own)
    with pytest.raises(UserError, match="a recipe needs at least one task"):
        load_recipe(None, [f"tasks.{name}=null" for name in ("kinetics", "moments", "ssv2", "ava")])
