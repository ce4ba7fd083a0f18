import json
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
import requests
from PIL import Image

from llava.chat_format import ChatFormat
from llava.conversation import conversation_to_dict, get_conversation
from llava.serve import chat, gradio_web_server
from llava.serve.chat import ENGLISH_TEXT, ChatState, PageSettings, PageText, PromptControl
from llava.serve.engine import load_engine
from llava.serve.protocol import template_name
from llava.utils import moderation_msg, server_error_msg

REQUEST = SimpleNamespace(client=SimpleNamespace(host="127.0.0.1"))
MODELS = Path(__file__).parents[2] / "golden" / "llava" / "model"
VOTE, REGENERATE = 0, 4


@pytest.fixture
def serve_model(make_engine, start_controller, start_worker, wait_for, tmp_path):
    """Start controller and worker around a stub; return engine and settings."""

    def make(answer, **options):
        dispatch, address = start_controller()
        engine = make_engine(answer, **options)
        start_worker(engine, address)
        wait_for(dispatch.list_models)
        return engine, PageSettings(address, models=(engine.name,), log_dir=tmp_path)

    return make


def send(settings, text, image=None, state=None):
    state, *_ = chat.add_text(state, text, image, "Default", REQUEST, settings=settings)
    return state


def answer(settings, state, model="llava-v1-stub"):
    return list(chat.http_bot(state, model, 0.2, 0.7, 512, REQUEST, settings=settings))


def interactive(update):
    return [button["interactive"] for button in update[-6:]]


def log_lines(settings):
    path = gradio_web_server.get_conv_log_filename(settings.log_dir)
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_question_with_picture_is_streamed_and_logged(serve_model, picture):
    engine, settings = serve_model("Červená.")
    updates = answer(settings, send(settings, "Jaká barva?", picture))
    state = updates[-1][0]
    shown = [update[1][-1]["content"] for update in updates]
    assert shown[0] == chat.CURSOR
    assert "Červ" + chat.CURSOR in shown
    assert shown[-1] == "Červená."
    assert interactive(updates[-1]) == [True, True, True, False, True, True]
    prompt = engine.model.calls[0]["prompt"]
    assert prompt.endswith("USER: \nJaká barva? ASSISTANT:")  # the picture is not text
    assert engine.model.calls[0]["images"].shape[0] == 1
    assert state.conversation.messages[-1][1] == "Červená."
    record = log_lines(settings)[0]
    assert (record["type"], record["model"], record["ip"]) == ("chat", engine.name, "127.0.0.1")
    assert record["state"]["messages"][-1][1] == "Červená."
    assert record["finish"] >= record["start"]
    stored = list(settings.log_dir.glob("serve_images/*/*.jpg"))
    assert [path.stem for path in stored] == record["images"]


def test_the_conversation_goes_on(serve_model):
    engine, settings = serve_model("A.")
    state = answer(settings, send(settings, "One?"))[-1][0]
    answer(settings, send(settings, "Two?", state=state))
    assert engine.model.calls[1]["prompt"].endswith(
        "USER: One? ASSISTANT: A.</s>USER: Two? ASSISTANT:"
    )


def test_a_picture_starts_a_new_conversation(serve_model, picture):
    _, settings = serve_model("A.")
    state = answer(settings, send(settings, "One?"))[-1][0]
    state = send(settings, "Two?", picture, state)
    assert len(state.conversation.messages) == 2


def colours(count):
    return [Image.new("RGB", (8 + i, 6), (250 - 90 * i, 30, 90 * i)) for i in range(count)]


def test_several_pictures_go_before_the_text_in_their_order(serve_model):
    engine, settings = serve_model("A.")
    pictures = colours(3)
    updates = answer(settings, send(settings, "Which?", pictures))
    state = updates[-1][0]
    assert state.conversation.get_prompt().startswith(
        get_conversation("llava_v1").system + " USER: <image>\n<image>\n<image>\nWhich? ASSISTANT:"
    )
    (call,) = engine.model.calls
    assert call["prompt"].endswith("USER: \n\n\nWhich? ASSISTANT:")  # pictures are not text
    assert call["images"].shape[0] == 3
    assert [image.size for image in state.conversation.get_images(return_pil=True)] == [
        (8, 6), (9, 6), (10, 6)
    ]  # fmt: skip
    *shown, text, _ = updates[-1][1]
    assert [Image.open(each["content"]["path"]).size[0] for each in shown] == [8, 9, 10]
    assert text["content"] == "Which?"
    # a second question goes on with them
    answer(settings, send(settings, "And?", state=state))
    assert engine.model.calls[1]["images"].shape[0] == 3
    assert log_lines(settings)[0]["images"] == [chat.image_digest(each) for each in pictures]


