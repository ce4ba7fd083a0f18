"""The engines on encoder-decoder models, on tiny models that know a few lines by heart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fake_chat import NoLedger
from scene_texts import scene_table
from tiny_models import Lessons, save_m2m100, save_madlad, save_nllb, save_opus

from llava.errors import ConfigError
from lrm_ext.translate.engines.base import (
    EngineError,
    Outcome,
    TextSegment,
    TranslationEngine,
    Usage,
    build_engine,
)
from lrm_ext.translate.engines.seq2seq import (
    _dtype,
    length_class,
    make_batches,
    max_new_tokens,
)

LANGS = ("cs", "hr")


def known(lang: str) -> dict[str, str]:
    """What the tiny models learn: some lines, long ones first, and some names."""
    table = {en: text for en, text in scene_table(lang, 30).items() if en != "<image>"}
    long = [en for en in table if len(en.split()) > 2][:6]
    short = [en for en in table if len(en.split()) == 1 and en.isalpha()][:2]
    return {en: table[en] for en in (*long, *short)}


class Kind(NamedTuple):
    save: Callable[[Path, Lessons], Path]
    codes: dict[str, str]


KINDS = {
    "nllb": Kind(save_nllb, {"cs": "ces_Latn", "hr": "hrv_Latn"}),
    "m2m100": Kind(save_m2m100, {"cs": "cs", "hr": "hr"}),
    "madlad": Kind(save_madlad, {"cs": "cs", "hr": "hr"}),
    "opus-mt": Kind(save_opus, {"cs": "ces", "hr": "hrv"}),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of the engine's kind."""
    lessons = {KINDS[kind].codes[lang]: known(lang) for lang in LANGS}
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return KINDS[kind].save(tmp_path_factory.mktemp("models") / kind, lessons)
    finally:
        torch.set_num_threads(num_threads)


def make(kind: str, model: Path | str, lang: str = "hr", **options: Any) -> TranslationEngine:
    # the models of a language file say their tag themselves, one that is named here has to
    tag = f" >>{KINDS[kind].codes[lang]}<<" if kind == "opus-mt" else ""
    texts = {"model": f"{model}{tag}", **{name: str(value) for name, value in options.items()}}
    return build_engine(kind, texts, lang, NoLedger())


def translate(engine: TranslationEngine, texts: Sequence[str]) -> list[Outcome]:
    """Translate, and check that every segment has exactly one outcome."""
    outcomes: dict[int, Outcome] = {}
    for reply in engine.translate([TextSegment(text) for text in texts]):
        for outcome in reply.outcomes:
            assert outcome.index not in outcomes
            outcomes[outcome.index] = outcome
    assert sorted(outcomes) == list(range(len(texts)))
    return [outcomes[i] for i in range(len(texts))]


def num_right(engine: TranslationEngine) -> int:
    """How many of the Croatian lines it knows."""
    outcomes = translate(engine, list(known("hr")))
    return sum(o.text == text for o, text in zip(outcomes, known("hr").values(), strict=True))


def test_each_language_is_asked_for_as_the_model_was_taught(kind: str, model: Path) -> None:
    for lang in LANGS:
        for beams in (1, 3):
            engine = make(kind, model, lang, beams=beams)
            found = [o.text for o in translate(engine, list(known(lang)))]
            assert found == list(known(lang).values())
            engine.close()


def test_what_else_is_in_the_batch_does_not_matter(kind: str, model: Path) -> None:
    """Also for texts that the model has never seen, whatever it makes of them."""
    texts = list(known("hr"))
    texts += [text.replace("picture", "the tomato") for text in texts] + ["No bus", "What?"]
    texts = list(dict.fromkeys(texts))
    for beams in (1, 3):
        batched, single = (
            make(kind, model, beams=beams, tokens_per_batch=tokens) for tokens in (4096, 1)
        )
        assert translate(batched, texts) == translate(single, texts)
        half = len(texts) // 2
        parts = translate(batched, texts[:half]) + translate(batched, texts[half:])
        assert [o.text for o in parts] == [o.text for o in translate(batched, texts)]


@pytest.mark.parametrize("kind", ["nllb"], indirect=True)
def test_cost_is_counted(kind: str, model: Path) -> None:
    engine = make(kind, model, beams=1)
    replies = list(engine.translate([TextSegment(text) for text in known("hr")]))
    usage = sum((reply.usage for reply in replies), Usage())
    assert usage.requests == len(replies) and usage.usd == 0
    assert 20 * len(known("hr")) > usage.output_tokens > len(known("hr"))


