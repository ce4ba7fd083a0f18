"""How long samples are in tokens, for batches of samples of like length.

Role: true counts, where LLaVA counts words between blanks (which gives 1 for any Chinese
question). LLaVA's signs are kept: with an image positive, text only negative.
Input: samples and a template. Output: integers. Non-goals: grouping (`sampler.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation
from llava.data.render import place_images, render
from llava.data.sample import Sample
from llava.data.tokenize import encode_chunks, num_bos

_BATCH = 512


def token_lengths(
    samples: Iterable[Sample],
    conv: Conversation,
    tokenizer: Any,
    mm_use_im_start_end: bool = False,
) -> Iterator[int]:
    """Yield the number of ids of each sample, the image sentinel counted as one.

    Samples are tokenised in batches, which a fast tokenizer spreads over its threads.
    """
    iterator = iter(samples)
    while batch := list(islice(iterator, _BATCH)):
        chunks: list[list[str]] = []
        for sample in batch:
            if sample.image is None:
                chunks.append([render(sample.turns, conv).text])
                continue
            turns = place_images(sample.turns, conv, mm_use_im_start_end)
            chunks.append(render(turns, conv).text.split(DEFAULT_IMAGE_TOKEN))
        ids, _ = encode_chunks([c for each in chunks for c in each], tokenizer, with_offsets=False)
        drop = num_bos(ids, tokenizer, chunks[0][0])
        lengths = iter(len(chunk) - drop for chunk in ids)
        for each in chunks:
            yield drop + sum(islice(lengths, len(each))) + len(each) - 1


def signed_length(length: int, has_image: bool) -> int:
    """Return a length in LLaVA's sign convention."""
    return length if has_image else -length
