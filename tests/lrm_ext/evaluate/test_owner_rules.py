"""Mode `official` reads answers by the rules of a set's owner, and says so everywhere."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import official_files as files
import pytest
from test_judging import JudgeService
from test_sets import write_pictures
from toy_benchmark import FakeAnswerer

from llava.errors import ConfigError, DataError
from llava.files import load_toml
from lrm_ext.evaluate.compare import compare_runs, comparison_table
from lrm_ext.evaluate.importing import import_benchmark, kind_of
from lrm_ext.evaluate.inspecting import load_runs
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.judging import JudgeConfig, ModelJudge
from lrm_ext.evaluate.kinds import find_kind
from lrm_ext.evaluate.mapping import load_mapping
from lrm_ext.evaluate.metrics import RULES, bleu_and_rouge, caption_tokens, cider, guess, pick_mmmu
from lrm_ext.evaluate.registry import get_benchmark
from lrm_ext.evaluate.report import score_run
from lrm_ext.evaluate.runner import run_evaluation
from lrm_ext.evaluate.scoring import score_benchmark, score_file
from lrm_ext.languages import get_language
from lrm_ext.report.evaluation import print_report, print_score, write_report
from lrm_ext.report.settings import Setting, score_settings

OWNERS = load_toml(Path(__file__).parents[2] / "golden" / "eval" / "owners.toml")


def item_of(case, options, key):
    given = {"answer": case.get("golds", ["A"])[0], "answer_type": "text"}
    if "golds" in case:
        given["answers"] = tuple(case["golds"])
    else:
        given |= {"answer_type": "letter", "options": tuple(options)}
    return Item(key, "1.png", "?", "c", lang="en", **given)


@pytest.mark.parametrize("name", [name for name in OWNERS if name != "captions"])
def test_owners_verdicts(name):
    kind, block = find_kind(f"answers:{name}"), OWNERS[name]
    for number, case in enumerate(block["cases"]):
        key = case.get("key", str(number))
        item = item_of(case, block.get("options", ()), key)
        report = score_benchmark(kind, [item], {key: case["text"]}, lang="en", mode="official")
        (verdict,) = report.verdicts
        if "letter" in case:
            read = "" if verdict.parsed == "other" else verdict.parsed
            expected = (case["letter"], case.get("guessed", False))
            assert (read, verdict.guessed) == expected, case
        else:
            assert report.headline == pytest.approx(100 * case["score"]), case


def test_every_rule_has_golden_cases():
    assert RULES.keys() - {"cider"} == OWNERS.keys() - {"captions"}
    assert all(block["owner"] and block["says"] for block in OWNERS.values())


def test_guesses_depend_on_seed_and_question_alone():
    options = dict(zip("ABCD", "wxyz", strict=True))
    keys = [str(number) for number in range(2000)]
    by_key = {key: pick_mmmu("", options, key).letter for key in keys}
    assert by_key == {key: pick_mmmu("", options, key).letter for key in reversed(keys)}
    counts = [list(by_key.values()).count(letter) for letter in "ABCD"]
    assert min(counts) > 420, "each is a quarter of them"
    assert [guess("ABCD", key, 7) for key in keys] != list(by_key.values())


def test_guesses_and_format_errors_are_counted(console):
    items = [
        dataclasses.replace(item_of({}, "wxyz", f"q{n}"), image=f"{n}.png", answer=letter)
        for n, letter in enumerate("ABBA")
    ]
    texts = {"q0": "(A)", "q1": "?", "q2": "?", "q3": "(B)"}
    report = score_benchmark(
        find_kind("answers:mmmu"), items, texts, lang="en", mode="official"
    ).to_json()
    # q1 is guessed as A, q2 as B
    assert (report["headline"], report["counts"]["guessed"], report["seed"]) == (50, 2, 42)
    assert (report["accuracy_of_read"], report["format_error_share"]) == (0.5, 0.5)
    print_score(report, console)
    text = console.file.getvalue()
    assert (
        "read as official" in text and "rule of the set's owner: mmmu, seed of guesses 42" in text
    )
    assert "2 of 4 questions where nothing could be read and the owner's rule guesses" in text
    own = score_benchmark(find_kind("answers:mmmu"), items, texts, lang="en")
    assert (own.mode, own.headline, own.counts["unparsed"]) == ("local", 25, 2)
    unread = score_benchmark(
        find_kind("answers:kaleidoscope"), items, texts, lang="en", mode="official"
    )
    assert unread.details["format_error_share"] == 0.5


@pytest.fixture
def no_coco(monkeypatch):
    for name in ("pycocoevalcap", *(n for n in sys.modules if n.startswith("pycocoevalcap."))):
        monkeypatch.setitem(sys.modules, name, None)


def test_an_exact_match_stands_beside_the_relaxed_one(no_coco):
    items = [item_of({"golds": ["red", "rouge"]}, (), str(n)) for n in range(4)]
    texts = {"0": "Rouge", "1": "rouge", "2": "rouge vif", "3": "bleu"}
    report = score_benchmark(find_kind("answers:relaxed"), items, texts, lang="fr", mode="official")
    assert (report.headline, report.headline_name) == (75, "relaxed accuracy")
    assert report.details["exact_match"] == 0.25 and report.details["rule"] == "relaxed"
    assert "cider" not in report.details, "its package is missing"
    assert report.interval()["method"] == "wilson"


def test_graded_scores_are_means():
    items = [item_of({"golds": ["hello"]}, (), str(n)) for n in range(2)]
    kind = find_kind("answers:anls")
    texts = {"0": "helo", "1": "x"}
    report = score_benchmark(kind, items, texts, lang="en", mode="official")
    assert report.headline == pytest.approx(40) and report.interval()["method"] == "bootstrap"
    assert report.right_by_question == {"0": True, "1": False}


def test_what_cannot_be_read_by_a_rule():
    with pytest.raises(ConfigError, match="cannot be scored in mode official: no rule of an owner"):
        find_kind("answers").mode_for("en", "official")
    with pytest.raises(ConfigError, match="cannot be scored in mode official"):
        kind_of("pangeabench-cvqa").mode_for("es", "official")
    for name in ("answers:colour", "answers:cider", "captions:exact", "pope:exact"):
        with pytest.raises(ConfigError, match="has no such rule of an owner; choose from"):
            find_kind(name)
    for item in (item_of({"golds": ["x"]}, (), "0"), item_of({}, (), "0")):
        with pytest.raises(
            DataError, match="question 0: rule m3exam of the set's owner reads lette"
        ):
            score_benchmark(
                find_kind("answers:m3exam"), [item], {"0": "x"}, lang="en", mode="official"
            )
    with pytest.raises(DataError, match="3 reference answers; expected 10"):
        score_benchmark(
            find_kind("answers:vqa"), [item_of({"golds": ["x", "y", "z"]}, (), "0")], {"0": "x"},
            lang="en", mode="official",
        )  # fmt: skip


class Verbose(FakeAnswerer):
    """Answers in a sentence."""

    def _text(self, request):
        return "I see a dog now"


@pytest.fixture
def imported(config, tmp_path, monkeypatch):
    """Import a set whose owner looks for the answer in a text, and ask it in two languages."""

    def run(mapping, languages=("en", "cs", "de"), folder="own"):
        path = tmp_path / f"{folder}.toml"
        path.write_text(mapping, encoding="utf-8")
        load_mapping.cache_clear()
        out = tmp_path / "benchmarks" / folder
        for lang in languages:
            rows = [{"file": f"{n}.png", "q": f"{n}?", "a": a} for n, a in enumerate(("dog", "no"))]
            files.write_lines(tmp_path / f"{lang}.jsonl", rows)
            write_pictures(tmp_path / "pics", ["0.png", "1.png"])
            import_benchmark(str(path), tmp_path, out, lang=lang)
        return dataclasses.replace(
            config, benchmarks=(folder,), benchmark_dir=tmp_path / "benchmarks",
            languages=languages,
        )  # fmt: skip

    return run


MAPPING = (
    'title = "Own"\nkind = "answers"\nanswer_type = "text"\nofficial = "substring"\n'
    'languages = { en = "en", cs = "cs", de = "de", br = "br" }\n'
    '[files]\nquestions = ["{lang}.jsonl"]\nimages = ["pics"]\n'
    '[columns]\nimage = "file"\nquestion = "q"\nanswer = "a"\n'
)


def test_both_readings_are_asked_stored_printed_and_compared(imported, console):
    config = imported(MAPPING)
    report = score_run(config, run_evaluation(config, Verbose), "lrm eval")
    (benchmark,) = report.benchmarks
    for result in benchmark.languages:
        values = {one.mode: (one.value, one.name) for one in result.headlines}
        # "no" is in "now"
        assert values == {"local": (0, "accuracy"), "official": (100, "accuracy")}
        assert result.headlines[0].mode == "local", "the default"
        assert result.headlines[1].details["rule"] == "substring"
    print_report(report, console)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    means = [line[3:5] for line in lines if line[:3] == ["mean", "of", "2"] and len(line) == 5]
    assert means == [["local", "0.00"], ["official", "100.00"]]
    # the answers say by which rule
    answers = config.predictions_dir / "own.cs.jsonl"
    assert json.loads(answers.read_text().splitlines()[0])["kind"] == "answers:substring"
    stored = (config.results_dir / "scores.jsonl").read_text()
    assert '"mode": "official"' in stored and '"mode": "local"' in stored
    assert score_file("answers:substring", answers, mode="official").headline == 100
    assert score_file("answers", answers).headline == 0
    runs = (config.results_dir, config.results_dir)
    (result,) = compare_runs(*runs, mode="official", num_replicates=50)
    assert {one.mode for one in (*result.languages, result.mean)} == {"official"}
    assert comparison_table(result, 120).title == "own: accuracy, read as official"
    (result,) = compare_runs(*runs, num_replicates=50)
    assert comparison_table(result, 120).title == "own: accuracy, read as local"


def test_another_rule_of_the_set_holds_at_once(imported, tmp_path):
    config = imported(MAPPING)
    score_run(config, run_evaluation(config, Verbose), "")
    config = imported(MAPPING.replace("substring", "exact"))
    other = dataclasses.replace(config, out_dir=tmp_path / "other")
    run_evaluation(other, Verbose)
    with pytest.raises(DataError, match="different rules of an owner, so they cannot be compared"):
        compare_runs(config.results_dir, other.results_dir, mode="official")
    assert compare_runs(config.results_dir, other.results_dir, num_replicates=50)
    report = score_run(config, run_evaluation(config, Verbose), "")
    headlines = report.benchmarks[0].languages[0].headlines
    assert {one.mode: one.value for one in headlines} == {"local": 0, "official": 0}


def test_a_folder_of_two_rules_is_refused(imported, tmp_path):
    imported(MAPPING)
    path = tmp_path / "benchmarks" / "own" / "benchmark.json"
    described = json.loads(path.read_text())
    described["files"]["cs"]["official"] = "exact"
    path.write_text(json.dumps(described))
    with pytest.raises(DataError, match="its languages name the rules exact, substring"):
        get_benchmark("own", tmp_path / "benchmarks")


CAPTIONS = (
    MAPPING.replace('"answers"', '"captions"').replace('"text"', '"caption"')
    .replace("substring", "cider").replace('question = "q"\nanswer = "a"', 'answers = "a"')
    + '[question]\nfixed = "caption"\n'
)  # fmt: skip


def test_captions_without_the_package_have_their_own_reading(imported, no_coco, caplog):
    pytest.importorskip("sacrebleu", reason="captions are scored with it (extra `captions`)")
    config = imported(CAPTIONS)
    report = score_run(config, run_evaluation(config, Verbose), "")
    headlines = report.benchmarks[0].languages[0].headlines
    assert [(one.mode, one.name) for one in headlines] == [("local", "mean chrF")]
    assert "own en: no row official: CIDEr, BLEU and ROUGE-L of captions need" in caplog.text


@pytest.fixture
def coco():
    pytest.importorskip("pycocoevalcap", reason="CIDEr needs pycocoevalcap (extra `captions`)")


def test_captions_in_both_readings_are_in_two_tables(imported, console, coco):
    pytest.importorskip("sacrebleu", reason="captions are scored with it (extra `captions`)")
    config = imported(CAPTIONS)
    report = score_run(config, run_evaluation(config, Verbose), "")
    (benchmark,) = report.benchmarks
    assert benchmark.headline_names == ("mean chrF", "CIDEr")
    print_report(report, console)
    text = console.file.getvalue()
    assert "own: mean chrF" in text and "own: CIDEr" in text
    official = benchmark.languages[0].headlines[1]
    assert official.method == "bootstrap" and 0 < official.value < 1000
    assert {"bleu_1", "bleu_4", "rouge_l", "rule"} <= official.details.keys()
    runs = (config.results_dir, config.results_dir)
    (result,) = compare_runs(*runs, mode="official", num_replicates=50)
    assert (result.headline, result.languages[0].only_a) == ("CIDEr", None)


def test_caption_tokens():
    for case in OWNERS["captions"]["tokens"]:
        assert caption_tokens(case["text"]) == case["words"]


def test_what_cocos_tokenizer_makes_of_them(coco):
    """As the golden cases have it: where it differs is in the manual."""
    if shutil.which("java") is None:
        pytest.skip("COCO's tokenizer is a program in Java")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    cases = OWNERS["captions"]["tokens"]
    captions = {n: [{"caption": case["text"]}] for n, case in enumerate(cases)}
    found = PTBTokenizer().tokenize(captions)
    for number, case in enumerate(cases):
        assert found[number][0].split() == case.get("ptb", case["words"])


def test_cider_by_hand(coco):
    """Two images, so each word of one weighs ln 2; cosines of 1- to 4-grams, times 10 / 4.

    "Red dog" has cosine 1 for words and pairs; "blue dog" shares one of two words of equal weight.
    """
    assert cider(["red dog", "blue dog"], [["Red dog."], ["blue cat"]]) == pytest.approx([5, 1.25])
    same = ["a red dog runs", "two blue cats sleep"]
    assert cider(same, [[text] for text in same]) == pytest.approx([10, 10])
    assert cider(["一只红狗", ""], [["一只红狗"], ["两只猫"]])[0] > 9
    assert cider(["", "x"], [["red"], ["blue"]]) == [0, 0]


def test_overlap_stands_beside_maxms_accuracy(coco, console):
    """As in the two tests by hand: "blue dog" has CIDEr 1.25 and one of two words."""
    items = [
        dataclasses.replace(item_of({"golds": [gold]}, (), str(n)), image=f"{n}.png")
        for n, gold in enumerate(["red dog", "blue cat"])
    ]
    report = score_benchmark(
        kind_of("pangeabench-maxm"), items, {"0": "Red dog.", "1": "blue dog"}, lang="en",
        mode="official",
    )  # fmt: skip
    assert (report.headline, report.details["exact_match"]) == (50, 0)
    assert report.details["rouge_l"] == pytest.approx((1 + 1 / 2) / 2)
    assert report.details["cider"] == pytest.approx((5 + 1.25) / 2)
    print_score(report.to_json(), console)
    assert "cider" in console.file.getvalue() and "3.1250" in console.file.getvalue()


def test_bleu_and_rouge_by_hand(coco):
    """Three of four words, two of three pairs and one of two triples are right; no brevity penalty.

    ROUGE-L has the recall and precision 3 / 4.
    """
    found = bleu_and_rouge(["the red dog runs"], [["The red dog sleeps."]])
    expected = [(3 / 4), (3 / 4 * 2 / 3) ** (1 / 2), (3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3)]
    assert [found[f"bleu_{n}"] for n in (1, 2, 3)] == pytest.approx(expected)
    assert found["rouge_l"] == pytest.approx(3 / 4)


def test_a_language_without_a_file_is_read_by_the_owner_alone(imported, console, caplog):
    """Breton is asked in the requests of English; its score stands beside none of `local`."""
    config = imported(MAPPING, ("en", "br", "de"))
    assert "br (Breton) has no language file here: it is asked with the requests of" in caplog.text
    assert "the owner's rule alone reads its answers" in caplog.text
    (first, _) = get_benchmark("own", config.benchmark_dir).read("br")
    assert first.text == f"0?\n{get_language('en').short_answer}"
    sets = run_evaluation(dataclasses.replace(config, languages=()), Verbose)
    assert [qs.lang for qs in sets] == ["en", "de", "br"], "all that the folder has"
    report = score_run(config, sets, "")
    english, _, breton = report.benchmarks[0].languages
    assert (english.mode, breton.mode, breton.name) == ("local", "official", "Breton")
    assert [one.mode for one in breton.headlines] == ["official"]
    assert breton.total.accuracy == 1 and breton.total.fidelity is None
    print_report(report, console)
    text = console.file.getvalue()
    titles = [f"own: right answers in percent, read as {m}" for m in ("local", "official")]
    assert all(" ".join(text.split()).count(title) == 1 for title in titles)
    rows = [line.split() for line in text.splitlines() if line.lstrip().startswith("Breton")]
    (row,) = (row for row in rows if "official" in row)
    assert row[1:3] == ["official", "100.00"] and row[-1] == "-"
    page = write_report(report, config.results_dir, config.model_path).read_text()
    assert "<code>own</code>, read as official" in page and "Breton" in page

    answers = config.predictions_dir / "own.br.jsonl"
    assert score_file("answers:substring", answers).mode == "official"
    with pytest.raises(ConfigError, match="br has no language file here, so `local` cannot read"):
        score_file("answers:substring", answers, mode="local")
    runs = (config.results_dir, config.results_dir)
    (result,) = compare_runs(*runs, num_replicates=50)
    assert [one.lang for one in result.languages] == ["en", "de"]
    assert "left out br, which has no language file here: compare it by `--mode" in caplog.text
    (result,) = compare_runs(*runs, mode="official", num_replicates=50)
    assert [one.lang for one in result.languages] == ["en", "de", "br"]
    setting = Setting("x", (config.results_dir,))
    (scored,) = score_settings([setting])
    assert scored.cells["x"]["de"].value == 0 and scored.cells["x"]["br"].value is None
    assert "br has no language file here" in scored.cells["x"]["br"].reason
    (scored,) = score_settings([setting], mode="official")
    assert scored.cells["x"]["br"].value == 100


def test_a_language_that_nothing_reads_is_asked_and_has_no_score(imported, caplog):
    config = imported(MAPPING.replace('official = "substring"\n', ""), ("en", "br"))
    assert "nothing here reads its answers" in caplog.text
    report = score_run(config, run_evaluation(config, Verbose), "")
    assert [one.lang for one in report.benchmarks[0].languages] == ["en"]
    assert "own br: no score: br has no language file here, so `local` cannot" in caplog.text
    assert (config.predictions_dir / "own.br.jsonl").is_file()
    alone = dataclasses.replace(config, languages=("br",))
    with pytest.raises(DataError, match="there is no score: nothing reads the answers"):
        score_run(alone, run_evaluation(alone, Verbose), "")
    with pytest.raises(ConfigError, match="unknown language 'brr'"):
        run_evaluation(dataclasses.replace(config, languages=("brr",)), Verbose)


def test_a_judge_reads_a_language_without_a_file(imported, serve, tmp_path, caplog):
    rubric = MAPPING.replace('official = "substring"', 'judge = "ayavisionbench"')
    config = imported(rubric, ("en", "br"))
    assert "a judge alone reads its answers" in caplog.text
    service = serve(JudgeService(lambda prompt, number: "CORRECT"))
    judge = ModelJudge(JudgeConfig("j", service.url, tmp_path / "cache.sqlite"))
    report = score_run(config, run_evaluation(config, Verbose), "", judge.judge)
    (breton,) = (one for one in report.benchmarks[0].languages if one.lang == "br")
    assert (breton.mode, breton.total.accuracy) == ("judge:ayavisionbench:j", 1)
    assert breton.total.fidelity is breton.total.blind_accuracy is None
    assert len(load_runs([config.results_dir]).rows) == 4
