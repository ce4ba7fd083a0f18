import io
import logging
import sys
from pathlib import Path

import pytest

from llava.conversation import get_conversation
from llava.errors import CheckpointError, DataError
from llava.serve import cli, engine
from llava.serve.check import check_model_path

MODELS = Path(__file__).parents[2] / "golden" / "llava" / "model"


def talk(engine, questions, picture, *flags, template="llava_v1"):
    args = cli.build_parser().parse_args(["--image-file", "x", *flags])
    output = io.StringIO()
    conversation = get_conversation(template)
    cli.chat(engine, conversation, picture, args, io.StringIO(questions), output)
    return output.getvalue(), conversation


def test_questions_from_a_pipe(make_engine, picture):
    output, _ = talk(make_engine(" Žut automobil."), "Što je to?\n", picture)
    assert output == "USER: Što je to?\nASSISTANT: Žut automobil.\nUSER: \nexit...\n"


def test_an_empty_line_leaves(make_engine, picture):
    output, _ = talk(make_engine("A."), "\nnever asked\n", picture)
    assert output == "USER: exit...\n"


def test_history_has_no_stray_end_token(make_engine, picture):
    engine = make_engine([*b" Yes.", 256, *b"ignored"])
    _, conversation = talk(engine, "One?\nTwo?\n", picture)
    assert [text for _, text in conversation.messages] == [
        "<image>\nOne?",
        "Yes.",
        "Two?",
        "Yes.",
    ]
    assert engine.model.calls[1]["prompt"].count("</s>") == 1
    assert engine.model.calls[1]["images"].shape[0] == 1


def test_mpt_roles_and_stop(make_engine, picture):
    engine = make_engine([*b"Yes.", 257, *b"ignored"], name="llava-mpt")
    output, _ = talk(engine, "One?\n", picture, template="mpt")
    assert output.startswith("user: One?\nassistant: Yes.\n")


def test_a_full_context_ends_the_chat_with_a_word(make_engine, picture):
    output, _ = talk(make_engine("A.", context_len=100), "One?\nTwo?\n", picture)
    assert "Exceeds max token length" in output


def test_debug_shows_prompt_and_output(make_engine, picture, caplog):
    with caplog.at_level(logging.INFO):
        talk(make_engine("A."), "One?\n", picture, "--debug")
    assert "One? ASSISTANT:" in caplog.text


def test_missing_picture_and_broken_picture(tmp_path):
    with pytest.raises(DataError, match="missing.png: there is no such image"):
        cli.load_image(str(tmp_path / "missing.png"))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="broken.png: the image cannot be read"):
        cli.load_image(str(tmp_path / "broken.png"))


def test_missing_model_is_said_before_anything_is_loaded(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.run(["--model-path", str(tmp_path / "none"), "--image-file", "x.png"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no model folder")
    assert "quickstart.sh" in error


def test_model_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_model_path("liuhaotian/llava-v1.5-7b")  # a name on the Hub
    for path in ("runs/mini", "./a/b", "/a/b", "~/a", "mini"):
        with pytest.raises(CheckpointError, match="no model folder"):
            check_model_path(path)
    (tmp_path / "half").mkdir()
    with pytest.raises(CheckpointError, match="neither config.json nor"):
        check_model_path("half")


def test_cpu_is_picked_without_cuda_and_said(monkeypatch, caplog):
    monkeypatch.setattr(engine.torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert engine.pick_device("cuda") == "cpu"
    assert caplog.text.count("running on the CPU") == 1
    assert engine.pick_device("mps") == "mps"


def test_main_from_a_pipe(make_engine, picture, tmp_path, monkeypatch, capsys):
    picture.save(tmp_path / "p.png")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(cli, "load_engine", lambda *args, **options: make_engine("A."))
    monkeypatch.setattr(sys, "stdin", io.StringIO("One?\n"))
    cli.run(["--model-path", str(tmp_path), "--image-file", str(tmp_path / "p.png")])
    assert "ASSISTANT: A.\n" in capsys.readouterr().out


def test_unknown_template_lists_the_choices(make_engine, picture, tmp_path, monkeypatch, capsys):
    picture.save(tmp_path / "p.png")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(cli, "load_engine", lambda *args, **options: make_engine("A."))
    flags = ["--model-path", str(tmp_path), "--image-file", str(tmp_path / "p.png")]
    with pytest.raises(SystemExit):
        cli.run([*flags, "--conv-mode", "nonsense"])
    assert "vicuna_v1" in capsys.readouterr().err


def test_a_real_model_answers_from_a_pipe(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is it?\n"))
    flags = ["--model-path", str(MODELS / "tiny-llava"), "--temperature", "0"]
    flags += ["--image-file", str(MODELS / "image0.png"), "--max-new-tokens", "8"]
    cli.run(flags)
    output = capsys.readouterr().out
    question, answer, leaving, _ = output.split("\n", 3)
    assert question == "Human: What is it?"
    assert answer.startswith("Assistant: ")
    assert len(answer) > len("Assistant: ")
    assert leaving == "Human: "
