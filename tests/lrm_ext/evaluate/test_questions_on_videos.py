"""Questions about videos: read with their frames, and shown as many of them as in training."""

import dataclasses
import json

import pytest
from PIL import Image
from toy_benchmark import FakeAnswerer

from llava.errors import ConfigError, DataError
from llava.images import open_image
from llava.mm_utils import tokenizer_image_token
from llava.model.tiles import VIDEO_LAYOUT, Tiling
from lrm_ext.evaluate.answerer import load_answerer
from lrm_ext.evaluate.backends import ServiceAnswerer
from lrm_ext.evaluate.importing import import_benchmark
from lrm_ext.evaluate.items import Item, Request, read_items
from lrm_ext.evaluate.runner import run_evaluation
from lrm_ext.languages.templates import Templates

FRAMES = [f"clip/{number}.png" for number in range(1, 6)]
MAPPING = """
title = "Clips"
kind = "answers"
answer_type = "text"
languages = { hr = "hr" }
[files]
questions = ["{lang}.jsonl"]
images = ["frames"]
[columns]
id = "id"
video = "video"
question = "question"
answer = "answer"
"""


def write_frames(folder):
    (folder / "clip").mkdir(parents=True)
    for number, name in enumerate(FRAMES):
        Image.new("RGB", (20 + number, 30), (60 * number, 200, 250 - 60 * number)).save(
            folder / name
        )
    return folder


def record(key="v", video=FRAMES, text="Što radi?", **more):
    return {
        "question_id": key, "video": video, "text": text, "category": "c", "answer": "da",
        "lang": "hr", "answer_type": "text", **more,
    }  # fmt: skip


@pytest.fixture
def clips(benchmark_dir):
    write_frames(benchmark_dir)
    image = record("image", None, "Što je?") | {"image": "0.png"}
    records = [record(), record("short", FRAMES[:2], "Je li <video> kratko?"), image]
    lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records)
    (benchmark_dir / "hr.jsonl").write_text(lines, encoding="utf-8")
    (benchmark_dir / "en.jsonl").unlink()
    return benchmark_dir


@pytest.fixture(params=[{}, {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[28, 56]]}])
def video_model(model_dir, request):
    """A model as one is that training with --video_frames 3 leaves, without tiles and with."""
    path = model_dir / "config.json"
    config = json.loads(path.read_text()) | VIDEO_LAYOUT | request.param
    path.write_text(json.dumps({**config, "video_frames": 3, "mm_spatial_pool_stride": 2}))
    return model_dir


def load(model_dir):
    templates = Templates.of_checkpoint(model_dir, "lrm_bare")
    return load_answerer(model_dir, None, templates, max_new_tokens=8, device="cpu")


def requests(folder):
    return [
        Request(i.text, "hr", tuple(folder / name for name in i.images), is_video=i.is_video)
        for i in read_items(folder / "hr.jsonl", "hr")
    ]


def test_answers_are_those_of_the_model_itself(video_model, clips):
    answerer = load(video_model)
    video, short, image = asked = requests(clips)
    answers = answerer.answer(asked)
    assert answers == [answerer.answer([request])[0] for request in asked]
    tokenizer, model = answerer._tokenizer, answerer._model
    conversation = answerer._templates.in_language("hr")
    conversation.append_message(conversation.roles[0], "<image>\nŠto radi?")
    conversation.append_message(conversation.roles[1], None)
    ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, return_tensors="pt")
    tiling = Tiling.of(model.config, 28, 16)
    frames = [open_image(clips / FRAMES[place]) for place in (0, 2, 4)]  # three of five, evenly
    pixels = tiling.prepare_video(frames, answerer._image_processor)
    found = model.generate(ids[None], images=[pixels], do_sample=False, max_new_tokens=8)
    assert answers[0].text == tokenizer.decode(found[0], skip_special_tokens=True).strip()
    # 4 x 4 positions a frame, averaged over squares of 2 x 2
    assert answerer.num_tokens(video) == len(ids) - 1 + 3 * 4
    assert answerer.num_tokens(short) == len(answerer._encode(short)) - 1 + 2 * 4
    with pytest.raises(DataError, match=r"tokens with 12 for the video leaves no"):
        answerer.answer([dataclasses.replace(video, text="riba " * 300)])


def test_a_run_asks_about_videos_and_shows_what_it_asked(config, video_model, clips):
    config = dataclasses.replace(config, conv_mode="lrm_bare", model_path=video_model)
    run_evaluation(config)
    lines = (config.predictions_dir / "toy.hr.jsonl").read_text().splitlines()
    images = {each["key"]: each["image"] for each in map(json.loads, lines)}
    assert images == {"v": FRAMES, "short": FRAMES[:2], "image": "0.png"}
    (clips / FRAMES[3]).unlink()
    with pytest.raises(DataError, match=r"clip/4\.png \(toy hr, question v\)"):
        run_evaluation(dataclasses.replace(config, fresh=True), make_answerer=FakeAnswerer)


def test_who_cannot_be_shown_videos_says_so(model_dir, clips):
    video = requests(clips)[0]
    with pytest.raises(ConfigError, match=r"video of 5 frames.*no video_frames.*--video_frames"):
        load(model_dir).answer([video])
    with pytest.raises(ConfigError, match="checkpoints of this code only"):
        ServiceAnswerer("http://127.0.0.1:9/v1", "m", 9).answer([video])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": "clip.mp4"}, r"video is 'clip\.mp4'; expected a list of its frames.*ffmpeg"),
        ({"video": [1]}, r"video is '\[1\]'; expected a list"),
        ({"image": "a.png"}, "it has `image` and `video`"),
        ({"text": "<video> or <video>?"}, "2 <image> in the text, but 1"),
    ],
)
def test_a_question_about_a_video_that_is_wrong(changes, message):
    with pytest.raises(DataError, match=f"hr.jsonl:1: question v: {message}"):
        Item.from_record({**record(), **changes}, "hr.jsonl:1")


def test_a_question_file_is_written_as_it_is_read():
    item = Item.from_record(record(text="<video>\nŠto?"), "x:1")
    assert (item.images, item.text, item.num_places) == (tuple(FRAMES), "<image>\nŠto?", 1)
    written = item.to_record()
    assert written["video"] == FRAMES and "image" not in written and "is_video" not in written
    assert Item.from_record(written, "x:1") == item
    one = Item.from_record(record(video=FRAMES[:1]), "x:1")
    assert (one.image, one.to_record()["video"]) == (FRAMES[0], FRAMES[:1])


def test_a_mapping_names_frames_or_their_folder(tmp_path):
    source = tmp_path / "data"
    write_frames(source / "frames")
    (tmp_path / "clips.toml").write_text(MAPPING, encoding="utf-8")

    def read(video, question="Što?"):
        row = {"id": "1", "video": video, "question": question, "answer": "pas"}
        (source / "hr.jsonl").write_text(json.dumps(row), encoding="utf-8")
        import_benchmark(str(tmp_path / "clips.toml"), source, tmp_path / "out", lang="hr")
        return read_items(tmp_path / "out" / "hr.jsonl", "hr")[0]

    for video in ("clip", FRAMES, str(FRAMES)):
        item = read(video)
        assert item.is_video and item.images == tuple(FRAMES) and item.text.startswith("Što?\n")
    assert read("clip", "Gdje je <video>?").text.startswith("Gdje je <image>?\n")
    with pytest.raises(DataError, match=r"question 1: video is 'clip\.mp4'; expected a list of"):
        read("clip.mp4")
    with pytest.raises(DataError, match=r"1 images of clips are missing.*clip/9\.png"):
        read(["clip/9.png"])
