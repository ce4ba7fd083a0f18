"""The scripts that ask a model: what they write, how they go on, what they refuse."""

import base64
import os
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest

from llava import conversation as conversation_lib
from llava.conversation import conv_templates
from llava.errors import ConfigError, DataError, TemplateError, make_parser
from llava.eval import (
    model_qa,
    model_vqa,
    model_vqa_loader,
    model_vqa_mmbench,
    model_vqa_qbench,
    model_vqa_science,
)
from llava.eval.records import AnswersFile

KEYS = ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
LETTER = "Answer with the option's letter from the given choices directly."


def test_answers_and_their_keys(flags, tmp_path, read_lines):
    model_vqa_loader.main(flags())
    lines = read_lines(tmp_path / "answers" / "a.jsonl")
    assert [list(line) for line in lines] == [KEYS] * 5
    assert [line["question_id"] for line in lines] == [0, 1, 2, 3, 3]
    assert lines[0]["prompt"] == "What?" and lines[0]["metadata"] == {}
    assert {line["model_id"] for line in lines} == {"tiny-llava"}
    assert len({line["answer_id"] for line in lines}) == 5
    assert all(line["text"] == line["text"].strip() != "" for line in lines)


def test_batch_size_changes_no_answer(flags, tmp_path):
    model_vqa.main(flags())
    model_vqa.main(flags(batch_size=16, answers_file=tmp_path / "b.jsonl"))
    one_by_one = (tmp_path / "answers" / "a.jsonl").read_bytes()
    assert (tmp_path / "b.jsonl").read_bytes() == one_by_one


def test_chunks_make_up_the_whole(flags, tmp_path, fake_answerer):
    model_vqa.main(flags())
    texts = list(fake_answerer.asked)
    fake_answerer.asked.clear()
    for i in range(4):  # chunks of two: the last one is empty
        model_vqa.main(flags(num_chunks=4, chunk_idx=i, answers_file=tmp_path / f"{i}.jsonl"))
    assert fake_answerer.asked == texts
    assert [len((tmp_path / f"{i}.jsonl").read_text().splitlines()) for i in range(4)] == [
        2, 2, 1, 0,
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="chunk 4 of 4"):
        model_vqa.main(flags(num_chunks=4, chunk_idx=4))


