"""Learned words at the start of every prompt: CoOp (Zhou et al. 2022, arXiv 2109.01134).

In the token ids of a prompt, copies of the start token mark the positions of the learned words; no
ordinary prompt has them there. While the text tower runs, a hook on its token embedding inserts the
learned embeddings at those positions, so that open_clip's code does everything else.
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
    """Replace the first words of every prompt by the parameter `model.context`, (n, width).

    It is initialised with the words of the template and frozen, so that with their length the
    features do not change yet. It applies to existing and future classes and to `encode_names`;
    of several templates, the first is used. `zero_shot_text_features` stay those of the words.

    Args:
        model: the classifier.
        length: in tokens; by default, that of the words. For another length, the words are
            repeated so that the context ends with the last of them.
        template: prompt with the words before its "{}".

    Raises:
        UserError: there are no words, a prompt starts with other words or is too long, the model
            already has a context, or its tokenizer or text tower is not open_clip's.
    """
    if model.context is not None:
        raise UserError("this model already has a learned context: load the model again")
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
    """Replace the first words of prompts by a learned context, using the first template only.

    Args:
        prompts: one tensor of token ids (templates, L) per name.
        words: token ids that every prompt begins with.
        length: of the context, in tokens.
        names: of the classes, for error messages.

    Returns:
        one tensor (1, L) per name.

    Raises:
        UserError: a prompt starts with other words, or becomes longer than L.
    """
    first = 1 + len(words)
    converted = []
    for tokens, name in zip(prompts, names, strict=True):
        start, rest, room = tokens[0, :1], tokens[0, first:], tokens.shape[1]
        if tokens[0, 1:first].tolist() != list(words):
            raise UserError(
                f"the prompt of '{name}' does not begin with the words that the context"
                " replaces: use one template for all classes"
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
    """Insert a context (n, width) into a text tower, with gradients, in a `with` block.

    The hook is removed afterwards, so that a copy of the model has no reference to the original.
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
        raise UserError(
            "a learned context needs a text tower of open_clip, which this model does not have"
        )
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
            "a learned context replaces the words before the class name, and the"
            f" template {template!r} has none: use one such as 'a photo of a {{}}.'"
        )
    return words
