"""Slovak, which the project does not ship, from English data to a measured model.

One file is added and no code; every step is the command that a user types. The file is a finished
one (`own/sk.toml`), or what `lrm languages add` writes with only the marked values translated.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from drafted import fill
from typer.testing import CliRunner

from lrm_ext.cli import app
from lrm_ext.corpus.store import Corpus
from lrm_ext.instructions import get_instruction

OWN = Path(__file__).parent / "own"
MODELS = Path(__file__).parents[2] / "golden" / "llava" / "model"
SHORT = "\nAnswer the question using a single word or phrase."
# English question and answer, Slovak ones
TEXTS = (
    ("Is there a dog in the picture?" + SHORT, "Yes", "Je na obrázku pes?", "Áno"),
    ("Is there a cat in the picture?" + SHORT, "No", "Je na obrázku mačka?", "Nie"),
    ("What is in the picture?", "A dog.", "Čo je na obrázku?", "Pes."),
    ("What color is the background?" + SHORT, "red", "Akú farbu má pozadie?", "červená"),
)
MIXTURE = "seed = 0\nnon_english_ratio = 1.0\n[languages]\nsk = 1\n"
NUM_ROWS = 12


def lrm(*arguments: str | Path) -> str:
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(params=["a finished file", "lrm languages add"])
def slovak(request, tmp_path, use_folder) -> str:
    if request.param == "a finished file":
        use_folder(OWN)
        return "sk"
    folder = tmp_path / "languages"
    folder.mkdir()
    use_folder(folder)
    lrm("languages", "add", "sk")
    fill(folder / "sk.toml", OWN / "sk.toml")
    use_folder(folder)  # its files are read again
    assert "nothing wrong" in lrm("languages", "check", "sk")
    return "sk"


@pytest.fixture
def workplace(tmp_path, slovak) -> Path:
    """English LLaVA data with pictures, and a table of Slovak translations by people."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        shutil.copyfile(MODELS / f"image{i}.png", images / f"{i}.png")
    rows = []
    for i in range(NUM_ROWS):
        question, answer = TEXTS[i % len(TEXTS)][:2]
        turns = [
            {"from": "human", "value": f"<image>\n{question}"},
            {"from": "gpt", "value": answer},
        ]
        rows.append({"id": f"r{i}", "image": f"{i % 3}.png", "conversations": turns})
    (tmp_path / "en.json").write_text(json.dumps(rows), encoding="utf-8")
    pairs = [(q.split("\n")[0], sk) for q, _, sk, _ in TEXTS]
    pairs += [(a, sk) for _, a, _, sk in TEXTS if a not in ("Yes", "No")]
    table = "".join(f"{english}\t{translated}\n" for english, translated in pairs)
    (tmp_path / "sk.tsv").write_text(table, encoding="utf-8")
    (tmp_path / "mixture.toml").write_text(MIXTURE, encoding="utf-8")
    return tmp_path


@pytest.fixture
def corpus(workplace) -> Path:
    path = workplace / "corpus"
    lrm("corpus", "import", workplace / "en.json", "--images", workplace / "images", "--out", path)
    table = f"table={workplace / 'sk.tsv'}"
    lrm("translate", path, "--to", "sk", "--engine", "memory", "--option", table)
    return path


def test_corpus(corpus):
    opened = Corpus.open(corpus)
    assert opened.languages == ("en", "sk")
    assert opened.statuses("sk")["ok"] == NUM_ROWS
    turns = opened.turns("sk", 0)
    # the request and the short answer are those of the language's file, the rest the table's
    assert [turn.text for turn in turns] == [
        "<image>\nJe na obrázku pes?\nOdpovedzte na otázku jedným slovom alebo slovným spojením.",
        "Áno",
    ]


def test_mixture(corpus, workplace):
    shown = lrm("mixture", "show", "--corpus", corpus, "--mixture", workplace / "mixture.toml")
    line = next(line for line in shown.splitlines() if line.startswith("│ sk "))
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["sk", "4", "4", "4", "12", "50.0 %", f"{NUM_ROWS} of {NUM_ROWS}"]


@pytest.mark.parametrize(
    ("instruction", "asked", "answered"),
    [
        ("mvqa", [], "Áno"),
        (
            "epvqa",
            ["Najprv preložte otázku do angličtiny a potom na ňu odpovedzte po slovensky."],
            "English: Is there a dog in the picture?\nOdpoveď: Áno",
        ),
        ("bvqa", ["Odpovedzte po anglicky."], "Yes"),
    ],
)
def test_sample(corpus, instruction, asked, answered):
    shown = lrm(
        *("sample", "--corpus", corpus, "--lang", "sk", "--instruction", instruction),
        *("--template", "lrm_v1"),
    )
    lines = [line.strip() for line in shown.splitlines()]
    start = lines.index("Je na obrázku pes?")
    assert lines[start + 1 : start + 1 + len(asked)] == asked
    assert lines[start + 1 + len(asked)].startswith("Odpovedzte na otázku jedným slovom")
    answer_lang = "en" if instruction == "bvqa" else "sk"
    assert f"template lrm_v1_{answer_lang} (supervised" in shown
    assert f"[[ {answered}</s>]]" in shown
    if instruction == "epvqa":
        parsed = get_instruction("epvqa").parse(answered, "sk")
        assert (parsed.translation, parsed.answer) == ("Is there a dog in the picture?", "Áno")


def test_eval(workplace):
    """A tiny model with random weights answers; then answers as a Slovak would give them."""
    folder = workplace / "benchmark"
    shutil.copytree(workplace / "images", folder)
    write_benchmark(folder)
    shutil.copytree(MODELS / "tiny-clip", workplace / "tiny-clip")
    shutil.copytree(MODELS / "tiny-llava", workplace / "model")
    for path in (workplace / "model", *(workplace / "model").iterdir()):
        path.chmod(0o755)
    command = ("eval", "--model", workplace / "model", "--benchmarks", "own")
    command += ("--benchmark-dir", folder, "--conv-mode", "lrm_v1", "--device", "cpu")
    command += ("--no-blind", "--max-new-tokens", "4")
    assert "Slovak" in lrm(*command)
    answers = workplace / "model" / "eval" / "predictions" / "own.sk.jsonl"
    assert len(answers.read_text(encoding="utf-8").splitlines()) == len(TEXTS)

    said = {"q0": "Áno, je.", "q1": "Nie je.", "q2": "pes", "q3": "Červená."}
    lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    kept = [{**line, "text": said[line["question_id"]]} for line in lines]
    answers.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    lrm(*command)
    report = json.loads((workplace / "model" / "eval" / "report.json").read_text())
    (result,) = (r for r in report["benchmarks"][0]["languages"] if r["lang"] == "sk")
    assert (result["name"], result["native_name"]) == ("Slovak", "slovenčina")
    assert result["total"]["accuracy"] == 1.0
    assert result["total"]["fidelity"] == 1.0


def write_benchmark(folder: Path) -> None:
    for lang, start in (("en", 0), ("sk", 2)):
        lines = []
        for i, texts in enumerate(TEXTS):
            question, answer = texts[start : start + 2]
            record = {
                "question_id": f"q{i}",
                "image": f"{i % 3}.png",
                "text": question,
                "category": "existence" if i < 2 else "naming",
                "answer": answer.rstrip("."),
                "lang": lang,
                "answer_type": "yesno" if i < 2 else "text",
            }
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        (folder / f"{lang}.jsonl").write_text("".join(lines), encoding="utf-8")
