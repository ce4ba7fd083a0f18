"""A LLaVA-compatible vision-language model: data, training, inference, serving.

Importing the package is cheap: the model class is loaded when it is first asked for, and a failing
import then shows its true cause.
"""

from typing import TYPE_CHECKING, Any

from llava.moved import keep_old_paths

if TYPE_CHECKING:
    from llava.model import LlavaLlamaForCausalLM

__all__ = ["LlavaLlamaForCausalLM"]

keep_old_paths(
    {
        "llava.image_file": "llava.images",
        "llava.data.drop": "llava.data.sample",
        "llava.data.render": "llava.data.tokenize",
        "llava.train.freeze": "llava.train.build",
        "llava.train.step_guard": "llava.train.llava_trainer",
        "llava.serve.pictures": "llava.serve.web",
        "llava.serve.openai_reply": "llava.serve.openai_api",
        "llava.serve.openai_schema": "llava.serve.openai_chat",
        "llava.serve.page": "llava.serve.gradio_web_server",
        "llava.serve.page_state": "llava.serve.chat",
    },
    renamed={
        "PictureLimits": "ImageLimits",
        "Reply": "CompletionReply",
        "read_picture": "read_image",
    },
)


def __getattr__(name: str) -> Any:
    """Loads the model class on first use (PEP 562)."""
    if name == "LlavaLlamaForCausalLM":
        from llava.model import LlavaLlamaForCausalLM

        return LlavaLlamaForCausalLM
    raise AttributeError(f"module 'llava' has no attribute {name!r}")
