"""Requests in one batch get what they get alone."""

import queue
import random
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import DynamicCache

from llava.errors import DataError
from llava.serve import batch as batch_module
from llava.serve.batch import (
    BLOCK,
    Batch,
    BatchScheduler,
    KVRows,
    ThreadScheduler,
    Ticket,
    Unanswered,
    batching_blocker,
    build_scheduler,
)
from llava.serve.engine import (
    ContextFull,
    Engine,
    GenerationRequest,
    ImageFeatureCache,
    Sampler,
    image_key,
    load_engine,
)
from llava.serve.protocol import DEADLINE, STOPPING

MODELS = Path(__file__).parents[2] / "golden" / "llava" / "model"
WORDS = "what is in the picture and how many of them are there".split()


@pytest.fixture(scope="module")
def engine():
    return load_engine(str(MODELS / "tiny-llava"), device="cpu")


@pytest.fixture(scope="module")
def anyres_engine(engine):
    from llava.model import LlavaLlamaForCausalLM

    model = LlavaLlamaForCausalLM.from_pretrained(MODELS / "tiny-llava-anyres-unpad").eval()
    tower = model.get_vision_tower()
    if not tower.is_loaded:
        tower.load_model()
    return Engine(engine.tokenizer, model, tower.image_processor, "anyres")


@pytest.fixture(scope="module")
def pictures():
    return [Image.open(MODELS / f"image{i}.png").convert("RGB") for i in range(3)]


