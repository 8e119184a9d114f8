"""Groups of settings: what a stream is made of is stated once, and everything follows from it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cl_clipfit import RunConfig, UserError
from cl_clipfit.config.command import (
    ComputeSettings,
    CutSettings,
    DataSettings,
    OutputSettings,
    StreamSettings,
    TrainingSettings,
)
from cl_clipfit.config.parsing import parse_command, parse_spec
from cl_clipfit.experiment.identity import config_of
from cl_clipfit.experiment.names import settled
from cl_clipfit.experiment.prepare import prepare
from cl_clipfit.registry import Registry
from cl_clipfit.runtime.progress import Progress
from tests.support.tiny import PLUGIN

GROUPS = (StreamSettings, DataSettings, TrainingSettings, ComputeSettings, OutputSettings)
CUTS: dict[str, Any] = {"shots": 2, "validation": 0.5, "limit": 3, "online": 4, "blurry": 0.25}


def test_every_setting_is_in_one_group() -> None:
    names = [name for group in GROUPS for name in group.model_fields]
    assert len(names) == len(set(names))
    assert set(names) == set(RunConfig.model_fields)


def test_a_group_holds_its_settings_and_what_was_given_of_them() -> None:
    config = RunConfig(scenario="tiny-stream", shots=3, lr=0.1)
    stream = config.group(StreamSettings)
    assert type(stream) is StreamSettings
    assert (stream.scenario, stream.shots) == ("tiny-stream", 3)
    assert stream.model_fields_set == {"scenario", "shots"}


@pytest.mark.parametrize("name", CutSettings.model_fields)
def test_whatever_cuts_a_stream_names_the_run_and_is_written_down(name: str) -> None:
    """A new option needs no line in the digest or in `config.yaml`, but a value here."""
    common: dict[str, Any] = {
        "scenario": "tiny-stream", "strategy": ["zero-shot"], "plugin": PLUGIN[1:],
    }  # fmt: skip
    plain, cut = (
        prepare(RunConfig(**common, **more), Progress()) for more in ({}, {name: CUTS[name]})
    )
    digests = [prepared.folder(prepared.plans[0]).digest for prepared in (plain, cut)]
    assert digests[0] != digests[1]
    written = config_of(cut.stream, cut.plans[0], cut.command)
    assert written[name] == CUTS[name]
    assert name not in config_of(plain.stream, plain.plans[0], plain.command)
    assert len(cut.scenario(0).train.labels) <= len(plain.scenario(0).train.labels)


def test_a_command_is_parsed_once_into_names_and_settings() -> None:
    config = RunConfig(
        scenario="mtil:order=2", strategy=["full", "full:lr=1e-4", "full"], set=["full.epochs=2"]
    )
    command = parse_command(config)
    assert command.scenario == parse_spec("mtil:order=2", "--scenario")
    assert [spec.text for spec in command.strategies] == ["full", "full:lr=1e-4"]
    assert command.strategies[1].settings == {"lr": "1e-4"}
    assert command.settings_of("full") == {"epochs": "2"}
    assert command.settings_of("clipfit") == {}


def test_what_cannot_be_parsed_is_refused() -> None:
    for label in ("full:lr=1e-4,lr", "full:2", "full:", ":replay"):
        with pytest.raises(UserError, match="expected NAME:key=value"):
            parse_command(RunConfig(strategy=[label]))
    for scenario in ("mtil:order", "split-digits:"):
        with pytest.raises(UserError, match=r"--scenario .*: expected NAME:key=value"):
            parse_command(RunConfig(scenario=scenario))
    with pytest.raises(UserError, match=r"expected NAME.key=value"):
        parse_command(RunConfig(set=["full"]))


def test_a_bare_word_is_the_option_that_the_strategy_names() -> None:
    registry = Registry()
    entry = registry.get("strategies", "avalanche")
    (spec,) = parse_command(RunConfig(strategy=["avalanche:ewc,mode=online"])).strategies
    assert settled(spec, entry).settings == {"plugin": "ewc", "mode": "online"}
    (bare,) = parse_command(RunConfig(strategy=["avalanche"])).strategies
    assert settled(bare, entry) is bare
    with pytest.raises(UserError, match="full:ewc: expected NAME:key=value"):
        settled(replace(spec, text="full:ewc"), registry.get("strategies", "full"))


def test_the_limit_is_that_of_probes_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "scenario": "split-digits", "strategy": ["zero-shot"], "probe": ["glyph-letters"],
        "output": tmp_path,
    }  # fmt: skip
    whole, limited = (prepare(RunConfig(**settings, limit=n), Progress()) for n in (None, 3))
    counts = [p.probes["glyph-letters"].test.labels.bincount() for p in (whole, limited)]
    assert counts[0].min() > 3
    assert counts[1].tolist() == [3] * len(counts[0])
    assert limited.probe_hashes != whole.probe_hashes
