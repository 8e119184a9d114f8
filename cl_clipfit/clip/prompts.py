"""Prompts of class names: templates, token ids, ensembles."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit.errors import UserError

DEFAULT_TEMPLATES = ("a photo of a {}.",)
TemplatesLike = Sequence[str] | Sequence[Sequence[str]]
Tokenizer = Callable[[list[str]], Tensor]


def templates_of(templates: TemplatesLike, count: int) -> list[Sequence[str]]:
    """Return the templates of each of `count` names.

    Raises:
        UserError: there are no templates, or not one group of them per name.
    """
    if any(isinstance(t, str) for t in templates):
        templates = [templates] * count  # type: ignore[list-item]
    if len(templates) != count or not all(len(group) for group in templates):
        raise UserError("no prompt template given: pass at least one, such as 'a photo of a {}.'")
    return list(templates)


def check_prompts(
    tokenizer: Tokenizer, names: Sequence[str], templates: TemplatesLike, first_label: int
) -> None:
    """Refuse names and templates that make no prompts, or prompts that would be truncated.

    Args:
        tokenizer: of the text tower.
        names: of the classes.
        templates: for all names, or one sequence per name.
        first_label: label of the first name.

    Raises:
        UserError: an empty name, no template, a shared template without "{}", or a prompt that is
            too long for the text tower.
    """
    per_name = templates_of(templates, len(names))
    shared = any(isinstance(t, str) for t in templates)
    for template in {template for group in per_name for template in group}:
        if template.count("{}") != 1 and (shared or "{}" in template):
            raise UserError(f"prompt template {template!r} needs exactly one '{{}}'")
    for label, (name, group) in enumerate(zip(names, per_name, strict=True), first_label):
        if not name.strip():
            raise UserError(f"class {label} has an empty name")
        _check_length(tokenizer, name, group)


def _check_length(tokenizer: Tokenizer, name: str, templates: Sequence[str]) -> None:
    """Refuse a prompt that the tokenizer would truncate: classes could become identical."""
    encode: Any = getattr(tokenizer, "encode", None)
    length: Any = getattr(tokenizer, "context_length", None)
    for template in templates if encode and length else ():
        tokens = len(encode(template.replace("{}", name))) + 2  # with start and end
        if tokens > length:
            raise UserError(
                f"the prompt {template!r} with the class '{name}' has {tokens} tokens, and"
                f" this model reads {length}: shorten the template or the name"
            )


def tokenize(tokenizer: Tokenizer, names: Sequence[str], templates: TemplatesLike) -> list[Tensor]:
    """Return the token ids (templates, L) of the prompts of every name."""
    # replace, not format: a class name may contain braces
    return [
        tokenizer([t.replace("{}", name) for t in group])
        for name, group in zip(names, templates_of(templates, len(names)), strict=True)
    ]


def same_prompts(
    tokenizer: Tokenizer, names: Sequence[str], templates: TemplatesLike
) -> list[list[int]]:
    """Return groups of labels whose prompts are the same token ids in all templates.

    Raises:
        UserError: they are the same because the tokenizer would truncate them.
    """
    per_name = templates_of(templates, len(names))
    # Few share the prompt of their first template; the others need not be tokenised.
    first = tokenize(tokenizer, names, [group[:1] for group in per_name])
    groups = equal_rows(torch.cat(first))
    labels = [label for group in groups for label in group]
    for label in labels:
        _check_length(tokenizer, names[label], per_name[label])
    rows = tokenize(tokenizer, [names[i] for i in labels], [per_name[i] for i in labels])
    of_ids: dict[bytes, list[int]] = {}
    for label, ids in zip(labels, rows, strict=True):
        of_ids.setdefault(ids.numpy().tobytes(), []).append(label)
    return sorted(group for group in of_ids.values() if len(group) > 1)


def equal_rows(matrix: Tensor) -> list[list[int]]:
    """Return groups of rows of a matrix that are equal.

    Example:
        >>> equal_rows(torch.tensor([[1, 2], [0, 0], [1, 2]]))
        [[0, 2]]
    """
    _, group_of, sizes = matrix.unique(dim=0, return_inverse=True, return_counts=True)
    return [(group_of == g).nonzero().flatten().tolist() for g in (sizes > 1).nonzero().flatten()]


def name_same(groups: Sequence[Sequence[int]], names: Sequence[str], what: str) -> str:
    """Return a warning that names classes with the same prompts or text features.

    Args:
        groups: labels of classes that are the same.
        names: of all classes.
        what: the same in each group.
    """
    shown = [
        f"{' = '.join(repr(names[label]) for label in group[:5])}"
        f" (labels {', '.join(map(str, group[:5]))}{', ...' if len(group) > 5 else ''})"
        for group in groups[:5]
    ]
    more = f"; and {len(groups) - 5} more" if len(groups) > 5 else ""
    return (
        f"classes with the same {what} are never told apart by them: {'; '.join(shown)}{more}:"
        " rename them, with --class-names for example, or make them one class"
    )


def ensemble(features: Tensor, counts: Sequence[int]) -> Tensor:
    """Return one row per name: the mean of the unit vectors of its prompts.

    The ensemble of Radford et al. 2021 (section 3.1.4), before it is normalised again. The row of
    a name with one prompt is returned as it is.

    Args:
        features: (P, d), the prompts of one name after those of another.
        counts: prompts of each name.

    Example:
        >>> ensemble(torch.tensor([[2.0, 0], [0, 4], [0, 3]]), [2, 1])
        tensor([[0.5000, 0.5000],
                [0.0000, 3.0000]])
    """
    if min(counts) == max(counts) > 1:
        return F.normalize(features, dim=-1).view(len(counts), counts[0], -1).mean(1)
    if max(counts) > 1:
        groups = features.split(list(counts))
        return torch.stack(
            [g[0] if len(g) == 1 else F.normalize(g, dim=-1).mean(0) for g in groups]
        )
    return features