@pytest.fixture
def scheduler(engine):
    made = []

    def make(max_running=16, max_waiting=64, timeout_s=None, engine=engine, **options):
        made.append(BatchScheduler(engine, max_running, max_waiting, timeout_s, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def requests_of(pictures, number=16, **options):
    rng = random.Random(0)
    found = []
    for index in range(number):
        num_pictures = (0, 1, 0, 2)[index % 4]
        text = " ".join(rng.choices(WORDS, k=rng.randint(1, 30)))
        found.append(
            GenerationRequest(
                "USER: " + "<image>\n" * num_pictures + f"{text}? ASSISTANT:",
                tuple(pictures[(index + i) % 3] for i in range(num_pictures)),
                max_new_tokens=rng.randint(1, 40),
                **{"temperature": 0, **options},
            )
        )
    return found


def events_of(scheduler, request):
    """Answer a request; closing the iterator cancels it."""
    events = queue.SimpleQueue()
    ticket = Ticket(request, events.put)
    scheduler.submit(ticket)
    try:
        while not (event := events.get()).is_last:
            yield event
        yield event
    finally:
        ticket.cancelled.set()


def text_alone(engine, request):
    pieces = []
    engine.answer(request, pieces.append)
    return "".join(pieces)


def text_of(events):
    return "".join(event.text for event in events)


def answer_all(scheduler, requests, seed=0):
    """Ask from threads that begin at random times; return the events of each."""
    rng = random.Random(seed)
    found = [None] * len(requests)

    def ask(index, delay):
        time.sleep(delay)
        found[index] = list(events_of(scheduler, requests[index]))

    threads = [
        threading.Thread(target=ask, args=(index, rng.random() * 0.1))
        for index in range(len(requests))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return found


def test_greedy_answers_are_those_of_generate(engine, scheduler, pictures):
    requests = requests_of(pictures)
    alone = [text_alone(engine, request) for request in requests]
    running = scheduler()
    for seed in range(2):
        events = answer_all(running, requests, seed)
        assert [text_of(each) for each in events] == alone
        for request, each in zip(requests, events, strict=True):
            assert each[-1].error is None
            assert each[-1].usage[1] <= request.max_new_tokens
            if each[-1].finish_reason == "length":
                assert each[-1].usage[1] == request.max_new_tokens
    assert running.num_requests == 0
    assert running.batch.kv.num_bytes == 0
    assert len(set(alone)) > 10  # the answers can be told from each other


def test_a_narrow_batch_gives_the_same(engine, scheduler, pictures):
    requests = requests_of(pictures)
    alone = [text_alone(engine, request) for request in requests]
    assert [text_of(e) for e in answer_all(scheduler(max_running=3), requests)] == alone


def test_tiled_pictures_in_a_batch(anyres_engine, scheduler, pictures, monkeypatch):
    requests = requests_of(pictures, 8)
    alone = [text_alone(anyres_engine, request) for request in requests]
    tower = anyres_engine.model.get_vision_tower()
    forward, tiles = tower.forward, []
    monkeypatch.setattr(tower, "forward", lambda pixels: tiles.extend(pixels) or forward(pixels))
    running = scheduler(engine=anyres_engine)
    for _ in range(2):  # the second time from the cache of features
        assert [text_of(e) for e in answer_all(running, requests)] == alone
    # once for each image in tiles, and for the two that are squares in one prompt
    images = [image for request in requests for image in anyres_engine.prepare(request).images]
    once = {(image.tiles.sum().item(), len(image.tiles)): len(image.tiles) for image in images}
    assert len(tiles) == sum(once.values())


def test_usage_counts_pictures(engine, scheduler, pictures):
    request = GenerationRequest("USER: <image>\nA ASSISTANT:", (pictures[0],), temperature=0)
    done = list(events_of(scheduler(), request))[-1]
    num_ids = engine.prepare(request).input_ids.shape[1]
    num_patches = engine.model.get_vision_tower().num_patches
    assert done.usage[0] == num_ids - 1 + num_patches


def test_sampling_depends_on_the_seed_and_not_on_the_neighbours(scheduler, pictures):
    running = scheduler()
    mine = GenerationRequest("USER: hello ASSISTANT:", temperature=1.0, seed=5, max_new_tokens=20)
    alone = text_of(events_of(running, mine))
    crowd = requests_of(pictures, 8, temperature=1.0)
    assert text_of(answer_all(running, [*crowd, mine])[-1]) == alone
    other = GenerationRequest("USER: hello ASSISTANT:", temperature=1.0, seed=6, max_new_tokens=20)
    assert text_of(events_of(running, other)) != alone


def test_stop_strings_belong_to_their_request(engine, scheduler):
    plain = GenerationRequest("USER: hello ASSISTANT:", temperature=0, max_new_tokens=30)
    whole = text_alone(engine, plain)
    stop = whole[8:11]
    stopping = GenerationRequest(
        "USER: hello ASSISTANT:", temperature=0, max_new_tokens=30, stop=stop
    )
    first, second = answer_all(scheduler(), [plain, stopping])
    assert text_of(first) == whole
    assert text_of(second) == whole[: whole.index(stop)]
    assert second[-1].finish_reason == "stop"
    assert second[-1].usage[1] < first[-1].usage[1]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.7, 50, 0.9), (1.3, 0, 0.5)])
def test_probabilities_are_those_of_transformers(temperature, top_k, top_p):
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3
    sampler = Sampler(temperature, top_p, top_k, 0, torch.device("cpu"))
    chances, ids = sampler.probabilities(logits)
    ours = torch.zeros(1000).index_put((ids,), chances)
    scores = TemperatureLogitsWarper(temperature)(None, logits[None])
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    theirs = torch.softmax(TopPLogitsWarper(top_p)(None, scores), dim=-1)[0]
    torch.testing.assert_close(ours, theirs)


def test_top_p_of_zero_is_the_most_probable():
    sampler = Sampler(1.0, 0.0, 50, 0, torch.device("cpu"))
    assert sampler.draw(torch.tensor([0.1, 2.0, 1.9])) == 1


def test_a_request_that_is_cancelled_leaves_the_others_alone(engine, scheduler, pictures):
    running = scheduler()
    requests = requests_of(pictures, 4)
    alone = [text_alone(engine, request) for request in requests]
    endless = events_of(running, GenerationRequest("USER: a ASSISTANT:", max_new_tokens=240))
    next(endless)
    endless.close()
    assert [text_of(each) for each in answer_all(running, requests)] == alone
    assert running.drain(10)


