"""The scripts that turn answers, benchmarks and checkpoints into other files."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from llava.eval import eval_mme

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "eval" / "llava_scorers.json"


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(monkeypatch):
    """Run a script: `run("convert_gqa_for_eval", src=..., dst=...)`."""
    monkeypatch.syspath_prepend(ROOT / "scripts")  # where Python looks first for a script

    def run_script(name, *words, **flags):
        pairs = [(f"--{flag.replace('_', '-')}", str(value)) for flag, value in flags.items()]
        load(name).main([*words, *(word for pair in pairs for word in pair)])

    return run_script


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_sheet(path):
    openpyxl = pytest.importorskip("openpyxl")
    rows = list(openpyxl.load_workbook(path).active.iter_rows())
    return [{c.coordinate: (c.data_type, c.value) for c in row if c.value is not None}
            for row in rows]  # fmt: skip


def answers(*texts, first=0):
    return [{"question_id": first + i, "text": text} for i, text in enumerate(texts)]


def test_gqa(run, write_lines, tmp_path):
    run(
        "convert_gqa_for_eval",
        src=write_lines("a.jsonl", answers("Yes.", "Red")),
        dst=tmp_path / "p",
    )
    assert read_json(tmp_path / "p") == [
        {"questionId": 0, "prediction": "yes"},
        {"questionId": 1, "prediction": "red"},
    ]


def test_mmvet(run, write_lines, tmp_path):
    source = write_lines("a.jsonl", answers("A cat.", "é"))
    run("convert_mmvet_for_eval", src=source, dst=tmp_path / "p")
    assert read_json(tmp_path / "p") == {"v1_0": "A cat.", "v1_1": "é"}
    source = write_lines("a.jsonl", [*answers("A cat."), *answers("A dog.")])
    with pytest.raises(SystemExit, match="a.jsonl:2: question 0 has a second, different answer"):
        run("convert_mmvet_for_eval", src=source, dst=tmp_path / "p")


def test_vqav2(run, write_lines, tmp_path):
    write_lines("llava_vqav2_mscoco_test2015.jsonl", [{"question_id": i} for i in range(3)])
    write_lines("answers/test-dev/m/merge.jsonl", answers("The two", first=1))
    run("convert_vqav2_for_submission", dir=tmp_path, ckpt="m", split="test-dev")
    assert read_json(tmp_path / "answers_upload/test-dev/m.json") == [
        {"question_id": 0, "answer": ""},
        {"question_id": 1, "answer": "2"},
        {"question_id": 2, "answer": ""},
    ]
    write_lines("answers/test-dev/m/merge.jsonl", answers("x", first=9))
    with pytest.raises(SystemExit, match="1 answers have no question"):
        run("convert_vqav2_for_submission", dir=tmp_path, ckpt="m", split="test-dev")


def test_vizwiz(run, write_lines, tmp_path):
    flags = {
        "annotation_file": write_lines("q.jsonl", [{"question_id": 0, "image": "a.jpg"}]),
        "result_upload_file": tmp_path / "up" / "u.json",
    }
    run("convert_vizwiz_for_submission", **flags, result_file=write_lines("a", answers("A Cup.")))
    assert read_json(tmp_path / "up" / "u.json") == [{"image": "a.jpg", "answer": "cup"}]
    with pytest.raises(SystemExit, match="1 questions have no answer: 0"):
        run("convert_vizwiz_for_submission", **flags, result_file=write_lines("a", []))


def test_mmbench(run, write_lines, tmp_path):
    table = tmp_path / "t.tsv"
    table.write_text(
        "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tsplit\n"
        "5\t=Q\th\ta\tb\t\t\tA\tc\tx\ts\tl\tdev\n"
    )
    flags = {"annotation_file": table, "result_dir": tmp_path, "upload_dir": tmp_path / "u"}
    write_lines("e.jsonl", answers("A & <B>\x01", first=5))
    run("convert_mmbench_for_submission", **flags, experiment="e")
    header, row = read_sheet(tmp_path / "u" / "e.xlsx")
    assert [text for _, text in header.values()] == [
        "index", "question", "A", "B", "C", "D", "prediction", "answer", "split",
    ]  # fmt: skip
    assert row["A2"] == ("n", 5) and row["B2"] == ("s", "=Q")
    assert row["G2"] == ("s", "A & <B>") and "E2" not in row
    write_lines("f.jsonl", [])
    with pytest.raises(SystemExit, match="1 rows have no answer: 5; complete .*f.jsonl"):
        run("convert_mmbench_for_submission", **flags, experiment="f")


def test_wide_sheet_and_long_cell(tmp_path, caplog):
    write_xlsx = load("convert_mmbench_for_submission").write_xlsx
    write_xlsx(tmp_path / "x.xlsx", [[f"c{i}" for i in range(28)], ["x" * 40000]])
    assert "cell A2: cut from 40000 to 32767" in caplog.text
    header, row = read_sheet(tmp_path / "x.xlsx")
    assert list(header)[25:] == ["Z1", "AA1", "AB1"]
    assert len(row["A2"][1]) == 32767


def test_a_sheet_without_openpyxl(run, write_lines, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "t.tsv").write_text("index\tA\n5\ta\n")
    write_lines("e.jsonl", answers("A", first=5))
    flags = {"annotation_file": tmp_path / "t.tsv", "result_dir": tmp_path, "upload_dir": tmp_path}
    with pytest.raises(SystemExit, match=r"pip install 'lrm-llava\[excel\]'"):
        run("convert_mmbench_for_submission", **flags, experiment="e")


@pytest.fixture
def mme(tmp_path, write_lines):
    """The golden items as the benchmark's folder and an answers file."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))["mme"]
    answers, with_folder = [], ("artwork", "celebrity", "landmark", "posters", "scene")
    for item in golden["items"]:
        category, name = item["question_id"].split("/")
        folder = tmp_path / "MME_Benchmark_release_version" / category
        if category in with_folder:
            folder, name = folder / "questions_answers_YN", f"images/{name}"
        folder.mkdir(parents=True, exist_ok=True)
        question = f"Is it {item['answer']}?"
        with (folder / Path(name).with_suffix(".txt").name).open("a") as file:
            file.write(f"{question}  Please answer yes or no.\t{item['answer']}\n")
        prompt = f"{question}\nAnswer the question using a single word or phrase."
        # the rule of the golden values reads single letters, too
        text = {"Y": "Yes", "n": "no"}.get(item["prediction"], item["prediction"])
        answers.append({"question_id": f"{category}/{name}", "prompt": prompt, "text": text})
    return golden, answers, lambda: write_lines("answers/m.jsonl", answers)