def test_too_many_pictures_are_refused_with_the_number(tmp_path):
    settings = PageSettings(log_dir=tmp_path)
    assert send(settings, "Which?", colours(4)).last_number == 1
    with pytest.raises(gr.Error, match="Pictures in one question: 4 at most"):
        send(settings, "Which?", [*colours(4), *colours(1)])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_field_sends_what_it_shows(tmp_path, count):
    uploaded = []
    for i, each in enumerate(colours(count)):
        each.save(tmp_path / f"{i}.png")
        uploaded.append((str(tmp_path / f"{i}.png"), None))
    with gr.Blocks():
        page = gradio_web_server.Page(PageSettings(log_dir=tmp_path), tmp_path, "t", False)
    asked = ("en", None, None, False, "Which?", uploaded or None, "Default", REQUEST)
    state, _, _, _, text, field, *_ = page.send(*asked)
    content = state.conversation.messages[0][1]
    if count == 0:
        assert content == "Which?"
    elif count == 1:  # as LLaVA's page sends it
        assert (content[0], content[1].size, content[2]) == ("Which?\n<image>", (8, 6), "Default")
    else:
        assert [image.size[0] for image in content[1]] == [8, 9, 10]
    assert (text, field) == ("", None)


def test_the_checkpoints_own_template_is_used(serve_model):
    own = get_conversation("llava_v0")
    own.system = "Odgovaraj na hrvatskom."
    engine, settings = serve_model(
        "Da.### nonsense", conversation=conversation_to_dict(own, "own"), delay_s=0.001
    )
    updates = answer(settings, send(settings, "Je li?"))
    assert engine.model.calls[0]["prompt"].startswith("Odgovaraj na hrvatskom.###")
    assert updates[-1][0].conversation.messages[-1][1] == "Da."


def test_another_model_goes_on_in_its_own_chat_format(
    make_engine, start_controller, start_worker, wait_for, tmp_path, picture
):
    source = MODELS.with_name("chat_templates") / "gemma_3.jinja"
    chat_format = ChatFormat(source.read_text(encoding="utf-8")).to_dict()
    stored = conversation_to_dict(get_conversation("chatml_direct"), "auto")
    stored |= {"system": "Kratko.", "version": "chat_template", "chat_template": chat_format}
    dispatch, address = start_controller()
    first = make_engine("Da.", name="llava-v1-stub")
    second = make_engine("Pas.", name="auto", conversation=stored)
    for engine in (first, second):
        start_worker(engine, address)
    wait_for(lambda: len(dispatch.list_models()) == 2)
    settings = PageSettings(address, log_dir=tmp_path)
    state = answer(settings, send(settings, "Je li?", picture))[-1][0]
    updates = answer(settings, send(settings, "A što?", state=state), "auto")
    state = updates[-1][0]
    assert updates[-1][1][-1]["content"] == "Pas."
    user, model = "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"
    # the picture is not text
    assert second.model.calls[0]["prompt"] == (
        f"{user}Kratko.\n\n\nJe li?{model}Da.<end_of_turn>\n{user}A što?{model}"
    )
    assert second.model.calls[0]["images"].shape[0] == 1
    answer(settings, send(settings, "I?", state=state), "auto")
    assert second.model.calls[1]["prompt"].endswith(
        f"{user}A što?{model}Pas.<end_of_turn>\n{user}I?{model}"
    )


def test_stop_keeps_what_has_come(serve_model, wait_for):
    engine, settings = serve_model("x" * 500, delay_s=0.01)
    updates = []
    for update in chat.http_bot(
        send(settings, "Q"), engine.name, 0, 1, 512, REQUEST, settings=settings
    ):
        updates.append(update)
        if len(updates) == 5:
            assert chat.stop(update[0])["interactive"] is False
    text = updates[-1][0].conversation.messages[-1][1]
    assert 0 < len(text) < 100
    assert set(text) == {"x"}
    assert interactive(updates[-1])[REGENERATE]
    wait_for(engine.model.finished.is_set)
    assert engine.model.num_generated < 250


def test_clearing_hides_an_answer_that_still_runs(serve_model):
    engine, settings = serve_model("x" * 500, delay_s=0.01)
    state = send(settings, "Q")
    updates = []
    for update in chat.http_bot(state, engine.name, 0, 1, 512, REQUEST, settings=settings):
        updates.append(update)
        if len(updates) == 3:
            cleared = chat.clear_history(state, REQUEST, settings=settings)
    assert cleared[1] == []
    assert updates[-1] == chat.NOTHING_NEW
    assert len(updates) < 20