def test_a_row_in_the_middle_may_be_cancelled(engine, scheduler):
    running = scheduler()
    request = GenerationRequest("USER: a ASSISTANT:", temperature=0, max_new_tokens=200)
    alone = text_alone(engine, request)
    streams = [events_of(running, request) for _ in range(3)]
    texts = [next(stream).text for stream in streams]
    streams[0].close()
    assert [text + text_of(stream) for text, stream in zip(texts, streams, strict=True)][1:] == [
        alone
    ] * 2


def test_full_queue_says_so_and_forgets_nobody(scheduler):
    running = scheduler(max_running=1, max_waiting=1)
    long = GenerationRequest("USER: a ASSISTANT:", temperature=0, max_new_tokens=200)
    first, second = events_of(running, long), events_of(running, long)
    next(first)
    thread = threading.Thread(target=list, args=(second,))
    thread.start()
    deadline = time.monotonic() + 10
    while running.num_requests < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    with pytest.raises(Unanswered, match="1 requests are being answered and 1 wait"):
        list(events_of(running, long))
    list(first)
    thread.join(timeout=20)
    assert list(events_of(running, long))[-1].finish_reason == "length"


def test_deadlines_hold_for_those_who_wait_and_those_who_run(scheduler):
    running = scheduler(max_running=1, timeout_s=0.05)
    long = GenerationRequest("USER: a ASSISTANT:", temperature=0, max_new_tokens=230)
    for events in answer_all(running, [long] * 3):
        if events[-1].error is not None:
            assert events[-1].error.kind == DEADLINE
    seen = []
    running.submit(Ticket(long, seen.append, started=time.monotonic() - 1))
    assert running.drain(10)
    assert seen[-1].error.kind == DEADLINE


def test_draining_finishes_what_was_taken_and_takes_nothing_new(engine, scheduler):
    running = scheduler()
    request = GenerationRequest("USER: a ASSISTANT:", temperature=0, max_new_tokens=50)
    stream = events_of(running, request)
    first = next(stream)
    assert running.drain(20)
    with pytest.raises(Unanswered, match="about to stop"):
        list(events_of(running, request))
    assert first.text + text_of(stream) == text_alone(engine, request)


def test_closing_answers_those_who_are_there_and_those_who_come_too_late(scheduler, monkeypatch):
    running = scheduler(max_running=1)
    long = GenerationRequest("USER: a ASSISTANT:", temperature=0, max_new_tokens=200)
    seen = [[], []]
    for events in seen:
        running.submit(Ticket(long, events.append))
    prepare = running.batch.prepare

    def close_meanwhile(*request):
        running.close()
        return prepare(*request)

    monkeypatch.setattr(running.batch, "prepare", close_meanwhile)
    with pytest.raises(Unanswered, match="the worker stopped"):
        list(events_of(running, long))
    assert [events[-1].error.kind for events in seen] == [STOPPING, STOPPING]
    assert running.num_requests == 0


def test_a_failing_step_fails_its_requests_only(scheduler, monkeypatch):
    running = scheduler()
    request = GenerationRequest("USER: a ASSISTANT:", temperature=0, max_new_tokens=30)
    good = text_of(events_of(running, request))
    calls = []

    def step(self):
        calls.append(1)
        raise torch.OutOfMemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "step", step)
        assert isinstance(list(events_of(running, request))[-1].error, torch.OutOfMemoryError)
    assert len(calls) == 1
    assert text_of(events_of(running, request)) == good


class Fed:
    """A scheduler's queue, filled before it runs: all requests arrive together."""

    def __init__(self, scheduler, requests, cancelled=()):
        self.events = [queue.SimpleQueue() for _ in requests]
        with scheduler._changed:  # held, so that the thread sees all of them at once
            for index, (request, events) in enumerate(zip(requests, self.events, strict=True)):
                ticket = Ticket(request, events.put)
                if index in cancelled:
                    ticket.cancelled.set()
                scheduler.submit(ticket)

    def answers(self):
        found = []
        for events in self.events:
            text = ""
            while not (event := events.get(timeout=60)).is_last:
                text += event.text
            found.append(event.error or text + event.text)
        return found


