"""`lrm corpus score`: more figures, perhaps another status, never another text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_engine import FakeEngine
from transformers import BertConfig, BertModel, BertTokenizerFast
from typer.testing import CliRunner

from llava.data.sample import Turn
from llava.errors import ConfigError
from lrm_ext.cli import app
from lrm_ext.corpus.store import Corpus, CorpusRow, CorpusText
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.translate import scoring
from lrm_ext.translate.scoring import ScoreJob, pairs_of, score_corpus

QUESTION, ANSWER = "What is the man holding?", "A long loaf of white bread."
HR = ("Što muškarac drži?", "Dugu štrucu bijelog kruha.")


def turns(question: str, answer: str) -> tuple[Turn, ...]:
    return (Turn("human", question), Turn("gpt", answer))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Six rows: good, still English, rejected for want of an answer, none, English only, good."""
    texts: list[CorpusText | None] = [
        CorpusText(turns(*HR)),
        CorpusText(turns(HR[0], ANSWER)),
        CorpusText(turns(QUESTION, ANSWER), "rejected", "e 1", "engine: e: refused"),
        None,
        CorpusText(turns(*HR)),
        CorpusText(turns(*HR), "ok", "e 1", None, {"length": 0.5}),
    ]
    path = tmp_path / "corpus"
    with CorpusWriter(path, ["hr"], rows_per_batch=2, rows_per_shard=4) as writer:
        for i, text in enumerate(texts):
            row = CorpusRow(str(i), None, None, None, i != 4, turns(QUESTION, ANSWER))
            writer.append(row, {"hr": text} if text else {})
    return path


def statuses(path: Path) -> list[str | None]:
    opened = Corpus.open(path)
    return [text and text.status for text in (opened.text("hr", i) for i in range(len(opened)))]