def test_mme(run, mme, tmp_path, capsys):
    golden, answers, write = mme
    answers.reverse()
    write()
    run("convert_answer_to_mme", data_dir=tmp_path, experiment="m")
    folder = tmp_path / "eval_tool" / "answers" / "m"
    lines = (folder / "existence.txt").read_text().splitlines()
    assert lines[0] == "0.png\tIs it Yes? Please answer yes or no.\tYes\tyes."
    assert lines[1].startswith("0.png\tIs it No? Please answer yes or no.\tNo\t")
    assert eval_mme.score_folder(str(folder)) == pytest.approx(golden["per_category"], abs=1e-9)
    eval_mme.main(["--results_dir", str(folder)])
    totals = [
        float(line.split()[-1])
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("total")
    ]
    assert totals == pytest.approx([golden["perception"], golden["cognition"]], abs=1e-9)


def test_mme_reads_answers_as_the_official_tool():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))["mme_parse"]
    for case in golden:
        label = "other" if case["pred"] in ("Y", "n") else case["label"]
        assert eval_mme.parse_answer(case["pred"]) == label, case
    for text, label in (("Eyes", "yes"), ("know", "no"), (" Yes", "yes"), ("  Yes", "other")):
        assert eval_mme.parse_answer(text) == label


def test_mme_refuses(run, mme, tmp_path):
    _, answers, write = mme
    kept = answers.pop()
    write()
    with pytest.raises(
        SystemExit, match=r"1 questions have no answer: \('code_reasoning', '.*'Is it"
    ):
        run("convert_answer_to_mme", data_dir=tmp_path, experiment="m")
    answers.append({**kept, "prompt": "Is it so?"})
    path = write()
    message = f"{path}:112: the benchmark has no question 'Is it so.' about code_reasoning/"
    with pytest.raises(SystemExit, match=message):
        run("convert_answer_to_mme", data_dir=tmp_path, experiment="m")
    (tmp_path / "existence.txt").write_text("a\tq\tYes\tYes\n")
    with pytest.raises(SystemExit, match="existence.txt: a has 1 questions; expected 2"):
        eval_mme.main(["--results_dir", str(tmp_path)])
    (tmp_path / "existence.txt").write_text("a\tq\tyes\tYes\n")
    with pytest.raises(SystemExit, match="existence.txt:1: expected image"):
        eval_mme.main(["--results_dir", str(tmp_path)])