@pytest.mark.parametrize("tiled", [False, True])
def test_those_who_arrive_together_share_tower_and_prompt(
    tiled, engine, anyres_engine, scheduler, pictures, monkeypatch
):
    engine = anyres_engine if tiled else engine
    requests = requests_of(pictures, 12)
    alone = [text_alone(engine, request) for request in requests]
    tower, model, passes = engine.model.get_vision_tower(), type(engine.model), []
    encode, forward = tower.forward, model.forward
    monkeypatch.setattr(tower, "forward", lambda x: passes.append("tower") or encode(x))

    def watched(self, *args, **kwargs):
        passes.append("prompt" if kwargs.get("inputs_embeds") is not None else "step")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(model, "forward", watched)
    found = Fed(scheduler(engine=engine), requests, cancelled=[4]).answers()
    assert isinstance(found[4], Unanswered)
    assert found[:4] + found[5:] == alone[:4] + alone[5:]
    assert passes[:2] == ["tower", "prompt"]
    assert passes.count("tower") == passes.count("prompt") == 1


def test_a_faulty_request_fails_alone_among_those_it_arrived_with(
    engine, scheduler, pictures, monkeypatch
):
    requests = requests_of(pictures, 6)
    alone = [text_alone(engine, request) for request in requests]
    running, tower = scheduler(), engine.model.get_vision_tower()
    forward, draw = tower.forward, Sampler.draw
    bad = engine.prepare(requests[1]).images[0].tiles  # no other request of these has it alone

    def burn(pixels):
        if any(torch.equal(each, bad[0]) for each in pixels):
            raise RuntimeError("the tower burns")
        return forward(pixels)

    monkeypatch.setattr(tower, "forward", burn)
    monkeypatch.setattr(Sampler, "draw", lambda self, logits: draw(self, logits * torch.nan))
    sampled = replace(requests[0], temperature=1.0)  # the others are greedy
    *found, no_chances = Fed(running, [*requests, sampled]).answers()
    is_hit = [any(image is pictures[1] for image in request.images) for request in requests]
    assert any(is_hit) and not all(is_hit)
    for text, expected, hit in zip(found, alone, is_hit, strict=True):
        assert isinstance(text, RuntimeError) if hit else text == expected
    assert isinstance(no_chances, RuntimeError)
    assert running.drain(10)


def test_a_long_prompt_joins_in_passes_between_which_others_advance(
    engine, scheduler, pictures, monkeypatch
):
    monkeypatch.setattr(batch_module, "JOIN_TOKENS", 16)
    requests = requests_of(pictures, 8)
    alone = [text_alone(engine, request) for request in requests]
    running, passes = scheduler(), []
    join, step = running.batch.join, running.batch.step
    monkeypatch.setattr(running.batch, "join", lambda x: passes.append("join") or join(x))
    monkeypatch.setattr(running.batch, "step", lambda: passes.append("step") or step())
    assert Fed(running, requests).answers() == alone
    assert passes.count("join") > len(requests)  # most take several
    started = passes[passes.index("step") :]
    assert ("join", "join") not in pairwise(started)


def test_a_failing_prompt_fails_its_request_only(engine, scheduler, pictures, monkeypatch):
    running = scheduler()
    whole = Batch._embed

    def embed(self, prepared):
        if prepared.images:
            raise RuntimeError("the tower burns")
        return whole(self, prepared)

    monkeypatch.setattr(batch_module.Batch, "_embed", embed)
    for request, events in zip(
        requests_of(pictures, 4), answer_all(running, requests_of(pictures, 4)), strict=True
    ):
        assert (events[-1].error is not None) == bool(request.images)


def test_what_cannot_be_taken_is_refused_at_once(engine, scheduler, pictures):
    running = scheduler()
    with pytest.raises(ContextFull):
        list(events_of(running, GenerationRequest("USER: " + "word " * 400)))
    textual = scheduler(engine=Engine(engine.tokenizer, engine.model, None, "text"))
    with pytest.raises(DataError, match="takes no images"):
        list(events_of(textual, GenerationRequest("<image>", (pictures[0],))))
    assert running.num_requests == textual.num_requests == 0