class FakeScorer:
    """Gives bread a figure, and breaks off after a number of batches."""

    def __init__(self, figure: float = 0.25, breaks_after: int = 99) -> None:
        self.identity = {"figure": figure}
        self.figure, self.left, self.seen = figure, breaks_after, 0

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.seen += len(pairs)
        return [self.figure if "kruha" in target else None for _, target in pairs]

    def close(self) -> None:
        pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let `labse` be a fake scorer: `fake(scorer)`."""

    def use(scorer: FakeScorer) -> FakeScorer:
        made = {**scoring.SCORERS, "labse": lambda *args: scorer}
        monkeypatch.setattr("lrm_ext.translate.scoring.SCORERS", made)
        return scorer

    return use


def test_checks_of_texts_that_are_there(corpus: Path) -> None:
    counts = score_corpus(ScoreJob(corpus, "hr", ("checks",)))
    assert statuses(corpus) == ["ok", "rejected", "rejected", None, "ok", "ok"]
    assert (counts["ok"], counts["rejected: copy"], counts["rejected: engine"]) == (3, 1, 1)
    opened = Corpus.open(corpus)
    assert opened.usable_rows("hr").tolist() == [0, 5]
    found = [opened.text("hr", i) for i in (0, 2)]
    assert found[0] and found[0].turns == turns(*HR) and "meaning" in (found[0].quality or {})
    assert found[1] and found[1].reason == "engine: e: refused" and found[1].quality is None


def test_other_limits_take_effect_both_ways(corpus: Path) -> None:
    strict = ScoreJob(corpus, "hr", ("checks",), limits={"length": 0.0})
    assert score_corpus(strict)["suspect: length"] == 3
    assert statuses(corpus)[0] == "suspect"
    score_corpus(ScoreJob(corpus, "hr", ("checks",)))
    assert statuses(corpus) == ["ok", "rejected", "rejected", None, "ok", "ok"]


def test_a_scorer_adds_its_figure_and_a_limit_makes_suspects(corpus: Path, fake: Any) -> None:
    scorer = fake(FakeScorer())
    score_corpus(ScoreJob(corpus, "hr", ("labse",)))
    opened = Corpus.open(corpus)
    text = opened.text("hr", 5)
    assert text and text.quality == {"length": 0.5, "labse": 0.25} and text.status == "ok"
    assert scorer.seen == 3 + 0 + 2  # each pair of texts once in each part
    counts = score_corpus(ScoreJob(corpus, "hr", ("labse",), limits={"labse": 0.2}))
    assert counts["suspect: labse"] == 3 and counts["usable"] == 1
    text = Corpus.open(corpus).text("hr", 5)
    assert text and text.reason == "labse: 0.25, the limit is 0.2"
    score_corpus(ScoreJob(corpus, "hr", ("labse",), limits={"labse": 0.3}))
    assert statuses(corpus) == ["ok", "ok", "rejected", None, "ok", "ok"]


def test_goes_on_where_it_was_cut_short(corpus: Path, fake: Any) -> None:
    job = ScoreJob(corpus, "hr", ("labse",))
    before = [Corpus.open(corpus).text("hr", i) for i in range(6)]
    fake(FakeScorer(breaks_after=1))
    with pytest.raises(KeyboardInterrupt):
        score_corpus(job)
    assert [Corpus.open(corpus).text("hr", i) for i in range(6)] == before
    scorer = fake(FakeScorer())
    score_corpus(job)
    assert scorer.seen == 2
    score_corpus(job)  # it is complete
    assert scorer.seen == 2
    description = json.loads((corpus / "text" / "hr" / "translation.json").read_text())
    assert description["scores"] == {"labse": {"figure": 0.25, "limit": None}}


def test_figures_of_both_kinds_live_side_by_side(corpus: Path, fake: Any) -> None:
    fake(FakeScorer())
    score_corpus(ScoreJob(corpus, "hr", ("labse",)))
    score_corpus(ScoreJob(corpus, "hr", ("checks",)))
    text = Corpus.open(corpus).text("hr", 0)
    assert text and {"labse", "length", "meaning"} <= set(text.quality or {})
    description = json.loads((corpus / "text" / "hr" / "translation.json").read_text())
    assert set(description["scores"]) == {"labse", "checks"}


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (
            {"names": ("labs",)},
            "--by labs: expected some of checks, back-translation",
        ),
        ({"names": ()}, "--by nothing"),
        ({"lang": "cs"}, "no texts in 'cs' to score; it has: hr"),
        ({"lang": "en"}, "no texts in 'en'"),
        ({"names": ("labse",), "limits": {"length": 1.0}}, "limits of checks need --by checks"),
        ({"limits": {"lenght": 1.0}}, "no check is called lenght"),
        ({"names": ("labse",), "options": {"labse": {"modl": "x"}}}, "no option modl"),
        ({"names": ("back-translation",)}, "the engine is none"),
        (
            {"names": ("back-translation",), "options": {"back-translation": {"engine": "memory"}}},
            "'memory', which translates from English only",
        ),
    ],
)
def test_mistakes_are_named(corpus: Path, job: dict[str, Any], words: str) -> None:
    job = {"lang": "hr", "names": ("checks",), **job}
    with pytest.raises(ConfigError) as error:
        score_corpus(ScoreJob(corpus, **job, cache=corpus.with_suffix(".sqlite")))
    assert words in str(error.value)


def test_what_is_judged_of_a_row() -> None:
    def pairs(*texts: tuple[str, str]) -> list[tuple[str, str]]:
        row = CorpusRow("1", None, None, None, True, tuple(Turn("gpt", a) for a, _ in texts))
        return pairs_of(row, CorpusText(tuple(Turn("gpt", b) for _, b in texts)))

    long = ("<image>\nWhat is the man holding?\n12", "<image>\nŠto muškarac drži?\n12")
    assert pairs(long, ("bread", "kruh")) == [("What is the man holding?", "Što muškarac drži?")]
    assert pairs(("a man", "muškarac"), ("bread", "kruh")) == [("a man\nbread", "muškarac\nkruh")]
    assert pairs(("12", "12")) == []


# The scorers themselves.


def test_back_translation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {HR[0]: QUESTION, HR[1]: "A small cat.", "Nešto.": None}
    engine = FakeEngine(lambda text: table[text])
    asked_for: list[Any] = []

    def build(options: Any, source: str, target: str, ledger: Any) -> FakeEngine:
        asked_for.append((source, target))
        return engine

    spec = SimpleNamespace(name="fake", options=SimpleNamespace, build=build)
    monkeypatch.setattr(scoring, "get_spec", lambda name: spec)
    monkeypatch.setattr(scoring, "parse_options", lambda spec, options: None)
    pairs = [(QUESTION, HR[0]), (ANSWER, HR[1]), (QUESTION, HR[0]), ("Something.", "Nešto.")]
    for _ in range(2):  # the second time all is in the cache
        scorer = scoring.BackTranslation({"engine": "fake"}, "hr", tmp_path / "cache.sqlite")
        found = scorer.score(pairs)
        assert found[0] == found[2] == 0.0 and found[3] is None
        assert found[1] is not None and 0.5 < found[1] <= 1
        scorer.close()
    assert asked_for == [("hr", "en")] * 2
    assert [segment.text for segment in engine.asked] == [HR[0], HR[1], "Nešto."]
    assert "chrF" in str(scorer.identity)


@pytest.fixture
def tiny_labse(tmp_path: Path) -> Iterator[Path]:
    """A BERT of one layer with random weights."""
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a man cat bread pas kruh".split()
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32, initializer_range=1.0,
    )  # fmt: skip
    folder = tmp_path / "labse"
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    yield folder


def test_labse(tiny_labse: Path, tmp_path: Path) -> None:
    scorer = scoring.Labse({"model": str(tiny_labse)}, "hr", tmp_path / "unused")
    pairs = [("a man", "a man"), ("a man", "pas kruh pas kruh"), ("cat", "kruh"), ("cat", "cat")]
    found = scorer.score(pairs * 12)  # more than one batch
    assert found[:4] == pytest.approx(found[-4:], abs=1e-5)
    assert found[0] == pytest.approx(0, abs=1e-5) and found[3] == pytest.approx(0, abs=1e-5)
    assert found[1] is not None and 0.01 < found[1] <= 2
    assert min(figure for figure in found if figure is not None) >= 0
    # one by one, without padding
    assert [scorer.score([pair])[0] for pair in pairs] == pytest.approx(found[:4], abs=1e-5)
    scorer.close()


def test_labse_that_is_not_there(tmp_path: Path) -> None:
    scorer = scoring.Labse({"model": str(tmp_path / "no")}, "hr", tmp_path / "unused")
    with pytest.raises(ConfigError, match=r"cannot be loaded .*--option labse\.model"):
        scorer.score([("a", "b")])


def test_comet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Model:
        def predict(self, data: list[dict[str, str]], **settings: Any) -> Any:
            seen.append((data, settings["gpus"]))
            return SimpleNamespace(scores=[0.8 for _ in data])

    module = SimpleNamespace(
        download_model=lambda name: f"/models/{name}", load_from_checkpoint=lambda path: Model()
    )
    monkeypatch.setitem(sys.modules, "comet", module)
    scorer = scoring.CometQE({"model": "kiwi"}, "hr", tmp_path)
    assert scorer.score([("a", "b")]) == [pytest.approx(0.2)]
    assert seen == [([{"src": "a", "mt": "b"}], 0)]
    scorer.close()


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "comet", None)
    with pytest.raises(ConfigError, match="pip install unbabel-comet"):
        scoring.CometQE({}, "hr", tmp_path)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.chrf", None)
    with pytest.raises(ConfigError, match=r"lrm-llava\[translate\]"):
        scoring.BackTranslation({"engine": "nllb"}, "hr", tmp_path / "cache.sqlite")


def test_command_line(corpus: Path) -> None:
    command = ["corpus", "score", str(corpus), "--lang", "hr"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "2 rows are not accepted" in result.output.replace("\n", " ")
    result = CliRunner().invoke(app, [*command, "--by", "labse", "--option", "model=x"])
    assert isinstance(result.exception, ConfigError)
    assert "expected scorer.name=value" in str(result.exception)
    shown = CliRunner().invoke(app, ["corpus", "show", str(corpus), "--row", "0"])
    assert "structure 0" in shown.output and "length" in shown.output
