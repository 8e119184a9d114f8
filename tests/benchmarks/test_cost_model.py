"""The cost model against numbers worked out by hand, and its tables against those on the page."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import cost_model, published
from benchmarks.cost_model import ARCHITECTURES, Architecture, Machine, Settings, Tower
from benchmarks.flops import image_tower_flops

# An image of 3 rows, two blocks of width 2; patches of 5 numbers; prompts of 4 tokens, width 1.
SMALL = Architecture(Tower(2, 2, 3), 5, Tower(1, 3, 4), 7, 10)
MACHINE = Machine("by hand", 1000.0, 500.0, 0.5, 0.25, 64.0, 2.0)


def test_operations_by_hand() -> None:
    # patches 2*2*5*2 = 40; block 48*4*3 + 12*9*2 = 792; last 2*(16*3 + 80) + 12*3*2 = 328;
    # projection 4*2*7 = 56
    assert cost_model.image_step_flops(SMALL) == 40 + 792 + 328 + 56
    # 24*4*3 + 4*9*2 = 360; 16*3 + 80 + 4*3*2 = 152; 2*2*7 = 28
    assert cost_model.image_forward_flops(SMALL) == 40 + 360 + 152 + 28
    assert cost_model.prompt_flops(SMALL) == 24 * 4 * 3


@pytest.mark.parametrize(("name", "made"), [("ViT-B/16", "ViT-B-16"), ("ViT-L/14", "ViT-L-14")])
def test_architectures_are_those_of_open_clip(name: str, made: str) -> None:
    clip, model = published.load(made, "meta"), ARCHITECTURES[name]
    assert cost_model.image_step_flops(model) == image_tower_flops(clip.visual, 1, True)
    assert (clip.visual.output_dim, clip.transformer.width) == (model.features, model.text.width)
    norms = [p for n, p in clip.visual.named_parameters() if "ln" in n]
    biases = [p for n, p in clip.named_parameters() if n.endswith("mlp.c_proj.bias")]
    text = [p for p in biases if p.shape == (model.text.width,)]
    assert sum(p.numel() for p in (*norms, *text[-12:])) == model.trained


def test_a_step_by_hand() -> None:
    one = cost_model.step_seconds(SMALL, MACHINE, 1, batch=6, prompts=5)
    assert one == (6 * 1216 / 1000, 5 * 576 / 1000, 0, 0.5)
    # Four processes encode two images each, and every prompt: 5 is less than 16 for each.
    four = cost_model.step_seconds(SMALL, MACHINE, 4, batch=6, prompts=5)
    sent = 2 * 0.75 * 10 * 4 + 0.75 * 6 * 7 * 4
    assert four[:2] == (2 * 1216 / 1000, 5 * 576 / 1000)
    assert four.exchange == pytest.approx(3 * 0.25 * 2 + sent / 64)
    # From 16 prompts for each they are divided, and gathered in a fourth exchange.
    many = cost_model.step_seconds(SMALL, MACHINE, 4, batch=6, prompts=65)
    assert many.text == 17 * 576 / 1000
    assert many.exchange == pytest.approx(4 * 0.25 * 2 + (sent + 0.75 * 65 * 7 * 4) / 64)
    found = cost_model.efficiency(SMALL, MACHINE, 4, 6, 65)
    alone = cost_model.step_seconds(SMALL, MACHINE, 1, 6, 65).total
    assert found == pytest.approx(alone / (4 * many.total)) and found < 1
    assert cost_model.efficiency(SMALL, MACHINE, 1, 6, 65) == 1


def test_a_stream_by_hand() -> None:
    how = Settings(classes=2, images=7, tests=3, epochs=2, batch=4)
    cost = cost_model.stream(SMALL, MACHINE, 5, how=how)
    step = (4 * 1216 + 2 * 576) / 1000 + 0.5
    assert cost.training == pytest.approx(5 * 2 * 2 * step)
    assert cost.evaluation == pytest.approx(5 * (15 * 580 + 10 * 288) / 500)
    entry = 4 * (10 + 49 + 14)
    assert cost.bank_bytes == 5 * entry
    assert cost.bank == pytest.approx(5 * (2 + entry / 1e9))
    assert (cost.router_bytes, cost.statistics_bytes) == (8 * (49 + 70), 8 * (49 + 70 + 10))
    assert cost.heads_bytes == 5 * cost.statistics_bytes
    seen = cost_model.stream(SMALL, MACHINE, 5, how=how, seen=True)
    assert seen.training - cost.training == pytest.approx(20 * 4 * 576 / 1000)  # 6 prompts, not 2
    rarely = cost_model.stream(SMALL, MACHINE, 5, how=how._replace(scored=3))
    assert rarely.evaluation == pytest.approx(cost.evaluation * 2 / 5)


def test_measurements_of_other_pages_are_predicted() -> None:
    """A step of docs/performance.md, and what a prompt more costs in fp32, at 272 GFLOP/s."""
    prompt = 2 * cost_model.prompt_flops(ARCHITECTURES["ViT-B/16"]) / 272e9
    assert prompt == pytest.approx(2.1e-3, rel=0.2)
    found = cost_model.step_seconds(ARCHITECTURES["ViT-B/16"], cost_model.MEASURED, 1, 16, 100)
    assert found.total == pytest.approx(1.16, rel=0.1)


def test_constants_of_a_gpu_are_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = ARCHITECTURES["ViT-B/16"]
    ways = {"image_tower_bf16": {"seconds": 0.02}, "ours_bf16": {"seconds": 0.03}}
    found = {
        "classes": 100, "machine": {"processor": "a GPU"},
        "parts": {"clipfit:ViT-B-16:64": {"found": ways}},
    }  # fmt: skip
    machine = cost_model.machine_of(found)
    assert machine.rate == machine.scoring == 64 * cost_model.image_step_flops(model) / 0.02
    assert cost_model.step_seconds(model, machine).total == pytest.approx(0.03)
    assert machine.bandwidth == cost_model.ASSUMED.bandwidth
    found["parts"] |= {
        "evaluate:ViT-B-16": {"found": {"ours_bf16": {"images_per_second": 10.0}}},
        "all_reduce": {
            "found": {
                "processes": 4, "clipfit": {"seconds": 0.002},
                "all_of_vit_b_16": {"bytes_per_second": 5.0},
            }
        },
    }  # fmt: skip
    machine = cost_model.machine_of(found)
    assert machine.scoring == 10 * cost_model.image_forward_flops(model)
    assert (machine.latency, machine.bandwidth) == (0.001, 5.0)
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(found))
    cost_model.main(["--gpu", str(file)])
    assert "| a GPU; 100 prompts |" in capsys.readouterr().out
    file.write_text('{"parts": {}}')
    with pytest.raises(SystemExit):
        cost_model.main(["--gpu", str(file)])
    assert "it has no 'clipfit:ViT-B-16:64'" in capsys.readouterr().err


def test_the_tables_of_the_page_are_those_of_the_model() -> None:
    page = Path("docs/scaling.md").read_text()
    written = dict(re.findall(r"<!-- cost_model: (\S+) -->\n\n(.*?)\n\n", page, re.DOTALL))
    assert written == cost_model.tables()