@pytest.mark.parametrize("kind", ["nllb"], indirect=True)
def test_memory_that_runs_out_halves_the_batch(
    kind: str, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine: Any = make(kind, model, beams=1, tokens_per_batch=64)
    texts = list(known("hr"))
    translate(engine, texts[:1])
    run = engine._runner.run
    sizes: list[int] = []

    def run_small(batch: Sequence[Sequence[int]], limit: int) -> Any:
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return run(batch, limit)

    monkeypatch.setattr(engine._runner, "run", run_small)
    with caplog.at_level(logging.WARNING):
        assert [o.text for o in translate(engine, texts)] == list(known("hr").values())
    assert max(sizes) > 1 and "memory ran out" in caplog.text

    def run_none(batch: Sequence[Sequence[int]], limit: int) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(engine._runner, "run", run_none)
    outcomes = translate(engine, texts)
    assert all(o.text is None and not o.is_final for o in outcomes)
    assert all("out of memory with" in str(o.error) for o in outcomes)

    def run_broken(batch: Sequence[Sequence[int]], limit: int) -> Any:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(engine._runner, "run", run_broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        translate(engine, texts)


def test_nothing_is_cut(kind: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = next(iter(known("hr")))
    engine: Any = make(kind, model, beams=1)
    long, good = translate(engine, ["color " * 5000, text])
    assert long.text is None and long.is_final and "too long: " in str(long.error)
    assert good.text == known("hr")[text]
    run = engine._runner.run
    monkeypatch.setattr(engine._runner, "run", lambda batch, limit: run(batch, 4))
    for beams in (1, 3):
        (cut,) = translate(engine, [text])
        assert cut.text is None and "no end after" in str(cut.error), beams


def test_version_and_options_are_those_that_decide(kind: str, model: Path, tmp_path: Path) -> None:
    engine = make(kind, model)
    assert engine.version == make(kind, model, tokens_per_batch=7).version
    assert engine.options == make(kind, model, tokens_per_batch=7, device="cpu").options
    assert engine.options != make(kind, model, beams=2).options
    copy = tmp_path / model.name
    copy.mkdir()
    for path in model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert make(kind, copy).version == engine.version
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert make(kind, copy).version != engine.version


def test_a_model_that_cannot_be_loaded_is_named(kind: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="neither a folder nor.*only local files"):
        make(kind, "nobody/nothing-like-this", local_files_only=True)
    for path in model.iterdir():
        if path.name != "model.safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(EngineError, match="cannot be loaded"):
        translate(make(kind, tmp_path), ["a"])
    with pytest.raises(EngineError, match="dtype is 'float17'"):
        translate(make(kind, model, dtype="float17"), ["a"])
    with pytest.raises(EngineError, match="device is 'moon'"):
        translate(make(kind, model, device="moon"), ["a"])


def test_a_language_that_the_model_lacks_is_named(kind: str, model: Path) -> None:
    if kind in ("nllb", "m2m100"):
        pytest.skip("its tokenizer brings all languages along")
    engine = (
        build_engine(kind, {"model": f"{model} >>deu<<"}, "de", NoLedger())
        if kind == "opus-mt"
        else build_engine(kind, {"model": str(model)}, "de", NoLedger())
    )
    with pytest.raises(EngineError, match="has no token.*for the language"):
        translate(engine, ["a"])


@pytest.mark.parametrize("kind", ["madlad"], indirect=True)
def test_half_precision(kind: str, model: Path) -> None:
    assert num_right(make(kind, model, dtype="bfloat16", beams=1)) >= 6


def test_converted_model(kind: str, model: Path, tmp_path: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    converted = tmp_path / "ct2"
    try:
        ctranslate2.converters.TransformersConverter(str(model)).convert(str(converted))
    except ValueError as error:
        if kind != "m2m100":
            raise
        pytest.skip(f"the converter misses M2M100's languages under transformers 5: {error}")
    texts = list(known("hr"))
    for beams in (1, 3):
        engine = make(kind, model, ct2_model=converted, beams=beams, dtype="float32")
        right = num_right(engine)
        # its beam search is another one
        assert right == len(texts) if beams == 1 else right > len(texts) // 2
        assert " ct2 " in engine.version
        engine.close()
    engine: Any = make(kind, model, ct2_model=converted)
    translate(engine, texts[:1])
    run = engine._runner.run
    engine._runner.run = lambda batch, limit: run(batch, 4)
    (cut,) = translate(engine, texts[:1])
    assert cut.text is None and "no end after" in str(cut.error)


def test_what_is_no_converted_model_is_told(kind: str, model: Path, tmp_path: Path) -> None:
    how = "misses the languages" if kind == "m2m100" else "ct2-transformers-converter --model"
    with pytest.raises(EngineError, match=f"no CTranslate2 model.*{how}"):
        make(kind, model, ct2_model=tmp_path)


def test_batches_hold_one_length_class_and_no_more_tokens_than_allowed() -> None:
    lengths = {i: 1 + (i * 37) % 200 for i in range(500)}
    batches = make_batches(lengths, 1000)
    assert sorted(i for batch in batches for i in batch) == sorted(lengths)
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert longest * len(batch) <= 1000
        assert len({length_class(lengths[i]) for i in batch}) == 1
    assert len(batches) < 1.4 * sum(lengths.values()) / 1000
    assert make_batches({7: 5000}, 1000) == [[7]]
    assert make_batches({}, 1000) == []


def test_the_limit_depends_on_the_text_alone() -> None:
    assert [length_class(n) for n in (1, 16, 17, 32, 33, 256)] == [16, 16, 32, 32, 64, 256]
    assert max_new_tokens(20, None) == max_new_tokens(32, None) == 80
    assert max_new_tokens(200, 300) == 298


def test_options_that_make_no_sense() -> None:
    for name, value in (("beams", "0"), ("tokens_per_batch", "0"), ("no_repeat_ngram", "-1")):
        with pytest.raises(ConfigError, match=f"{name} is '{value}'"):
            build_engine("nllb", {name: value}, "cs", NoLedger())


def test_on_a_cpu_the_gpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def occupy() -> bool:
        raise AssertionError("this call takes memory of a GPU")

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", occupy)
    assert _dtype(torch, "auto", torch.device("cpu")) is torch.float32
