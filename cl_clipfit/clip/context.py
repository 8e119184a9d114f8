"""Learned words at the start of every prompt: CoOp (Zhou et al. 2022, arXiv 2109.01134).

In the token ids of a prompt, copies of the start token hold the places of the learned words, which
no ordinary prompt has there. While the text tower runs, a hook on its token embedding puts the
learned embeddings into those places, so that open_clip's own code does all the rest.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_clipfit.errors import UserError

if TYPE_CHECKING:
    from cl_clipfit.clip.classifier import CLIPClassifier


def learn_context(
    model: "CLIPClassifier", length: int | None = None, template: str = "a photo of a {}."
) -> None:
    """Turn the first words of every prompt into the parameter `model.context`, (n, width).

    It starts, frozen, at the words of the template, so that at their own length nothing changes
    yet. It holds for classes already there or added later and in `encode_names`; of several
    templates the first counts. `zero_shot_text_features` stay those of the words.

    Args:
        model: the classifier.
        length: tokens; default as many as the words have. Another one repeats the words and ends
            with the last of them.
        template: prompt with the words before its "{}".

    Raises:
        UserError: no words there, prompts of other words or too long, a second call, or a model
            without open_clip's own tokenizer and text tower.
    """
    if model.context is not None:
        raise UserError("this model has a learned context already: load the model anew")
    words = _first_words(model.tokenizer, template)
    length = length or len(words)
    table = _token_embedding(model.clip).weight
    start = table.detach()[(words * length)[-length:]].clone()
    model._tokens = insert_context(model._tokens, words, length, model.class_names)
    model._context_words = words
    model.context = nn.Parameter(start, requires_grad=False)


def insert_context(
    prompts: Sequence[Tensor], words: Sequence[int], length: int, names: Sequence[str]
) -> list[Tensor]:
    """Give the first words of prompts to a learned context; of several templates the first.

    Args:
        prompts: one (templates, L) of token ids for each name.
        words: token ids that every prompt begins with.
        length: of the context, in tokens.
        names: of the classes, for the message.

    Returns:
        one (1, L) for each name.

    Raises:
        UserError: a prompt that begins otherwise, or gets longer than L.
    """
    first = 1 + len(words)
    converted = []
    for tokens, name in zip(prompts, names, strict=True):
        start, rest, room = tokens[0, :1], tokens[0, first:], tokens.shape[1]
        if tokens[0, 1:first].tolist() != list(words):
            raise UserError(
                f"the prompt of '{name}' does not begin with the words that the context takes the"
                " place of: use one template for all classes"
            )
        prompt = F.pad(torch.cat([start.repeat(1 + length), rest]), (0, len(words)))
        if prompt[room:].any():
            raise UserError(
                f"with a context of {length} tokens the prompt of '{name}' has more than the"
                f" {room} tokens this model reads: shorten the context, the template or the name"
            )
        converted.append(prompt[None, :room])
    return converted


@contextlib.contextmanager
def context_in_place(clip: nn.Module, context: Tensor | None) -> Iterator[None]:
    """Let a text tower read a context (n, width), with gradients, for a `with` block.

    The hook lives no longer than that: a copy of the model holds none that knows the original.
    """
    if context is None:
        yield
        return

    def replace(module: nn.Module, inputs: tuple[Tensor], embedded: Tensor) -> Tensor:
        (tokens,) = inputs
        learned = context.expand(len(tokens), -1, -1)
        learned = torch.cat([embedded[:, :1], learned, embedded[:, 1 + len(context) :]], 1)
        has_context = tokens[:, 1] == tokens[:, 0]
        return torch.where(has_context[:, None, None], learned, embedded)

    handle = _token_embedding(clip).register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _token_embedding(clip: nn.Module) -> nn.Embedding:
    table = getattr(getattr(clip, "text", clip), "token_embedding", None)
    if not isinstance(table, nn.Embedding):
        raise UserError("a learned context needs a text tower of open_clip's own, this is another")
    return table


def _first_words(tokenizer: Any, template: str) -> list[int]:
    """Return the token ids of a template's words before the class name."""
    if not (hasattr(tokenizer, "encode") and hasattr(tokenizer, "sot_token_id")):
        raise UserError(
            "a learned context needs open_clip's SimpleTokenizer, and this model has"
            f" {type(tokenizer).__name__}: choose another model or strategy"
        )
    words = tokenizer.encode(template.partition("{}")[0])
    if not words:
        raise UserError(
            "a learned context takes the place of the words before the class name, and the"
            f" template {template!r} has none: use one such as 'a photo of a {{}}.'"
        )
    return words