@pytest.mark.parametrize("num_before", [0, 2, 4])
def test_killed_and_run_again(flags, tmp_path, fake_answerer, monkeypatch, num_before):
    model_vqa.main(flags(answers_file=tmp_path / "whole.jsonl"))
    fake_answerer.asked.clear()
    path = tmp_path / "cut.jsonl"
    pid = os.fork()
    if pid == 0:
        written = 0

        def write_then_die(answers, record):
            nonlocal written
            line = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)[written]
            if written == num_before:
                with path.open("ab") as file:
                    file.write(line[: len(line) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            written += 1
            answers._file.write(line)
            answers._file.flush()

        try:
            monkeypatch.setattr(AnswersFile, "write", write_then_die)
            model_vqa.main(flags(answers_file=path))
        finally:  # whatever went wrong, there must be no second test session
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    model_vqa.main(flags(answers_file=path))
    assert len(fake_answerer.asked) == 5 - num_before
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_finished_run_loads_no_model(flags, monkeypatch, fake_answerer, tmp_path):
    model_vqa.main(flags())
    before = (tmp_path / "answers" / "a.jsonl").read_bytes()
    monkeypatch.setattr(model_vqa, "load_answerer", lambda *args: pytest.fail("loaded"))
    model_vqa.main(flags())
    assert (tmp_path / "answers" / "a.jsonl").read_bytes() == before


def test_answers_of_another_run(flags, fake_answerer, tmp_path):
    model_vqa.main(flags())
    with pytest.raises(SystemExit, match=r"of another run \(temperature was 0.0 and is 0.5\)"):
        model_vqa.main(flags(temperature=0.5))
    model_vqa.main(flags("--fresh", temperature=0.5))
    assert len(fake_answerer.asked) == 10
    (tmp_path / "answers" / "a.jsonl.run.json").unlink()
    with pytest.raises(SystemExit, match="no a.jsonl.run.json says what made them"):
        model_vqa.main(flags(temperature=0.5))


def test_another_model_of_the_same_name(flags, fake_answerer, models, tmp_path):
    shutil.copytree(models / "tiny-llava", tmp_path / "m", copy_function=shutil.copyfile)
    model_vqa.main(flags(model_path=tmp_path / "m"))
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(SystemExit, match="of another run .checkpoint_sha256 was"):
        model_vqa.main(flags(model_path=tmp_path / "m"))


def test_edited_answers(flags, fake_answerer, tmp_path):
    model_vqa.main(flags())
    path = tmp_path / "answers" / "a.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[2]]))
    with pytest.raises(SystemExit, match="a.jsonl:2: answer to question 2, expected question 1"):
        model_vqa.main(flags())
    path.write_text("".join([*lines, lines[0]]))
    with pytest.raises(SystemExit, match="a.jsonl:6: more answers than the 5 questions"):
        model_vqa.main(flags())
    path.write_text(lines[0] + "half a li\n" + lines[2])
    with pytest.raises(SystemExit, match="a.jsonl:2: not JSON"):
        model_vqa.main(flags())


def test_two_writers(tmp_path):
    with AnswersFile(tmp_path / "a.jsonl", {}), pytest.raises(ConfigError, match="another process"):
        AnswersFile(tmp_path / "a.jsonl", {})


def test_prompt_longer_than_the_context(flags, write_lines, tmp_path, read_lines):
    texts = ["What?", "word " * 200, "Never asked."]
    records = [
        {"question_id": f"q{i}", "image": "image0.png", "text": text}
        for i, text in enumerate(texts)
    ]
    path = write_lines("long.jsonl", records)
    message = r"long.jsonl:2: question q1: the prompt takes \d+ positions .* context is 256"
    with pytest.raises(SystemExit, match=message):
        model_vqa.main(flags(question_file=path, batch_size=3))
    lines = read_lines(tmp_path / "answers" / "a.jsonl")
    assert [line["question_id"] for line in lines] == ["q0"]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("../image0.png", "leads out of the image folder"),
        ("/etc/passwd", "leads out of the image folder"),
        ("http://host/a.png", "is a URL, and none is fetched"),
        ("none.png", r"1 images are missing: .*none.png \(.*q.jsonl:1\); check --image-folder"),
        (5, "expected a path"),
    ],
)
def test_pictures_that_are_refused(flags, write_lines, image, message):
    path = write_lines("q.jsonl", [{"question_id": 1, "image": image, "text": "Q"}])
    with pytest.raises(SystemExit, match=message):
        model_vqa.main(flags(question_file=path))


