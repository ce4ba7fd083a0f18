"""The layout of the page: fields, buttons, examples, style.

In: settings and a folder with example pictures. Out: Gradio fields, not yet connected to anything;
`llava.serve.gradio_web_server` does that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from llava.serve.chat_state import PageSettings

EXAMPLES_PER_PAGE = 4
DEFAULT_QUESTION = "What is in the picture?"
NO_MODEL = (
    "**No model is running.** Start a worker "
    "(`python -m llava.serve.model_worker --model-path ...`) and reload this page."
)
CSS = """
.gradio-container { width: 100%; max-width: 1280px !important; margin: 0 auto; }
#title h1 { margin-bottom: 0; }
#title p { margin-top: 0.25rem; }
#buttons { gap: 8px; }
#buttons button { min-width: 0; flex: 1 1 30%; }
#terms { font-size: 0.85rem; opacity: 0.8; }
/* no sharing, and no frames around buttons that are not there */
button[title="Share"] { display: none !important; }
.icon-button-wrapper:not(:has(button:not([title="Share"]))) { display: none !important; }
footer { display: none !important; }
@media (min-width: 641px) {
  #buttons { flex-wrap: nowrap; }
}
@media (max-width: 640px) {
  .gradio-container > main, .gradio-container main { padding: 12px !important; }
  #chatbot { height: 440px !important; }
  /* picture, conversation, then what is needed less often */
  #left { display: contents; }
  #left > * { order: 1; width: 100%; }
  #right { order: 2; }
  #left > #examples, #left > #parameters { order: 3; }
}
"""


def find_examples(root: Path) -> list[list[str]]:
    """Return example pictures with a question each.

    Args:
        root: Folder with `examples/`: pictures, and optionally `examples.json` that maps a file's
            name to its question.

    Returns:
        Pairs of path and question; [] when there is no such folder.
    """
    folder = root / "examples"
    questions: dict[str, str] = {}
    if (folder / "examples.json").is_file():
        questions = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    pictures = [
        path
        for path in sorted(folder.glob("*"))
        if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"}
    ]
    return [[str(path), questions.get(path.name, DEFAULT_QUESTION)] for path in pictures]


@dataclass
class Fields:
    """The page's fields that events read or fill; `buttons` in the order of `button_states`."""

    model: gr.Dropdown
    image: gr.Image
    process_mode: gr.Radio
    temperature: gr.Slider
    top_p: gr.Slider
    max_new_tokens: gr.Slider
    control: list[gr.components.Component]
    chatbot: gr.Chatbot
    text: gr.Textbox
    send: gr.Button
    buttons: list[gr.Button]
    notice: gr.Markdown


def lay_out(settings: PageSettings, examples_root: Path) -> Fields:
    """Make the fields, within an open `gr.Blocks`.

    Args:
        settings: Models, and a choice that another package adds.
        examples_root: Folder with `examples/`.

    Returns:
        The fields.
    """
    notice = gr.Markdown(NO_MODEL, visible=False)
    with gr.Row():
        with gr.Column(scale=3, min_width=300, elem_id="left"):
            model = gr.Dropdown(list(settings.models), label="Model", interactive=True)
            image = gr.Image(type="pil", label="Picture", height=280, buttons=["fullscreen"])
            process_mode = gr.Radio(
                ["Crop", "Resize", "Pad", "Default"],
                value="Default",
                label="Preprocess for non-square image",
                visible=False,
            )
            control = list(settings.control.build()) if settings.control else []
            examples_slot = gr.Column(elem_id="examples")
            with gr.Accordion("Parameters", open=False, elem_id="parameters"):
                temperature = gr.Slider(0, 1, 0.2, step=0.1, label="Temperature")
                top_p = gr.Slider(0, 1, 0.7, step=0.1, label="Top P")
                max_new_tokens = gr.Slider(0, 1024, 512, step=64, label="Max output tokens")
        with gr.Column(scale=7, min_width=300, elem_id="right"):
            chatbot = gr.Chatbot(
                elem_id="chatbot",
                label="LLaVA Chatbot",
                height=650,
                buttons=["copy"],
                placeholder="Choose a picture or an example, then ask about it.",
                allow_file_downloads=False,
            )
            with gr.Row(equal_height=True):
                text = gr.Textbox(
                    label="Your question",
                    placeholder="Type a question and press Enter",
                    scale=8,
                    min_width=160,
                    autofocus=True,
                )
                send = gr.Button("Send", variant="primary", scale=1, min_width=80)
            with gr.Row(elem_id="buttons"):
                buttons = [
                    gr.Button(name, interactive=False, min_width=60, size="md")
                    for name in ("Upvote", "Downvote", "Flag", "Stop", "Regenerate", "Clear")
                ]
    examples = find_examples(examples_root)
    if examples:
        with examples_slot:
            gr.Examples(
                examples,
                [image, text],
                label="Examples",
                cache_examples=False,
                examples_per_page=EXAMPLES_PER_PAGE,
            )
    return Fields(
        model,
        image,
        process_mode,
        temperature,
        top_p,
        max_new_tokens,
        control,
        chatbot,
        text,
        send,
        buttons,
        notice,
    )
