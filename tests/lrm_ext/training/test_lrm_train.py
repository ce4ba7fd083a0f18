"""Training on a mixture, from flags to files."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import load_file

from llava.data.sample import Turn
from llava.errors import CheckpointError, ConfigError, DataError
from lrm_ext.corpus.store import CorpusRow
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.training.arguments import LrmArguments


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def test_trains_and_stores_the_template(run_lrm):
    out = run_lrm()
    config = json.loads((out / "config.json").read_text())
    assert config["conversation"]["name"] == "lrm_v1"
    assert (out / "COMPLETE").is_file()


def test_a_training_imports_no_evaluation_serving_and_translation(lrm_flags):
    program = (
        "import sys; from lrm_ext.training.train import train_mixture; train_mixture(); "
        "print(*(name for name in sys.modules if name.startswith(('llava.', 'lrm_ext.'))))"
    )
    flags = lrm_flags(max_steps=2, eval_share=0.3, eval_strategy="steps", eval_steps=1)
    command = [sys.executable, "-c", program, *flags]
    names = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    assert "llava.train.train" in names
    foreign = (
        "llava.eval", "llava.serve", "lrm_ext.report", "lrm_ext.evaluate", "lrm_ext.demo",
        "lrm_ext.translate",
    )  # fmt: skip
    assert not [name for name in names if name.startswith(foreign)]


def test_cached_features_train_the_same_model(run_lrm, tmp_path):
    without = weights_of(run_lrm(output_dir=tmp_path / "a"))
    cached = weights_of(
        run_lrm(
            output_dir=tmp_path / "b",
            feature_cache=tmp_path / "features",
            feature_cache_dtype="float32",
        )
    )
    for name, value in without.items():
        assert torch.allclose(value, cached[name], atol=1e-6), name


def test_a_trained_tower_is_not_cached(run_lrm, tmp_path, corpus_path, caplog):
    parts = {"mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model"}
    without = weights_of(run_lrm(output_dir=tmp_path / "a", **parts))
    with caplog.at_level("INFO"):
        left = weights_of(run_lrm(output_dir=tmp_path / "b", feature_cache="auto", **parts))
    assert "auto: off, because the vision tower is trained" in caplog.text
    assert not (corpus_path.parent / "features").exists()
    assert all(torch.equal(value, left[name]) for name, value in without.items())


LITTLE, MUCH, NO_IMAGES = "less than 25 %", "more than 90 %", "has no images"


@pytest.mark.parametrize(
    ("ratio", "changes", "said"),
    [
        (4.0, {}, LITTLE),
        (3.0, {}, None),  # a quarter is enough
        (0.1, {}, MUCH),
        (0.25, {}, None),
        (4.0, {"tune_mm_mlp_adapter": True}, None),
        (0.1, {"tune_mm_mlp_adapter": True}, None),
    ],
)
def test_a_costly_share_of_english(ratio, changes, said, run_lrm, tmp_path, caplog):
    (tmp_path / "m.toml").write_text(f"non_english_ratio = {ratio}\n")
    run_lrm(mixture_path=tmp_path / "m.toml", max_steps=1, **changes)
    found = [text for text in (LITTLE, MUCH, NO_IMAGES) if text in caplog.text]
    assert found == ([] if said is None else [said])


def test_languages_left_out_are_named_unless_others_were_chosen(run_lrm, tmp_path, caplog):
    (tmp_path / "m.toml").write_text("languages = ['hr']\n")
    run_lrm(mixture_path=tmp_path / "m.toml", max_steps=1)
    assert "the mixture leaves" in caplog.text
    caplog.clear()
    run_lrm(languages="hr", output_dir=tmp_path / "chosen", max_steps=1)
    assert "the mixture leaves" not in caplog.text


@pytest.mark.parametrize("tunes_projector", [False, True])
def test_a_stage_without_images(tunes_projector, run_lrm, tmp_path, caplog):
    with CorpusWriter(tmp_path / "text", ("hr",), image_root=".") as writer:
        for i in range(4):
            turns = (Turn("human", f"What is {i}?"), Turn("gpt", f"It is {i}."))
            writer.append(CorpusRow(f"r{i}", None, "made up", "naming", True, turns), {"hr": turns})
    asked, answered = {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}
    records = [{"id": f"r{i}", "conversations": [asked, answered]} for i in range(4)]
    (tmp_path / "data.json").write_text(json.dumps(records))
    for name, data in (
        ("text", {"corpus_path": tmp_path / "text"}),
        ("data.json", {"corpus_path": None, "data_path": tmp_path / "data.json"}),
    ):
        caplog.clear()
        out = tmp_path / f"out-{name}"
        run_lrm(output_dir=out, max_steps=1, tune_mm_mlp_adapter=tunes_projector, **data)
        assert (f"{tmp_path / name} has no images" in caplog.text) is not tunes_projector


def test_worker_processes_change_nothing(run_lrm, tmp_path):
    alone = weights_of(run_lrm(output_dir=tmp_path / "a", max_steps=2))
    helped = weights_of(run_lrm(output_dir=tmp_path / "b", max_steps=2, dataloader_num_workers=2))
    assert all(torch.equal(value, helped[name]) for name, value in alone.items())


def test_resumed_run_ends_with_the_same_weights(run_lrm, tmp_path):
    straight = weights_of(run_lrm(output_dir=tmp_path / "a", max_steps=9, save_steps=100))
    run_lrm(output_dir=tmp_path / "b", max_steps=9, save_steps=4)
    # as if it had been killed after step 8, which is in the second epoch
    for name in ("model.safetensors", "COMPLETE", "config.json"):
        (tmp_path / "b" / name).unlink()
    (tmp_path / "b" / "checkpoint-9").rename(tmp_path / "gone")
    resumed = weights_of(run_lrm(output_dir=tmp_path / "b", max_steps=9, save_steps=100))
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


def losses(folder):
    state = json.loads((folder / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_packed_training_is_the_padded_one(run_lrm, tmp_path):
    padded = run_lrm(output_dir=tmp_path / "a", length_window=0, max_steps=8)
    packed = run_lrm(output_dir=tmp_path / "b", packing=True, max_steps=8)
    assert losses(packed) == pytest.approx(losses(padded), abs=1e-5)
    for name, value in weights_of(padded).items():
        torch.testing.assert_close(weights_of(packed)[name], value, atol=1e-4, rtol=1e-3)


def test_another_mixture_is_refused(run_lrm, tmp_path):
    run_lrm(max_steps=1, save_steps=1)
    (tmp_path / "mixture.toml").write_text("non_english_ratio = 0.5")
    said = "samples in an epoch was 24, is 18, mixture was [0-9a-f]+, is"
    with pytest.raises(CheckpointError, match=said):
        run_lrm(max_steps=2, mixture_path=tmp_path / "mixture.toml")


def test_another_corpus_is_refused(run_lrm, corpus_path, tmp_path):
    copy = tmp_path / "copy" / "small"
    shutil.copytree(corpus_path, copy)
    (tmp_path / "copy" / "images").symlink_to(corpus_path.parent / "images")
    settings = {"save_steps": 1, "lr_scheduler_type": "constant"}  # the length may change then
    run_lrm(max_steps=1, **settings)
    run_lrm(max_steps=2, corpus_path=copy, **settings)
    toml = copy / "corpus.toml"
    toml.write_text(toml.read_text() + "\n")
    with pytest.raises(CheckpointError, match="corpus was [0-9a-f]+, is"):
        run_lrm(max_steps=3, corpus_path=copy, **settings)


def test_too_long_samples_are_refused(run_lrm):
    with pytest.raises(DataError, match=r"'r\d+.*--model_max_length is 100"):
        run_lrm(model_max_length=100)


def test_plain_data_needs_no_corpus(run_lrm, tmp_path):
    record = {
        "id": "a",
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
    }
    (tmp_path / "d.json").write_text(json.dumps([record] * 4))
    out = run_lrm(corpus_path=None, data_path=tmp_path / "d.json", max_steps=1)
    assert (out / "model.safetensors").is_file()


def test_llava_json_trains_with_the_cache_left_to_the_program(run_lrm, tmp_path, corpus_path):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A number."}]
    records = [{"id": str(i), "image": f"{i}.png", "conversations": turns} for i in (0, 1, 2, 4)]
    (tmp_path / "my.json").write_text(json.dumps(records))
    images = corpus_path.parent / "images"
    data = {"corpus_path": None, "data_path": tmp_path / "my.json", "image_folder": images}
    out = run_lrm(**data, feature_cache="auto", max_steps=2)
    assert (out / "model.safetensors").is_file()


def test_images_of_llava_json_are_turned_as_the_servers_turn_them(run_lrm, tmp_path):
    rng = np.random.default_rng(0)
    stored = Image.fromarray(rng.integers(0, 256, (40, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # held upright, stored on its side
    stored.save(tmp_path / "phone.png", exif=exif)
    stored.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cup."}]
    weights = []
    for name in ("phone", "upright"):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps([{"id": "1", "image": f"{name}.png", "conversations": turns}]))
        data = {"corpus_path": None, "data_path": path, "image_folder": tmp_path}
        weights.append(weights_of(run_lrm(**data, max_steps=1, output_dir=tmp_path / name)))
    assert all(torch.equal(weights[1][key], value) for key, value in weights[0].items())


def test_videos_of_a_json_file_are_learned(run_lrm, tmp_path):
    for i in range(3):
        Image.new("RGB", (20, 30), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A."}]
    record = {"id": "1", "video": [f"{i}.png" for i in range(3)], "conversations": turns}
    (tmp_path / "v.json").write_text(json.dumps([record]))
    data = {"corpus_path": None, "data_path": tmp_path / "v.json", "image_folder": tmp_path}
    out = run_lrm(**data, video_frames=2, max_steps=1)
    assert json.loads((out / "config.json").read_text())["video_frames"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus_path": None}, "no data"),
        ({"data_path": "x.json"}, "exclude each other"),
        ({"video_frames": 4}, "a parallel corpus has no videos"),
        ({"corpus_path": None, "data_path": "x.json", "mixture_path": "m.toml"}, "parallel corpus"),
        ({"corpus_path": None, "data_path": "x.json", "feature_cache": "on"}, "parallel corpus"),
        ({"mixture_path": "nothing.toml"}, "no such file"),
        ({"image_aspect_ratio": "round"}, "square, pad, anyres"),
        ({"image_aspect_ratio": "anyres"}, "expected a list.*or a range"),
        (
            {
                "image_aspect_ratio": "anyres",
                "image_grid_pinpoints": "(1x1),...,(2x2)",
                "jpeg_draft": True,
            },
            "leave it out with --image_aspect_ratio anyres",
        ),
        (
            {
                "image_aspect_ratio": "anyres",
                "image_grid_pinpoints": "(1x1),...,(2x2)",
                "alignment_loss": 0.1,
            },
            "compares whole images",
        ),
        ({"feature_cache": "on", "mm_tunable_parts": "mm_vision_tower"}, "needs a frozen vision"),
        (
            {"feature_cache": "on", "mm_tunable_parts": "mm_vision_tower", "lora_enable": True},
            "give --feature_cache off",
        ),
    ],
)
def test_contradictions_are_refused(run_lrm, changes, message):
    with pytest.raises(ConfigError, match=message):
        run_lrm(**changes)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("on", "on"),
        ("off", "off"),
        ("auto", "auto"),
        ("True", "on"),
        ("False", "off"),
        ("none", "off"),
        ("Folder", "Folder"),
    ],
)
def test_feature_cache_takes_a_switch_or_a_folder(value, expected):
    assert LrmArguments(feature_cache=value).feature_cache == expected


def test_unknown_dtype_lists_the_choices():
    with pytest.raises(ConfigError, match="float16, float32"):
        LrmArguments(feature_cache_dtype="int8")