def test_a_picture_that_is_none(flags, write_lines, tmp_path):
    (tmp_path / "a.png").write_text("text")
    path = write_lines("q.jsonl", [{"question_id": 7, "image": "a.png", "text": "Q"}])
    with pytest.raises(SystemExit, match="q.jsonl:1: question 7: .*a.png: the image"):
        model_vqa.main(flags(question_file=path, image_folder=tmp_path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": 1, "image": "a.png"}', "bad.jsonl:2: no key 'text'; found: question_id"),
        ('{"question_id": 1, "image": "a.png", "text": 3}', "bad.jsonl:2: 'text' is 3"),
        ("nonsense", "bad.jsonl:2: not JSON"),
        ("[1]", "bad.jsonl:2: expected a JSON object, found list"),
    ],
)
def test_question_files_that_are_refused(flags, tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(SystemExit, match=message):
        model_vqa.main(flags(question_file=path))


def test_flags_that_cannot_be(flags):
    for flag, value in (("batch_size", 0), ("max_new_tokens", 0), ("temperature", -1)):
        with pytest.raises(SystemExit, match=f"--{flag.split('_')[0]}.* is {value}"):
            model_vqa.main(flags(**{flag: value}))
    with pytest.raises(SystemExit, match="Unknown conversation template"):
        model_vqa.main(flags(conv_mode="vicuna_v11"))


def test_defaults():
    for module, tokens in ((model_vqa, 1024), (model_vqa_loader, 128), (model_vqa_science, 1024)):
        args = make_parser("", *module.SCRIPT.flags()).parse_args([])
        assert (args.model_path, args.model_base) == ("facebook/opt-350m", None)
        assert (args.image_folder, args.answers_file) == ("", "answer.jsonl")
        assert (args.num_chunks, args.chunk_idx) == (1, 0)
        assert (args.temperature, args.top_p, args.num_beams) == (0.2, None, 1)
        assert args.max_new_tokens == tokens


def test_choice_of_template():
    script, own = model_vqa_loader.SCRIPT, SimpleNamespace(conversation="chatml_direct")
    choose = model_vqa.choose_conversation
    assert choose(script, SimpleNamespace(), "m", None).system.startswith(
        "A chat between a curious h"
    )
    assert choose(script, own, "m", None).version == "mpt"
    assert choose(script, own, "m", "llava_llama_2").version == "llama_v2"
    assert choose(script, SimpleNamespace(), "m-plain", "v1").version == "v1_mmtag"
    assert choose(script, SimpleNamespace(), "m-plain-finetune", "v1").version == "v1"
    assert choose(model_vqa.SCRIPT, SimpleNamespace(), "m-plain", "v1").version == "v1"
    with pytest.raises(TemplateError, match="Choose one of"):
        choose(script, SimpleNamespace(), "m-plain", None)


def test_model_qa_asks_with_the_assigned_default_template(monkeypatch):
    monkeypatch.setattr(conversation_lib, "default_conversation", conv_templates["llava_llama_2"])
    chosen = model_vqa.choose_conversation(model_qa.SCRIPT, SimpleNamespace(), "m", None)
    assert chosen.version == "llama_v2" and chosen.messages == []


@pytest.fixture
def mmbench(models, tmp_path):
    image = base64.b64encode((models / "image0.png").read_bytes()).decode()
    rows = [
        "index\tquestion\thint\tA\tB\tC\tD\timage",
        f"7\tWhich?\tLook.\tred\tgreen\tblue\tNone\t{image}",
        "1000007\tWho?\tnan\tHe\tShe\t\tThey\t7",
    ]
    path = tmp_path / "mmbench.tsv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_mmbench(flags, mmbench, fake_answerer, tmp_path, read_lines):
    model_vqa_mmbench.main(flags("--single-pred-prompt", question_file=mmbench))
    prompt = "Look.\nWhich?\nA. red\nB. green\nC. blue"
    assert fake_answerer.asked == [f"{prompt}\n{LETTER}", f"Who?\nA. He\nB. She\n{LETTER}"]
    first, second = read_lines(tmp_path / "answers" / "a.jsonl")
    assert set(first) == {*KEYS, "round_id", "options", "option_char"}
    assert (first["question_id"], first["prompt"]) == (7, prompt)
    assert (second["question_id"], second["options"]) == (1000007, ["He", "She"])


def test_mmbench_with_more_than_four_options(flags, mmbench, fake_answerer, tmp_path, read_lines):
    head, row, _ = mmbench.read_text(encoding="utf-8").splitlines()
    lines = [head + "\tE\tF", row.replace("\tNone\t", "\tgrey\t") + "\tpink\tnone of these"]
    mmbench.write_text("\n".join(lines) + "\n", encoding="utf-8")
    model_vqa_mmbench.main(flags(question_file=mmbench))
    assert fake_answerer.asked[0].endswith("D. grey\nE. pink\nF. none of these")
    (line,) = read_lines(tmp_path / "answers" / "a.jsonl")
    assert line["option_char"] == list("ABCDEF")


def test_mmbench_rounds(flags, mmbench, fake_answerer, tmp_path, read_lines):
    model_vqa_mmbench.main(
        flags("--all-rounds", "--single-pred-prompt", question_file=mmbench, lang="cn")
    )
    lines = read_lines(tmp_path / "answers" / "a.jsonl")
    assert [(line["question_id"], line["round_id"]) for line in lines] == [
        (7, 0), (7, 1), (7, 2), (1000007, 0), (1000007, 1),
    ]  # fmt: skip
    assert lines[1]["options"] == ["green", "blue", "red"]
    assert lines[1]["option_char"] == ["B", "C", "A"]
    assert fake_answerer.asked[1].endswith("A. green\nB. blue\nC. red\n请直接回答选项字母。")


def test_mmbench_keeps_rounds_together(flags, mmbench, fake_answerer, tmp_path, read_lines):
    generator_flags = flags("--all-rounds", question_file=mmbench, num_chunks=2, chunk_idx=1)
    model_vqa_mmbench.main(generator_flags)
    lines = read_lines(tmp_path / "answers" / "a.jsonl")
    assert [(line["question_id"], line["round_id"]) for line in lines] == [
        (1000007, 0), (1000007, 1),
    ]  # fmt: skip


def test_mmbench_with_a_model(flags, mmbench, tmp_path, read_lines):
    model_vqa_mmbench.main(flags("--all-rounds", question_file=mmbench, batch_size=2))
    assert all(line["text"] for line in read_lines(tmp_path / "answers" / "a.jsonl"))
    mmbench.write_text("index\tquestion\tA\timage\n1\tQ\tyes\n")
    with pytest.raises(SystemExit, match="mmbench.tsv:2: 3 cells, but the header names 4"):
        model_vqa_mmbench.main(flags(question_file=mmbench))
    mmbench.write_text("index\tquestion\tA\timage\n1\tQ\t\tx\n")
    with pytest.raises(SystemExit, match="mmbench.tsv:2: row 1 has no option A"):
        model_vqa_mmbench.main(flags(question_file=mmbench))
    mmbench.write_text("")
    with pytest.raises(SystemExit, match="mmbench.tsv: no rows; expected a header"):
        model_vqa_mmbench.main(flags(question_file=mmbench))


@pytest.fixture
def science(write_json):
    turns = [{"from": "human", "value": "Q1\n<image>"}, {"from": "gpt", "value": "A"}]
    alone = [{"from": "human", "value": "Which is bigger, and why is it?"}]
    return write_json(
        "sqa.json",
        [
            {"id": "3", "image": "image1.png", "conversations": turns},
            {"id": "4", "conversations": alone},
        ],
    )


def test_science(flags, science, tmp_path, read_lines):
    switches = ("--single-pred-prompt", "--answer-prompter")
    model_vqa_science.main(flags(*switches, question_file=science))
    path = tmp_path / "answers" / "a.jsonl"
    first, second = read_lines(path)
    assert first["prompt"] == f"<image>\nQ1\n{LETTER}"
    assert second["prompt"] == f"Which is bigger, and why is it?\n{LETTER}"
    together = tmp_path / "together.jsonl"
    model_vqa_science.main(
        flags(*switches, question_file=science, answers_file=together, batch_size=2)
    )
    assert together.read_bytes() == path.read_bytes()


def test_qbench(flags, write_json, fake_answerer, tmp_path, read_lines):
    record = {"img_path": "image0.png", "question": "How sharp?", "candidates": ["Very", "Not"]}
    path = write_json("qbench.json", [record])
    words = flags(questions_file=path, question_file=None)
    model_vqa_qbench.main(words)
    (line,) = read_lines(tmp_path / "answers" / "a.jsonl")
    assert line["prompt"] == f"How sharp?\nA. Very\nB. Not\n{LETTER}"
    assert (line["question_id"], line["options"]) == (0, ["Very", "Not"])
    model_vqa_qbench.main([*words, "--fresh", "--lang", "zh"])
    assert fake_answerer.asked[-1].endswith("请直接回答选项字母。")


@pytest.fixture
def text_model(models, tmp_path):
    """Make a language model with a context of some length; return its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(context_len):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=2000,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=context_len,
        )
        LlamaForCausalLM(config).save_pretrained(tmp_path / "text")
        for path in (models / "tiny-llava").glob("*token*"):
            shutil.copyfile(path, tmp_path / "text" / path.name)
        return str(tmp_path / "text")

    return make


def test_model_qa(text_model, questions, tmp_path, fake_answerer, read_lines):
    answers = tmp_path / "a.jsonl"
    flags = ["--model-name", text_model(64), "--answers-file", str(answers), "--device", "cpu"]
    model_qa.main([*flags, "--question-file", str(questions)])
    assert [line["text"] for line in read_lines(answers)][:1] == ["WHAT?"]


def test_text_only_model(text_model, questions, models):
    sampling = model_vqa.Sampling(0, None, 1, 4)

    def load(context_len):
        names = {"model_path": text_model(context_len), "model_base": None, "conv_mode": None}
        args = SimpleNamespace(**names, device="cpu")
        return model_vqa.load_answerer(model_qa.SCRIPT, args, "text", sampling)

    pictured = model_vqa.read_questions(str(questions), str(models))
    with pytest.raises(DataError, match="question 0: the model is text-only"):
        list(load(256).answer(pictured, 2))
    asked = [replace(question, image=None) for question in pictured]
    answers = [text for _, text in load(256).answer(asked, 5)]
    assert answers == [text for _, text in load(256).answer(asked, 1)]
    assert all(answers) and not any("ASSISTANT" in text for text in answers)
    message = r"question 0: the prompt takes \d+ tokens, but the model's context is 64"
    with pytest.raises(DataError, match=message):
        list(load(64).answer(asked, 2))
