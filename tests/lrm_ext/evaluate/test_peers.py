"""`lrm eval` runs other projects' checkpoints as it runs ours, by what their config.json says."""

import json

import pytest
from peer_checkpoints import PEERS, write_peer

from llava.errors import ConfigError
from lrm_ext.evaluate.backends import choose_backend
from lrm_ext.evaluate.report import score_run
from lrm_ext.evaluate.runner import EvalConfig, run_evaluation

NAMES = ("Pangea-7B", "PALO-7B", "Maya-8B", "LLaVA-1.6-34B", "LLaVA-OneVision-0.5B",
         "LLaVA-NeXT-Interleave-7B")  # fmt: skip


def written(name, tmp_path, benchmark_dir, monkeypatch, **changes):
    """The folder's name says nothing: it is the tower's folder that the working directory has."""
    monkeypatch.chdir(tmp_path)
    write_peer(tmp_path, tmp_path / "model", name, **changes)
    return EvalConfig(
        model_path=tmp_path / "model", benchmarks=("toy",), benchmark_dir=benchmark_dir,
        batch_size=4, max_new_tokens=4, device="cpu",
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_it_is_evaluated(name, tmp_path, benchmark_dir, monkeypatch):
    config = written(name, tmp_path, benchmark_dir, monkeypatch)
    assert choose_backend(config).identity()["template"] == PEERS[name].template
    report = score_run(config, run_evaluation(config), "lrm eval")
    for lang in ("en", "hr"):
        lines = (config.predictions_dir / f"toy.{lang}.jsonl").read_text().splitlines()
        assert len(lines) == 9
    assert {result.name for result in report.benchmarks} == {"toy"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "tinyllava", "vision_config": {}}, "lrm import tinyllava"),
        ({"model_type": "centurio", "vision_config": {}}, "multiscale-pool"),
        ({"mm_projector_type": "ldpnetv2"}, "MobilePALO"),
    ],
)
def test_one_that_is_not_read_is_refused_by_its_configuration(
    changes, message, tmp_path, benchmark_dir, monkeypatch
):
    config = written("PALO-7B", tmp_path, benchmark_dir, monkeypatch)
    path = config.model_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ConfigError, match=message):
        choose_backend(config)
