"""Methods that learn the first words of the prompt and do not change the towers."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from cl_clipfit.clip.context import learn_context
from cl_clipfit.clip.prompts import DEFAULT_TEMPLATES, TemplatesLike
from cl_clipfit.config.options import Count, Options, ScopeOptions
from cl_clipfit.training.strategy import CLIPStrategy


class PromptOptions(ScopeOptions):
    """Settings that CoOp and the methods built on it share."""

    context_tokens: Count | None = Field(
        None, description="learned tokens; default as many as the template's words before the name"
    )


class PromptStrategy(CLIPStrategy):
    """Learn one context for all classes, initialised with the words of the template.

    Raises:
        UserError: the template or the model does not allow a context; see `learn_context`.
    """

    towers = ("text",)
    options_class: ClassVar[type[Options]] = PromptOptions
    options: PromptOptions

    def __init__(self, **kwargs: Any) -> None:
        given = kwargs.get("templates", DEFAULT_TEMPLATES)
        shared = all(isinstance(template, str) for template in given)
        super().__init__(**kwargs if shared else {**kwargs, "templates": DEFAULT_TEMPLATES})
        if not shared:
            self.warn(f"learned prompts use one template for all classes: {self.templates[0]!r}")
        learn_context(self.model, self.options.context_tokens, self.templates[0])
        if len(self.templates) > 1:
            self.warn(f"learned prompts use only the first template: {self.templates[0]!r}")

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the context."""
        assert self.model.context is not None
        return [self.model.context]

    def probe_features(self, names: Sequence[str], templates: TemplatesLike) -> Tensor:
        """Encode a probe's names after the learned context, as CoOp transfers to other data sets.

        The stream's template replaces those of the probe, because its words were not learned.
        """
        return self.model.encode_names(names, self.templates)

    def zero_shot_point(self) -> dict[str, Tensor]:
        """Return the embeddings of the template's words."""
        return {name: self.model.pretrained_values[name] for name in self.selection}
