import shutil
from types import SimpleNamespace

import pytest
from PIL import Image

from llava.errors import DataError
from llava.eval import run_llava
from llava.eval.model_vqa import image_token


@pytest.fixture
def arguments(models):
    return SimpleNamespace(
        model_path=str(models / "tiny-llava"),
        model_base=None,
        image_file=str(models / "image0.png"),
        query="What is this?",
        conv_mode="vicuna_v1",
        sep=",",
        temperature=0,
        top_p=None,
        num_beams=1,
        max_new_tokens=4,
    )


@pytest.mark.parametrize(
    ("query", "num_images", "wrap", "expected"),
    [
        ("Q", 1, False, "<image>\nQ"),
        ("Q", 2, False, "<image>\n<image>\nQ"),
        ("Q", 1, True, "<im_start><image><im_end>\nQ"),
        ("a <image-placeholder> b", 1, False, "a <image> b"),
    ],
)
def test_images_in_the_question(query, num_images, wrap, expected):
    token = image_token(SimpleNamespace(mm_use_im_start_end=wrap))
    assert run_llava.build_question(query, num_images, token) == expected


def test_answers_and_shows_the_answer(arguments, capsys):
    answer = run_llava.eval_model(arguments)
    assert answer and capsys.readouterr().out.strip() == answer
    arguments.temperature, arguments.image_file = 0.7, ",".join([arguments.image_file] * 2)
    run_llava.eval_model(arguments)


def test_command_line(arguments, capsys, monkeypatch):
    image_parser, seen = run_llava.image_parser, []

    def stop(args):
        seen.append(args)
        raise DataError("seen enough")

    monkeypatch.setattr(run_llava, "image_parser", stop)
    with pytest.raises(SystemExit, match="seen enough"):
        run_llava.main(["--model-path", "m", "--image-file", "a;b", "--query", "Q", "--sep", ";"])
    (args,) = seen
    assert image_parser(args) == ["a", "b"]
    assert (args.temperature, args.num_beams, args.max_new_tokens) == (0.2, 1, 512)


def test_more_images_than_placeholders(arguments):
    arguments.query = "<image-placeholder> what?"
    arguments.image_file += "," + arguments.image_file
    with pytest.raises(DataError, match=r"2 image\(s\) for 1 <image>"):
        run_llava.eval_model(arguments)


def test_pictures_that_cannot_be_read(tmp_path, models):
    (tmp_path / "text.png").write_text("no picture")
    for name, message in (("text.png", "cannot be read"), ("none.png", "no such image")):
        with pytest.raises(DataError, match=message):
            run_llava.load_image(str(tmp_path / name))
    shutil.copy(models / "image0.png", tmp_path)
    Image.new("P", (4, 4)).save(tmp_path / "palette.png")
    names = [str(tmp_path / name) for name in ("image0.png", "palette.png")]
    assert [image.mode for image in run_llava.load_images(names)] == ["RGB", "RGB"]


def test_error_without_a_traceback(models, tmp_path):
    with pytest.raises(SystemExit, match="error: .*no such image"):
        run_llava.main(["--image-file", str(tmp_path / "none.png"), "--query", "Q"])