def test_which_models_share_a_batch(engine, make_engine, monkeypatch):
    assert batching_blocker(engine) is None
    scheduler = build_scheduler(make_engine("a"), 1, 1)
    assert isinstance(scheduler, ThreadScheduler)
    scheduler.close()
    monkeypatch.setattr(engine.model.generation_config, "repetition_penalty", 1.2)
    assert "repetition_penalty" in batching_blocker(engine)
    monkeypatch.undo()
    monkeypatch.setattr(engine.model.config, "sliding_window", 16, raising=False)
    assert "16 positions" in batching_blocker(engine)


def prompt_cache(length, value):
    cache = DynamicCache()
    for layer in range(2):
        states = torch.full((1, 2, length, 4), float(value))
        cache.update(states, states + 1, layer)
    return cache


def test_rows_join_grow_and_leave():
    kv = KVRows(3)
    for length, value in ((3, 10), (BLOCK - 1, 20), (5, 30)):
        kv.join(prompt_cache(length, value))
    positions, visible = kv.begin_step()
    assert positions[:, 0].tolist() == [3, BLOCK - 1, 5]
    assert visible.sum(dim=-1).flatten().tolist() == [4, BLOCK, 6]
    new = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 2, 1, 4)
    keys, _ = kv.update(new, new, 1)
    assert keys.shape == (3, 2, BLOCK, 4)
    assert [keys[row, 0, end, 0].item() for row, end in enumerate((3, BLOCK - 1, 5))] == [0, 1, 2]
    kv.leave(0)  # the last row takes its place
    positions, visible = kv.begin_step()
    assert positions[:, 0].tolist() == [6, BLOCK]  # beyond the first block
    keys, _ = kv.update(new[:2] + 7, new[:2], 1)
    assert keys[0, 0, :8, 0].tolist() == [30, 30, 30, 30, 30, 2, 7, 0]
    assert keys[1, 0, 0, 0] == 20
    kv.leave(0)
    kv.leave(0)
    assert (kv.num_rows, kv.num_bytes) == (0, 0)