def test_leaving_the_page_cancels_the_generation(serve_model, wait_for):
    engine, settings = serve_model("x" * 500, delay_s=0.01)
    state = send(settings, "Q")
    updates = chat.http_bot(state, engine.name, 0, 1, 512, REQUEST, settings=settings)
    next(updates)
    next(updates)
    updates.close()
    wait_for(engine.model.finished.is_set)
    assert engine.model.num_generated < 250
    assert not state.busy
    assert not state.conversation.messages[-1][1].endswith(chat.CURSOR)


def test_regenerate_asks_again(serve_model, picture):
    engine, settings = serve_model("A.")
    state = answer(settings, send(settings, "One?", picture))[-1][0]
    state, *_ = chat.regenerate(state, "Pad", REQUEST, settings=settings)
    assert state.conversation.messages[-2][1][2] == "Pad"
    answer(settings, state)
    assert engine.model.calls[0]["prompt"] == engine.model.calls[1]["prompt"]
    with pytest.raises(gr.Error, match="no answer to regenerate"):
        chat.regenerate(ChatState(), "Pad", REQUEST, settings=settings)


def test_votes_are_logged(serve_model):
    engine, settings = serve_model("A.")
    state = answer(settings, send(settings, "One?"))[-1][0]
    handlers = (chat.upvote_last_response, chat.downvote_last_response, chat.flag_last_response)
    for handler in handlers:
        updates = handler(state, engine.name, REQUEST, settings=settings)
        assert [update["interactive"] for update in updates[1:]] == [False] * 3
    assert [line["type"] for line in log_lines(settings)[1:]] == ["upvote", "downvote", "flag"]


def test_errors_show_cause_and_code_and_only_regenerate_and_clear(serve_model):
    engine, settings = serve_model("ab", error=RuntimeError("burns"))
    updates = answer(settings, send(settings, "Q"))
    text = updates[-1][1][-1]["content"]
    assert text.startswith(server_error_msg)
    assert "RuntimeError" in text
    assert text.endswith("(error_code: 1)")
    assert interactive(updates[-1]) == [False, False, False, False, True, True]


def test_unknown_model_and_dead_controller_are_code_2(serve_model, tmp_path):
    _, settings = serve_model("a")
    text = answer(settings, send(settings, "Q"), "nonsense")[-1][1][-1]["content"]
    assert "'nonsense'" in text
    assert text.endswith("(error_code: 2)")
    nobody = PageSettings("http://127.0.0.1:9", log_dir=tmp_path)
    text = answer(nobody, send(nobody, "Q"))[-1][1][-1]["content"]
    assert text.endswith("(error_code: 2)")
    assert gradio_web_server.get_model_list(nobody) == []


def test_dead_worker_is_code_3(start_controller, tmp_path):
    dispatch, address = start_controller()
    dispatch.register_worker(
        "http://127.0.0.1:9", False, {"model_names": ["m"], "speed": 1, "queue_length": 0}
    )
    settings = PageSettings(address, log_dir=tmp_path)
    text = answer(settings, send(settings, "Q"), "m")[-1][1][-1]["content"]
    assert text.endswith("(error_code: 3)")


def test_what_cannot_be_sent(tmp_path, monkeypatch, picture):
    settings = PageSettings(log_dir=tmp_path, moderate=True)
    with pytest.raises(gr.Error, match="Type a question"):
        send(settings, "  ")
    with pytest.raises(gr.Error, match="still coming"):
        send(settings, "Q", state=ChatState(busy=True))
    monkeypatch.setattr(chat, "violates_moderation", lambda text: True)
    with pytest.raises(gr.Error) as error:
        send(settings, "Q")
    assert error.value.message == moderation_msg
    monkeypatch.setattr(chat, "violates_moderation", lambda text: False)
    warnings = []
    monkeypatch.setattr(chat.gr, "Warning", warnings.append)
    assert len(send(settings, "x" * 2000).conversation.messages[0][1]) == 1536
    assert send(settings, "x" * 2000, picture).conversation.messages[0][1][0].count("x") == 1200
    assert "2000" in warnings[0]


def test_another_package_may_add_a_choice(tmp_path):
    control = PromptControl(
        build=lambda: [gr.Textbox()],
        apply=lambda text, extra: text + extra,
        relabel=lambda text: [gr.skip()],
        show=lambda reply, text, extra: reply,
    )
    settings = PageSettings(log_dir=tmp_path, control=control)
    updates = chat.add_text(None, "Q", None, "Default", REQUEST, "!", settings=settings)
    assert updates[0].conversation.messages[0][1] == "Q!"
    assert gradio_web_server.build_demo(True, settings=settings) is not None


