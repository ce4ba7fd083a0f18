import pytest

from llava.errors import DataError
from llava.serve.engine import ContextFull, GenerationRequest, IncrementalDecoder, StopFilter
from llava.serve.protocol import decode_chunks, encode_chunk, text_before_stop

TEXT = "Žluťoučký kůň — 你好 😀!"


def test_decoder_holds_back_unfinished_characters(make_engine):
    decoder = IncrementalDecoder(make_engine().tokenizer)
    pieces = [decoder.push([byte]) for byte in TEXT.encode()]
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces  # the first byte of a two-byte character shows nothing


def test_decoder_flush_shows_what_will_never_be_finished(make_engine):
    decoder = IncrementalDecoder(make_engine().tokenizer)
    assert decoder.push(["ů".encode()[0]]) == ""
    assert decoder.push([], is_end=True) == "\ufffd"
    assert decoder.push([], is_end=True) == ""


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_stop_filter_finds_a_stop_string_in_pieces(cut):
    text = "yes ## no### Human: more"
    stop_filter = StopFilter("###")
    shown = "".join(stop_filter.push(text[i : i + cut]) for i in range(0, len(text), cut))
    assert shown + stop_filter.flush() == "yes ## no"
    assert stop_filter.stopped


def test_stop_filter_gives_back_a_false_beginning():
    stop_filter = StopFilter("###")
    assert stop_filter.push("a ##") == "a "
    assert stop_filter.flush() == "##"
    assert not stop_filter.stopped


def test_text_before_stop_strings_grows_with_the_answer():
    text, stops = "a ##b\nc ###d", ["###", "\nx"]
    found = [text_before_stop(text[:n], stops) for n in range(len(text) + 1)]
    assert [part for part, _ in found[:8]] == [
        "",
        "a",
        "a ",
        "a ",
        "a ",
        "a ##b",
        "a ##b",
        "a ##b\nc",
    ]
    assert found[-2:] == [("a ##b\nc ", True)] * 2
    assert not any(is_stopped for _, is_stopped in found[:-2])
    assert text_before_stop("b##", []) == ("b##", False)
    assert text_before_stop("one, two", ["two", "one"]) == ("", True)


def answer_of(engine, request, is_over=lambda pieces: False):
    pieces = []
    reason = engine.answer(request, pieces.append, lambda: is_over(pieces))
    return "".join(pieces), reason


def test_engine_streams_the_answer(make_engine):
    pieces = []
    assert make_engine(TEXT).answer(GenerationRequest("Q"), pieces.append) == "stop"
    assert "".join(pieces) == TEXT
    assert len(pieces) > 10


def test_engine_stops_at_the_stop_string(make_engine):
    engine = make_engine("Yes.###" + "x" * 3000, delay_s=0.001)
    request = GenerationRequest("Q", stop="###", max_new_tokens=3000)
    assert answer_of(engine, request) == ("Yes.", "stop")
    assert engine.model.num_generated < 100


def test_engine_stops_at_a_special_token_that_decoding_hides(make_engine):
    engine = make_engine([*b"Yes.", 257, *b"x" * 3000], delay_s=0.001)
    request = GenerationRequest("Q", stop="<|im_end|>", max_new_tokens=3000)
    assert answer_of(engine, request) == ("Yes.", "stop")
    assert engine.model.num_generated < 100


def test_engine_raises_what_the_model_raised(make_engine):
    engine = make_engine("abc", error=RuntimeError("the device burns"))
    pieces = []
    with pytest.raises(RuntimeError, match="the device burns"):
        engine.answer(GenerationRequest("Q"), pieces.append)
    assert pieces == ["a", "b", "c"]


def test_an_answer_that_nobody_needs_ends_at_once(make_engine):
    engine = make_engine("x" * 3000, delay_s=0.002)
    request = GenerationRequest("Q", max_new_tokens=3000)
    assert answer_of(engine, request, lambda pieces: len(pieces) == 3) == ("xxx", None)
    assert engine.model.finished.is_set()
    assert engine.model.num_generated == 3


def test_context_is_shared_by_text_pictures_and_answer(make_engine, picture):
    engine = make_engine("x" * 50, context_len=20)
    request = GenerationRequest("<image>\n12345", (picture,), max_new_tokens=50)
    # 6 bytes of text and 4 patches leave 10 positions.
    assert answer_of(engine, request) == ("x" * 10, "length")
    with pytest.raises(ContextFull):
        answer_of(engine, GenerationRequest("1" * 20))


def test_greedy_below_the_threshold(make_engine):
    engine = make_engine("a")
    for options in ({"temperature": 0.001}, {"temperature": 0.2, "top_p": 0.7}):
        answer_of(engine, GenerationRequest("Q", **options))
    greedy, sampling = engine.model.calls
    assert greedy["do_sample"] is False
    assert (sampling["do_sample"], sampling["temperature"], sampling["top_p"]) == (True, 0.2, 0.7)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"prompt": "<image> <image>"}, "0 images.*2 <image>"),
    ],
)
def test_requests_are_checked(options, names):
    with pytest.raises(DataError, match=names):
        GenerationRequest(**{"prompt": "Q", **options})


def test_picture_for_a_text_model_is_refused(make_engine, picture):
    engine = make_engine()
    engine.image_processor = None
    with pytest.raises(DataError, match="takes no images"):
        engine.prepare(GenerationRequest("<image>", (picture,)))


@pytest.mark.parametrize("cut", [1, 4, 1000])
def test_chunks_survive_any_cut(cut):
    wire = encode_chunk(TEXT) + encode_chunk("oops", 1, reason="because")
    pieces = [wire[i : i + cut] for i in range(0, len(wire), cut)]
    assert list(decode_chunks(pieces)) == [
        {"text": TEXT, "error_code": 0},
        {"text": "oops", "error_code": 1, "reason": "because"},
    ]


def test_a_stream_cut_inside_an_object_is_an_error():
    with pytest.raises(ValueError, match="ended inside an object"):
        list(decode_chunks([encode_chunk("a") + b'{"text": "b']))
