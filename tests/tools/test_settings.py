"""The settings that ship, and what comes of them."""

import pytest
import tomllib

from llava.errors import ConfigError
from lrm_ext.mixture.spec import MixtureSpec
from tools.reproduce.settings import FINETUNE, PRETRAIN, mixture_text, read_study, study_file
from tools.reproduce.tasks import ASK, MIXTURES, make_tasks, write_mixtures
from tools.reproduce.verdicts import read_claims


def test_the_paper_s_experiments_are_there():
    study = read_study()
    by_name = {setting.name: setting for setting in study.settings}
    assert len(study.seeds) >= 3
    assert {one.ratio for one in study.settings} == {0, 0.4, 0.7, 1, 1.5}
    assert by_name["without-epvqa"].instructions == ("mvqa", "bvqa")
    assert by_name["without-mvqa-pretrain"].pretrain_ratio == 0
    assert by_name["without-mvqa-pretrain"].ratio == 1
    _, claims = read_claims(study)
    assert {name for claim in claims for name in (claim.a, claim.b)} == set(by_name)


def test_every_setting_sees_the_same_number_of_english_samples():
    study = read_study()
    for setting in study.settings:
        if setting.steps_of_ratio is None:
            for stage, ratio in ((PRETRAIN, setting.pretrain_ratio), (FINETUNE, setting.ratio)):
                english = study.steps(setting, stage) / (1 + ratio)
                base = study.pretrain_steps if stage == PRETRAIN else study.finetune_steps
                assert english == pytest.approx(base / 2, rel=0.01)


def test_mixtures_differ_in_what_the_setting_says_only(tmp_path):
    study = read_study().choose(["full", "without-bvqa", "ratio-40", "english-only"], [3])
    tasks = make_tasks(study, tmp_path)
    write_mixtures(study, tasks)
    specs = {
        (task.name, task.kind): MixtureSpec.from_toml(task.variables["MIXTURE"])
        for task in tasks
        if task.kind != ASK
    }
    full = specs["full.seed3", "finetune"]
    paper = MixtureSpec.from_toml(MIXTURES / "finetune.toml")
    assert full.seed == 3 and full.instructions == paper.instructions
    assert full.languages == paper.languages
    assert set(specs["without-bvqa.seed3", "finetune"].instructions) == {"mvqa", "epvqa"}
    assert (
        specs["ratio-40.seed3", "finetune"].non_english_ratio
        == MixtureSpec.from_dict({"non_english_ratio": 0.4}).non_english_ratio
    )
    # pre-training is shared where it is equal
    assert [task.name for task in tasks if task.kind == PRETRAIN] == [
        "stage1/ratio-100.seed3",
        "stage1/ratio-0.seed3",
    ]


def test_how_many_languages_is_asked_at_equal_english_and_equal_steps(tmp_path):
    study = read_study(study_file("languages"))
    assert len(study.languages) == len(set(study.languages)) == 46
    by_name = {setting.name: setting for setting in study.settings}
    for name in ("languages-10", "languages-25", "languages-47", "share-10", "share-90"):
        assert study.steps(by_name[name], FINETUNE) == study.finetune_steps
    assert study.steps(by_name["languages-1"], FINETUNE) == study.finetune_steps / 2
    for percent in (10, 25, 75, 90):
        assert 100 / (1 + by_name[f"share-{percent}"].ratio) == pytest.approx(percent)
    _, claims = read_claims(study)
    assert {name for claim in claims for name in (claim.a, claim.b)} <= set(by_name)

    tasks = make_tasks(study.choose(["languages-25"], [0]), tmp_path)
    write_mixtures(study, tasks)
    first, second, asking = tasks
    assert first.name == "stage1/ratio-100-nine-next15.seed0"
    assert second.variables["DATA_PATH"].startswith(
        "playground/data/emoji_scenes/corpus/chosen/47-"
    )
    spec = MixtureSpec.from_toml(second.variables["MIXTURE"])
    assert tuple(spec.languages) == study.groups["nine"] + study.groups["next15"]
    assert asking.command[-2:] == ("--languages", ",".join(("en", *study.languages)))


def test_longer_training_has_a_pretraining_of_its_own():
    by_name = {setting.name: setting for setting in read_study().settings}
    assert by_name["english-twice"].stage1 != by_name["english-only"].stage1
    assert by_name["full"].stage1 == by_name["ratio-40"].stage1


def test_quick_is_a_part_of_all():
    quick, whole = read_study(quick=True), read_study()
    assert quick.quick and set(quick.seeds) < set(whole.seeds)
    assert set(quick.settings) < set(whole.settings)
    assert quick.finetune_steps == whole.finetune_steps  # so that its runs count for all


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["mvqa", "bvqa"]', '["mvqa", "qvqa"]', "unknown instruction qvqa"),
        ("ratio = 1.5", 'groups = ["nine"]', "unknown group nine; .*no table"),
        ("ratio = 1.5", "ratio = -1", "ratio is -1; expected 0 to 100"),
        ("limit = ", "limits = ", "unknown key limits"),
        ('name = "ratio-70"', 'name = "ratio-40"', "named twice: ratio-40"),
        ("finetune_steps = ", "finetune_steps = 0.", "finetune_steps is 0.*expected a whole"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, old, new, message):
    text = study_file("mini").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "settings.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_study(path)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="unknown setting half; choose from: full"):
        read_study().choose(["half"])


def test_a_mixture_file_is_toml():
    setting = read_study().settings[0]
    base = tomllib.loads((MIXTURES / "finetune.toml").read_text(encoding="utf-8"))
    text = mixture_text(setting, FINETUNE, 1, base)
    assert tomllib.loads(text)["languages"] == base["languages"]
