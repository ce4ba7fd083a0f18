"""The quickstart's order of stages, what it skips, and what it says; every stage is a stand-in."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PYTHON = """#!/usr/bin/env bash
echo "lrm ${*:3}" >>calls
[[ $4 != unpack-emoji ]] || printf '%s\n' "$PWD/corpus${6:+/chosen/$6}" "a table"
[[ "${*:3}" != "${FAIL_AT:-}" ]]
"""
TRAINING = """#!/usr/bin/env bash
echo "$(basename "$0") $PRESET $DATA_PATH $OUTPUT_DIR $*" >>calls
[[ $(basename "$0") != "${FAIL_AT:-}" && -x $PYTHON ]] || exit 3
mkdir -p "$OUTPUT_DIR"
[[ $(basename "$0") == "${CUT_SHORT:-}" ]] || touch "$OUTPUT_DIR/COMPLETE"
"""
FULL_RUN = [
    "lrm corpus unpack-emoji",
    "lrm_pretrain.sh mini corpus/pretrain runs/mini-pretrain ",
    "lrm_finetune.sh mini corpus/finetune runs/mini --pretrain_mm_mlp_adapter "
    "runs/mini-pretrain/mm_projector.bin",
    "lrm eval --model runs/mini",
]


class Clone:
    """A folder with the real quickstart and stand-ins for what it calls."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "scripts" / "v1_5").mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "quickstart.sh", root / "scripts")
        shutil.copytree(ROOT / "scripts" / "lib", root / "scripts" / "lib")
        for name in ("lrm_pretrain.sh", "lrm_finetune.sh"):
            (root / "scripts" / "v1_5" / name).write_text(TRAINING)
        python = root / "env" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(PYTHON)
        python.chmod(0o755)

    def run(
        self, *args: str, fail_at: str = "", cut_short: str = "", languages: str = ""
    ) -> tuple[subprocess.CompletedProcess, list[str]]:
        calls = self.root / "calls"
        calls.unlink(missing_ok=True)
        names = ("PYTHON", "QUICKSTART_SMOKE", "QUICKSTART_VENV", "VIRTUAL_ENV")
        env = {name: value for name, value in os.environ.items() if name not in names}
        result = subprocess.run(
            ["bash", "scripts/quickstart.sh", "--no-install", *args],
            cwd=self.root,
            env=env
            | {"QUICKSTART_VENV": "env", "FAIL_AT": fail_at, "CUT_SHORT": cut_short}
            | {"LANGUAGES": languages},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        return result, calls.read_text().splitlines() if calls.exists() else []


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_runs_all_stages_in_order(clone: Clone) -> None:
    result, calls = clone.run()
    assert result.returncode == 0, result.stderr
    assert calls == FULL_RUN
    headings = [line for line in result.stdout.splitlines() if line.startswith("[")]
    assert [line.split()[0] for line in headings] == [f"[{i}/5]" for i in range(1, 6)]
    assert "demo --model runs/mini" in result.stdout.splitlines()[-1]


def test_goes_on_where_it_stopped(clone: Clone) -> None:
    result, calls = clone.run(fail_at="lrm_finetune.sh")
    assert result.returncode == 3
    assert calls == FULL_RUN[:3]
    assert "stage 4 of 5" in result.stderr and "same command again" in result.stderr

    result, calls = clone.run()
    assert result.returncode == 0
    assert calls == [FULL_RUN[0], *FULL_RUN[2:]]

    result, calls = clone.run()
    assert calls == [FULL_RUN[0], *FULL_RUN[3:]]
    assert result.stdout.count("Done before") == 2


def test_stage_without_a_result_is_an_error(clone: Clone) -> None:
    result, calls = clone.run(cut_short="lrm_pretrain.sh")
    assert result.returncode == 2
    assert calls == FULL_RUN[:2]
    assert "runs/mini-pretrain" in result.stderr


def test_fresh_trains_again(clone: Clone) -> None:
    clone.run()
    (clone.root / "runs" / "mini" / "stale").touch()
    _, calls = clone.run("--fresh")
    assert calls == FULL_RUN
    assert not (clone.root / "runs" / "mini" / "stale").exists()


def test_failing_evaluation_is_not_passed_over(clone: Clone) -> None:
    result, calls = clone.run(fail_at="eval --model runs/mini")
    assert result.returncode == 1
    assert calls == FULL_RUN[:5]
    assert "stage 5 of 5" in result.stderr


def test_smoke_keeps_apart_from_the_real_run(clone: Clone) -> None:
    _, calls = clone.run("--smoke")
    assert len(calls) == len(FULL_RUN)
    assert all("runs/smoke" in call for call in calls[1:])
    assert all("--max_steps" in call for call in calls[1:3])
    assert not (clone.root / "runs" / "mini").exists()


def test_each_choice_of_languages_has_its_own_run(clone: Clone) -> None:
    result, calls = clone.run(languages="hr, sw")
    assert result.returncode == 0, result.stderr
    assert calls == [
        "lrm corpus unpack-emoji --languages hr,sw",
        "lrm_pretrain.sh mini corpus/chosen/hr,sw/pretrain runs/mini-hr-sw-pretrain ",
        "lrm_finetune.sh mini corpus/chosen/hr,sw/finetune runs/mini-hr-sw "
        "--pretrain_mm_mlp_adapter runs/mini-hr-sw-pretrain/mm_projector.bin",
        "lrm eval --model runs/mini-hr-sw --languages en,hr,sw",
    ]
    _, calls = clone.run("--smoke", languages="all")
    assert calls[0] == "lrm corpus unpack-emoji --languages all"
    assert calls[3] == "lrm eval --model runs/smoke-all --limit 24"


def test_unknown_option_is_refused(clone: Clone) -> None:
    result, calls = clone.run("--frehs")
    assert result.returncode == 2
    assert "--frehs" in result.stderr and "--fresh" in result.stderr
    assert not calls