def test_chat_panel_shows_pictures_as_small_files():
    state = ChatState()
    image = Image.new("RGB", (2000, 1000))
    state.conversation.append_message("USER", ("What?\n<image>", image, "Default"))
    state.conversation.append_message("ASSISTANT", "")
    picture, text, empty = state.messages()
    assert Image.open(picture["content"]["path"]).size == (512, 256)
    assert picture["content"]["alt_text"]
    assert text == {"role": "user", "content": "What?"}
    assert "empty" in empty["content"]


@pytest.mark.parametrize(
    ("model", "template"),
    [
        ("llava-llama-2-13b", "llava_llama_2"),
        ("llava-v1.6-mistral-7b", "mistral_instruct"),
        ("llava-v1.6-34b", "chatml_direct"),
        ("LLaVA-v1.5-13b", "llava_v1"),
        ("llava-v1-mmtag", "v1_mmtag"),
        ("llava-mpt-7b", "mpt"),
        ("llava-7b-v0", "llava_v0"),
        ("llava-plain", "v0_mmtag"),
        ("mpt-7b", "mpt"),
        ("llama-2-7b", "llama_2"),
        ("mini", "vicuna_v1"),
    ],
)
def test_template_by_name_exists(model, template):
    assert template_name(model) == template
    get_conversation(template)


def test_stop_strings():
    assert get_conversation("vicuna_v1").answer_end == "</s>"
    assert get_conversation("llava_v0").answer_end == "###"
    assert get_conversation("mpt").answer_end == "<|im_end|>"


def test_model_list_modes(serve_model):
    _, settings = serve_model("a")
    choose = gradio_web_server.load_demo("llava-v1-stub", settings=settings)
    assert choose[0]["value"] == "llava-v1-stub"
    assert choose[1]["visible"] is False
    empty = PageSettings("http://127.0.0.1:9")
    assert gradio_web_server.load_demo_refresh_model_list("x", settings=empty)[1]["visible"] is True


def test_examples(tmp_path, picture):
    assert chat.find_examples(tmp_path) == []
    (tmp_path / "examples").mkdir()
    picture.save(tmp_path / "examples" / "b.png")
    picture.save(tmp_path / "examples" / "a.png")
    picture.save(tmp_path / "examples" / "c.png")
    questions = {"b.png": "Što je?", "c.png": {"en": "Who?", "hr": "Tko?"}}
    (tmp_path / "examples" / "examples.json").write_text(json.dumps(questions), "utf-8")
    found = [question for _, question in chat.find_examples(tmp_path)]
    croatian = PageText("hr", "hrvatski", {"example_question": "Što je ovo?"})
    for text, wanted in (
        (ENGLISH_TEXT, ["What is this?", "Što je?", "Who?"]),
        (croatian, ["Što je ovo?", "Što je?", "Tko?"]),
        (PageText("cy", "Cymraeg", {}), ["What is this?", "Što je?", "What is this?"]),
    ):
        assert [chat.question_in(question, text) for question in found] == wanted


def test_the_page_starts_and_names_its_fields(serve_model):
    _, settings = serve_model("a")
    demo = gradio_web_server.build_demo(False, settings=settings)
    try:
        _, url, _ = demo.queue(api_open=False).launch(
            server_name="127.0.0.1", prevent_thread_lock=True, **gradio_web_server.launch_options()
        )
        config = requests.get(url + "config", timeout=20).json()
    finally:
        demo.close(verbose=False)
    props = [component["props"] for component in config["components"]]
    votes = ["Upvote", "Downvote", "Flag"]
    buttons = [p.get("value") for p in props if p.get("name") == "button"]
    assert buttons == [*votes, *votes, "Send", "Stop", "Regenerate", "Clear"]
    labels = {p.get("label") for p in props}
    assert {"Temperature", "Top P", "Max output tokens", "LLaVA Chatbot"} <= labels


def test_documented_flags():
    args = gradio_web_server.build_parser().parse_args(
        ["--controller", "http://c", "--model-list-mode", "reload", "--share"]
    )
    assert (args.controller_url, args.host, args.concurrency_count) == ("http://c", "0.0.0.0", 16)


def test_a_real_model_answers_about_a_picture(
    start_controller, start_worker, wait_for, tmp_path, picture
):
    engine = load_engine(str(MODELS / "tiny-llava"), device="cpu")
    dispatch, address = start_controller()
    start_worker(engine, address)
    wait_for(dispatch.list_models)
    settings = PageSettings(address, log_dir=tmp_path)
    updates = answer(settings, send(settings, "Što je to?", picture), "tiny-llava")
    state = updates[-1][0]
    assert interactive(updates[-1])[VOTE], updates[-1][1][-1]
    assert state.conversation.messages[-1][1]
    assert len(updates) > 5  # streamed
