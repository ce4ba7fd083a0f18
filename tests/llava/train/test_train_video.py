"""Trainings on videos, given as lists of frames, beside images and text."""

import json

import pytest
import torch
from PIL import Image
from test_train_resolution import TILED, losses_of, rows_of, turns

from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.sample import Sample, SampleError
from llava.errors import ConfigError
from llava.model.builder import load_pretrained_model
from llava.model.splice import merge_frames
from llava.model.tiles import Tiling
from llava.train.metrics import position_quantities, read_metrics

FRAMES = [f"clip/{i}.png" for i in range(7)]
# the tiny tower gives 4 x 4 positions
SHOWN = {"video_frames": 3, "mm_spatial_pool_stride": 2, "model_max_length": 512}


@pytest.fixture(scope="module")
def video_data(tmp_path_factory):
    """Videos of seven frames, two and one, images, and text only."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "clip").mkdir()
    for i, path in enumerate(FRAMES):
        gradient = Image.linear_gradient("L").resize((40 + i, 20 + 5 * i))
        Image.merge("RGB", [gradient, gradient.rotate(60 * i), gradient]).save(folder / path)
    records = [
        {"id": "long", "video": FRAMES, "conversations": turns("<video>\nWhat?", "A.")},
        {"id": "image", "image": FRAMES[1], "conversations": turns("<image>\nWhat?", "B.")},
        {"id": "text", "conversations": turns("What is a <video> tag?", "<video> it is.")},
        {"id": "two", "video": FRAMES[:2], "conversations": turns("Hi", "Ho", "<image>\nC?", "C.")},
        {"id": "one", "video": FRAMES[1:2], "conversations": turns("<video>\nWhat?", "B.")},
        {"id": "several", "image": FRAMES[:2], "conversations": turns("<image> or <image>?", "D.")},
    ]
    (folder / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


@pytest.fixture
def videos(video_data):
    return {"data_path": video_data / "data.json", "image_folder": video_data}


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_padded_and_packed_give_the_losses_of_each_sample(tiled, stride, trained, videos):
    settings = {**(TILED if tiled else {}), **SHOWN, "mm_spatial_pool_stride": stride}
    trainer = trained(**videos, **settings)
    dataset, model, tokenizer = trainer.train_dataset, trainer.model, trainer.processing_class
    order = [3, 1, 0, 2, 5, 4]
    items = [dataset[i] for i in order]
    alone = torch.cat([losses_of(model, rows_of(dataset, [i], tokenizer), False)[0] for i in order])
    batch = rows_of(dataset, order, tokenizer)
    padded, _ = losses_of(model, batch, packing=False)
    packed, lengths = losses_of(model, batch, packing=True)
    assert (alone > 0).all()
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    # known before any frame is opened, and as the metrics count them
    assert [dataset.lengths[i] for i in order] == lengths
    counts = [item["image_positions"] for item in items]
    assert counts[2] == (3 * 16 // stride**2, 3) and counts[5] == (16 // stride**2, 1)
    inputs = {key: batch[key] for key in ("input_ids", "labels", "attention_mask")}
    assert position_quantities(inputs, 16, counts)["real"].tolist() == lengths
    texts = [(item["input_ids"] != IMAGE_TOKEN_INDEX).sum() for item in items]
    assert lengths[2] == texts[2] + 3 * 16 // stride**2
    assert lengths[0] == texts[0] + 2 * 16 // stride**2
    assert lengths[3] == texts[3]


def test_a_video_of_one_frame_is_as_an_image(trained, videos):
    trainer = trained(**videos, **{**SHOWN, "mm_spatial_pool_stride": 1})
    dataset, model, tokenizer = trainer.train_dataset, trainer.model, trainer.processing_class
    image, video = dataset[1], dataset[4]
    assert torch.equal(image["input_ids"], video["input_ids"])
    assert torch.equal(image["image"], video["image"][0, 0])
    expected, found = (losses_of(model, rows_of(dataset, [i], tokenizer), False)[0] for i in (1, 4))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("packing", [False, True])
def test_a_run_records_how_videos_are_shown(packing, trained, videos, tmp_path):
    trainer = trained(
        **videos, **SHOWN, packing=packing, max_steps=3, output_dir=tmp_path / "out",
        group_by_modality_length=True,
    )  # fmt: skip
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = {
        "video_frames": 3, "mm_spatial_pool_stride": 2, "mm_spatial_pool_mode": "average",
        "mm_newline_position": "no_token",
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    lines = [line for line in read_metrics(tmp_path / "out" / "metrics.jsonl") if "loss" in line]
    assert len(lines) == 3 and all(line["tokens_per_second"] > 0 for line in lines)
    _, model, processor, _ = load_pretrained_model(
        str(tmp_path / "out"), None, "llava", device="cpu"
    )
    tower = model.get_vision_tower()
    tiling = Tiling.of(model.config, tower.input_size, tower.num_image_tokens)
    paths = tiling.sample_frames([str(videos["image_folder"] / path) for path in FRAMES])
    video = tiling.prepare_video([Image.open(path).convert("RGB") for path in paths], processor)
    assert video.shape == (1, 3, 3, 28, 28)
    item = trainer.train_dataset[0]
    assert torch.equal(video, item["image"])
    answer = model.generate(item["input_ids"][None], images=[video], max_new_tokens=2)
    assert answer.shape[1] > 0
    model.config.mm_newline_position = "grid"
    with pytest.raises(ConfigError, match="mm_newline_position.*'grid'.*no_token"):
        model(item["input_ids"][None], images=[video])


def test_frames_are_chosen_evenly():
    def chosen(num_frames, limit):
        tiling = Tiling("pad", (), "flat", 0, 16, video_frames=limit)
        return [int(frame) for frame in tiling.sample_frames([*map(str, range(num_frames))])]

    assert chosen(3, 8) == chosen(3, 3) == [0, 1, 2]
    assert chosen(9, 3) == [0, 4, 8] and chosen(10, 4) == [0, 3, 6, 9]
    assert chosen(100, 7)[::6] == [0, 99] and len(set(chosen(100, 99))) == 99
    assert chosen(5, 1) == [0]


def test_maps_are_averaged_without_what_is_left_over():
    maps = torch.arange(2 * 25.0).view(2, 25, 1)
    # a map of 5 x 5: the means of 0 1 5 6, of 2 3 7 8, and so on
    expected = torch.tensor([3.0, 5, 13, 15])
    assert torch.equal(merge_frames(maps, 2)[:, 0], torch.cat([expected, expected + 25]))
    assert torch.equal(merge_frames(maps, 1), maps.view(50, 1))
    assert Tiling("pad", (), "flat", 0, 25, 8, 2).num_video_positions(2) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video_frames": -1}, "--video_frames is -1"),
        ({"video_frames": 0}, "--mm_spatial_pool_stride 2 is for videos"),
        ({"mm_spatial_pool_stride": 0}, "--mm_spatial_pool_stride is 0"),
        ({"mm_spatial_pool_stride": 5}, "n at least 5, but the tower gives 16"),
        ({"mm_vision_select_feature": "cls_patch"}, "n x n positions.*gives 17"),
        ({"vision_tower": None}, "name a --vision_tower"),
        ({"video_frames": 128}, "a video of 128 frames takes 512 positions.*is 512"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "need --image_aspect_ratio anyres"),
    ],
)
def test_flags_that_do_not_fit_are_an_error_before_the_first_step(
    changes, message, flags, run_train, videos, tmp_path
):
    with pytest.raises(ConfigError, match=message):
        run_train(flags(**{**videos, **SHOWN, **changes}))
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("record", "reason", "message"),
    [
        ({"video": "a.mp4"}, "video", "`video` is 'a.mp4', expected a list of its frames.*ffmpeg"),
        ({"video": [*FRAMES[:2], "clip/9.png"]}, "missing_image", "clip/9.png does not exist"),
        ({"video": [*FRAMES[:2], "data.json"]}, "corrupt_image", "data.json"),
        ({"video": FRAMES, "image": FRAMES[0]}, "video", "images and a video"),
        ({"video": FRAMES, "conversations": turns("What?", "A.")}, "image_mismatch", "hold 0 pl"),
        ({"video": FRAMES, "conversations": turns("<video><image>", "A.")}, "image_mismatch",
         "hold 2 places of a video"),
        ({"video": []}, "video", "turn 1 holds <video>"),
        ({"videos": [FRAMES]}, "video", "not supported"),
    ],
)  # fmt: skip
def test_a_bad_video_names_its_sample(record, reason, message, flags, run_train, videos, tmp_path):
    base = {"id": "bad", "conversations": turns("<video>\nWhat?", "A.")}
    (tmp_path / "bad.json").write_text(json.dumps([{**base, **record}]), encoding="utf-8")
    settings = {**videos, **SHOWN, "data_path": tmp_path / "bad.json"}
    with pytest.raises(SampleError, match=f"sample 'bad'.*{message}") as error:
        run_train(flags(**settings))
    assert error.value.reason == reason


def test_without_frames_a_video_is_refused_and_the_flag_is_named(flags, run_train, videos):
    with pytest.raises(SampleError, match="has video data.*--video_frames"):
        run_train(flags(**videos))


def test_a_sample_with_a_video_round_trips():
    record = {"id": "1", "video": FRAMES, "conversations": turns("See <video>?", "Yes.")}
    sample = Sample.from_record(record, "f:1", takes_video=True)
    assert sample.video == tuple(FRAMES) and sample.images == () and sample.num_places == 1
    assert Sample.from_record(sample.to_record(), "f:1", takes_video=True) == sample