@pytest.fixture
def seed(write_json, write_lines):
    """The golden items as files."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))["seed"]
    types = {name: i for i, name in enumerate(golden["per_dimension"], 1)}
    questions = [
        {
            "question_id": item["question_id"],
            "answer": item["answer"],
            "question_type_id": types[item["data_type"]],
            "data_type": "image",
        }
        for item in golden["items"]
    ]
    video = {"question_id": "v1", "answer": "A", "question_type_id": 1, "data_type": "video"}
    content = {"questions": [*questions, video], "question_type": types}
    results = [
        {"question_id": int(item["question_id"]), "text": item["prediction"]}
        for item in golden["items"]
    ]
    return {"annotation_file": write_json("seed.json", content)}, results, write_lines


def test_seed(run, seed, tmp_path, capsys):
    flags, results, write_lines = seed
    flags["result_upload_file"] = tmp_path / "u" / "u.jsonl"
    run("convert_seed_for_submission", **flags, result_file=write_lines("a", results))
    out = capsys.readouterr().out.splitlines()
    assert "Total accuracy: 7.50%" in out and out[-1] == "image accuracy: 7.50%"
    lines = [json.loads(line) for line in flags["result_upload_file"].read_text().splitlines()]
    assert lines[0] == {"question_id": "0", "prediction": "A"} and len(lines) == 40
    results.append({"question_id": "v1", "text": "A"})
    run("convert_seed_for_submission", **flags, result_file=write_lines("a", results))
    assert capsys.readouterr().out.splitlines()[-1] == "video accuracy: 100.00%"
    with pytest.raises(SystemExit, match="1 questions have no answer: 39"):
        kept = [result for result in results if result["question_id"] != 39]
        run("convert_seed_for_submission", **flags, result_file=write_lines("a", kept))
    with pytest.raises(SystemExit, match="1 answers have no question"):
        results.append({"question_id": 77, "text": "A"})
        run("convert_seed_for_submission", **flags, result_file=write_lines("a", results))


@pytest.fixture
def science_dir(write_json, tmp_path):
    problem = {
        "question": "Which?",
        "choices": ["x", "y"],
        "answer": 1,
        "hint": "Look.",
        "image": "image.png",
        "lecture": "One.\nTwo.",
        "solution": "So.",
    }
    plain = {**problem, "hint": "", "image": None, "lecture": ""}
    write_json("sqa/problems.json", {"3": problem, "4": plain})
    write_json("sqa/pid_splits.json", {"test": ["3", "4"]})
    return tmp_path / "sqa"


def test_science_qa(run, science_dir):
    run("convert_sqa_to_llava", "convert_to_llava", base_dir=science_dir, split="test")
    first, second = read_json(science_dir / "llava_test_QCM-LEA.json")
    question = "Question: Which?\nContext: Look.\nOptions: (A) x (B) y"
    assert first == {
        "id": "3",
        "image": "3/image.png",
        "conversations": [
            {"from": "human", "value": f"{question}\n<image>"},
            {"from": "gpt", "value": "One. Two. So. The answer is B."},
        ],
    }
    assert "image" not in second
    assert second["conversations"][0]["value"] == question.replace("Look.", "N/A")
    run("convert_sqa_to_llava", "convert_to_jsonl", base_dir=science_dir, split="test")
    lines = (science_dir / "llava_test_QCM-LEPA.jsonl").read_text().splitlines()
    values = [json.loads(line)["conversations"][1]["value"] for line in lines]
    assert values == ["One. Two. So.\nThe answer is B.", "So.\nThe answer is B."]
    with pytest.raises(SystemExit, match="unknown format 'QCM-X'"):
        words = {"base_dir": science_dir, "split": "test", "prompt_format": "QCM-X"}
        run("convert_sqa_to_llava", "convert_to_llava", **words)


@pytest.mark.parametrize(
    ("prompt_format", "question", "answer"),
    [
        ("CQM-A", "Context: c\nQuestion: q\nOptions: (A) x (B) y", "The answer is A."),
        (
            "QCMLE-AEL",
            "Question: q\nContext: c\nOptions: (A) x (B) y\nl\ne",
            "The answer is A. e l",
        ),
        ("QCLM-LA", "Question: q\nContext: c\nl\nOptions: (A) x (B) y", "l The answer is A."),
    ],
)
def test_science_qa_formats(run, prompt_format, question, answer):
    module = load("convert_sqa_to_llava_base_prompt")
    problem = {"question": "q", "choices": ["x", "y"], "answer": 0}
    problem |= {"hint": "c", "lecture": "l", "solution": "e"}
    prompts = module.build_prompt({"1": problem}, ["1"], prompt_format)
    assert prompts == {"1": (question, answer)}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_extract_mm_projector(run, models, tmp_path, suffix):
    from safetensors.torch import load_file

    weights = load_file(models / "tiny-llava" / "model.safetensors")
    folder = models / "tiny-llava"
    if suffix == "bin":
        folder = tmp_path / "m"
        folder.mkdir()
        torch.save(weights, folder / "pytorch_model.bin")
    run("extract_mm_projector", model_path=folder, output=tmp_path / "out" / "p.bin")
    found = torch.load(tmp_path / "out" / "p.bin", weights_only=True)
    assert found.keys() == {name for name in weights if "mm_projector" in name} != set()
    assert all(torch.equal(found[name], weights[name]) for name in found)


def test_extract_from_a_model_without_a_projector(run, tmp_path):
    torch.save({"lm_head.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(SystemExit, match="no weights named mm_projector"):
        run("extract_mm_projector", model_path=tmp_path, output=tmp_path / "p.bin")


def test_merge_lora_weights(run, models, tmp_path):
    import peft

    from llava.model import LlavaLlamaForCausalLM

    model = LlavaLlamaForCausalLM.from_pretrained(models / "tiny-llava")
    before = model.model.layers[0].self_attn.q_proj.weight.clone()
    config = peft.LoraConfig(r=2, target_modules=r"model\.layers\..*q_proj", task_type="CAUSAL_LM")
    lora = peft.get_peft_model(model, config)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.1)
    folder, merged = tmp_path / "tiny-llava-lora", tmp_path / "merged"
    lora.save_pretrained(folder)
    model.config.mm_vision_tower = str(models / "tiny-clip")
    model.config.save_pretrained(folder)
    flags = {"model_path": folder, "model_base": models / "tiny-llava"}
    run("merge_lora_weights", **flags, save_model_path=merged)
    after = LlavaLlamaForCausalLM.from_pretrained(merged)
    weight = after.model.layers[0].self_attn.q_proj.weight
    wanted = lora.merge_and_unload().model.layers[0].self_attn.q_proj.weight
    assert torch.allclose(weight.float(), wanted, atol=1e-3)
    assert not torch.allclose(weight.float(), before, atol=1e-3)
    assert (merged / "tokenizer.model").is_file()
    assert json.loads((merged / "config.json").read_text())["rope_theta"] == 10000.0
