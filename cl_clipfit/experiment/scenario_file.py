"""Read what a scenario's file declares about its runs, and load its data."""

from typing import Literal

from pydantic import BaseModel, StrictStr, ValidationError

from cl_clipfit.clip import DEFAULT_MODEL
from cl_clipfit.config.options import Count, Options, explain
from cl_clipfit.data.source import DataRequest, Source
from cl_clipfit.errors import UserError
from cl_clipfit.registry import Entry

BUNDLED_PROBES = ("glyph-letters", "pretraining-shapes")


class ScenarioFacts(BaseModel):
    """The literals of a scenario file that affect a run.

    Attributes:
        TASKS: default number of tasks; "yours" if the data determine it.
        CLASS_ORDER: default class order.
        MODEL: default model; "features" if the data are encoded images.
        PROBES: default probes; bundled ones are used only with the mini CLIP.
        DOWNLOAD: "none" if the scenario includes its data and takes no `--data-dir`.
        PROTOCOL: which numbers the results table shows; see `report.tables`.
    """

    TASKS: Count | Literal["yours"] | None = None
    CLASS_ORDER: StrictStr | None = None
    MODEL: StrictStr = DEFAULT_MODEL
    PROBES: tuple[StrictStr, ...] = BUNDLED_PROBES
    DOWNLOAD: StrictStr = ""
    PROTOCOL: StrictStr = "class-incremental"


def read_facts(entry: Entry, data: Entry) -> ScenarioFacts:
    """Validate a scenario's literals; missing ones are those of the scenario whose data it uses.

    Raises:
        UserError: a literal has the wrong type; the message names the file.
    """
    try:
        return ScenarioFacts.model_validate({**data.about, **entry.about})
    except ValidationError as error:
        raise UserError(f"{entry.file.name}: {explain(error)}") from error


def load_source(entry: Entry, options: Options, request: DataRequest) -> Source:
    """Call a scenario's `load`.

    Raises:
        UserError: it is missing, fails, or does not return a `Source`.
    """
    load = getattr(entry.load(), "load", None)
    if not callable(load):
        raise UserError(f"{entry.file.name}: a scenario needs a function load(options, request)")
    try:
        source = load(options, request)
    except UserError:
        raise
    except Exception as error:  # a scenario's own code may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"scenario {entry.name} cannot load its data: {reason}") from error
    if not isinstance(source, Source):
        raise UserError(f"{entry.file.name}: load() must return a cl_clipfit.Source")
    return source