def test_a_row_that_memory_refused_harms_no_layer(monkeypatch):
    kv = KVRows(2)
    kv.join(prompt_cache(3, 10))
    new_zeros, asked = torch.Tensor.new_zeros, []

    def run_out(states, *size, **options):
        asked.append(size)
        if len(asked) == 2:  # the second layer
            raise torch.OutOfMemoryError
        return new_zeros(states, *size, **options)

    monkeypatch.setattr(torch.Tensor, "new_zeros", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        kv.join(prompt_cache(5, 20))
    kv.join(prompt_cache(5, 20))
    kv.begin_step()
    one = torch.ones(2, 2, 1, 4)
    for layer in range(2):
        keys, _ = kv.update(one, one, layer)
        assert keys[:, 0, :, 0].tolist() == [[10, 10, 10, 1, 0, 0], [20, 20, 20, 20, 20, 1]]


def test_what_an_earlier_row_left_is_gone():
    kv = KVRows(2)
    kv.join(prompt_cache(8, float("nan")))
    kv.join(prompt_cache(8, 1))
    kv.leave(0)
    kv.join(prompt_cache(2, 3))
    kv.begin_step()
    one = torch.ones(2, 2, 1, 4)
    keys, values = kv.update(one, one, 0)
    assert torch.isfinite(keys).all()
    assert torch.isfinite(values).all()


@pytest.mark.parametrize("limit", [2 * BLOCK, 5 * BLOCK])
def test_keys_and_values_stay_within_their_bound(engine, scheduler, pictures, limit, monkeypatch):
    requests = requests_of(pictures, number=8)
    alone = [text_alone(engine, request) for request in requests]
    running = scheduler(max_kv_tokens=limit)
    largest, rows = [0], set()
    step = running.batch.step

    def watched():
        largest[0] = max(largest[0], running.batch.kv.num_bytes)
        rows.add(len(running.batch.rows))
        return step()

    monkeypatch.setattr(running.batch, "step", watched)
    assert [text_of(each) for each in answer_all(running, requests)] == alone
    config = engine.model.config
    heads = config.num_key_value_heads
    position = 2 * 4 * config.num_hidden_layers * heads * config.hidden_size
    position //= config.num_attention_heads
    assert 0 < largest[0] <= limit * position
    assert max(rows) <= limit // BLOCK
    assert max(rows) > 1  # several still share a step


def test_a_prompt_larger_than_the_memory_is_refused_and_an_answer_is_cut(engine, scheduler):
    running = scheduler(max_kv_tokens=BLOCK)
    words = " ".join(WORDS[index % len(WORDS)] for index in range(BLOCK))
    with pytest.raises(DataError, match="max-kv-tokens"):
        next(events_of(running, GenerationRequest(words, temperature=0)))
    request = GenerationRequest("USER: what ASSISTANT:", temperature=0, max_new_tokens=1000)
    last = list(events_of(running, request))[-1]
    assert last.error is None
    assert sum(last.usage) <= BLOCK
    assert running.num_requests == 0


def test_requests_wait_for_memory_and_are_busy_beyond_the_queue(engine, scheduler):
    running = scheduler(max_running=2, max_waiting=0, max_kv_tokens=BLOCK)
    request = GenerationRequest("USER: what ASSISTANT:", temperature=0, max_new_tokens=90)
    events = answer_all(running, [request] * 2)
    assert text_of(events[0]) == text_of(events[1]) == text_alone(engine, request)
    first, second = events_of(running, request), events_of(running, request)
    next(first), next(second)
    assert len(running.batch.rows) <= 1


def test_what_short_rows_left_is_given_back_to_a_long_one():
    kv = KVRows(8, max_positions=8 * BLOCK)
    for _ in range(8):
        kv.join(prompt_cache(3, 1))
    assert kv.num_bytes == 2 * 2 * 8 * BLOCK * 2 * 4 * 4
    for _ in range(7):
        kv.leave(0)
    kv.join(prompt_cache(3 * BLOCK, 2))
    assert kv.num_bytes <= 2 * 2 * 8 * BLOCK * 2 * 4 * 4
    positions, _ = kv.begin_step()
    assert positions[:, 0].tolist() == [3, 3 * BLOCK]
    one = torch.ones(2, 2, 1, 4)
    keys, _ = kv.update(one, one, 0)
    assert keys[0, 0, :5, 0].tolist() == [1, 1, 1, 1, 0]
    assert keys[1, 0, 0, 0] == 2


def test_what_was_written_before_a_failure_is_sent(engine, scheduler, pictures, monkeypatch):
    request = replace(requests_of(pictures, number=1)[0], max_new_tokens=30)
    alone = text_alone(engine, request)
    running = scheduler()
    assert text_of(list(events_of(running, request))) == alone
    step, num_steps = running.batch.step, [0]

    def burn():
        num_steps[0] += 1
        if num_steps[0] == 10:
            raise RuntimeError("burns")
        return step()

    monkeypatch.setattr(running.batch, "step", burn)
    *texts, last = events_of(running, request)
    assert last.error is not None
    assert alone.startswith(text_of(texts))
    assert texts[-1].usage[1] == 10


def test_features_are_bounded_and_the_oldest_go():
    cache = ImageFeatureCache(max_bytes=100)
    cache.put("a", torch.zeros(10))
    cache.put("b", torch.zeros(10))
    assert cache.get("a") is not None
    cache.put("c", torch.zeros(10))
    assert [cache.get(key) is not None for key in "abc"] == [True, False, True]
    cache.put("large", torch.zeros(1000))
    assert cache.get("large") is None
    assert cache.num_bytes == 80


def test_pictures_are_told_apart_by_pixels_and_shape():
    pictures = [Image.new("RGB", (4, 6)), Image.new("RGB", (6, 4)), Image.new("L", (4, 6))]
    pictures.append(Image.new("RGB", (4, 6), (0, 0, 1)))
    assert len({image_key(picture) for picture in pictures}) == 4
    assert image_key(pictures[0].copy()) == image_key(pictures[0])
