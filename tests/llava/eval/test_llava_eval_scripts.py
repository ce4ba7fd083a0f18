"""The benchmark scripts: which commands they run, and that what they run takes their flags."""

import argparse
import importlib
import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "scripts" / "v1_5" / "eval"
NAMES = (
    "gqa llavabench mmbench mmbench_cn mme mmvet pope qbench qbench_zh seed sqa textvqa vizwiz "
    "vqav2"
).split()
ON_ALL_GPUS = ("gqa", "seed", "vqav2")
EXTERNAL = ("eval.py",)  # of GQA
VARIABLES = (
    "MODEL_PATH MODEL_BASE CKPT CONV_MODE EVAL_DIR CUDA_VISIBLE_DEVICES PYTHON CHUNKS".split()
)


def run(script, *args, **variables):
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        ["bash", f"scripts/{script}.sh", *args],
        cwd=ROOT,
        env=env | variables,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def dry_run(name, *args, **variables):
    """The commands that a script would run, as lists of words, without the interpreter."""
    split = ["dev"] if name.startswith("qbench") else []
    script = name if name.startswith("sqa_eval") else f"v1_5/eval/{name}"
    result = run(script, *split, *args, "--dry-run", **variables)
    assert result.returncode == 0, result.stderr
    commands = [shlex.split(line) for line in result.stdout.splitlines()]
    return [c[2:] if c[0].startswith("CUDA_") else c[1:] for c in commands]


class Parsed(Exception):
    pass


@pytest.fixture
def parse(monkeypatch):
    """Hand a command's flags to the program that it calls; return what that makes of them."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    parse_args = argparse.ArgumentParser.parse_args

    def stop_after(self, *args, **kwargs):
        raise Parsed(parse_args(self, *args, **kwargs))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_after)

    def parse_command(words):
        if words[0] == "-m":
            module, flags = importlib.import_module(words[1]), words[2:]
        else:
            module, flags = importlib.import_module(Path(words[0]).stem), words[1:]
        with pytest.raises(Parsed) as stopped:
            module.main(flags)
        return stopped.value.args[0]

    return parse_command


def test_all_scripts_are_here():
    assert sorted(path.stem for path in FOLDER.glob("*.sh")) == NAMES


@pytest.mark.parametrize("name", [*NAMES, "sqa_eval_batch", "sqa_eval_gather"])
def test_flags_are_those_of_the_programs(name, parse):
    for words in dry_run(name, *([] if name == "sqa_eval_gather" else ["--batch-size", "16"])):
        if Path(words[0]).name in EXTERNAL:
            continue
        args = parse(words)
        if hasattr(args, "temperature"):
            assert (args.temperature, args.batch_size) == (0, 16)
            assert args.model_path == "liuhaotian/llava-v1.5-13b"
            is_v1 = name.startswith(("qbench", "sqa_eval"))
            assert args.conv_mode == ("llava_v1" if is_v1 else "vicuna_v1")


@pytest.mark.parametrize("name", NAMES)
def test_scorers_read_what_was_written(name, parse):
    """The first command's answers are an input of the next one."""
    first, *rest = dry_run(name, EVAL_DIR="data", MODEL_PATH="some/model", CKPT="ck")
    args = parse(first)
    assert args.model_path == "some/model" and "ck" in args.answers_file or "qbench" in name
    if name in ON_ALL_GPUS:
        written = str(Path(args.answers_file).with_name("merge.jsonl"))
        assert Path(args.answers_file).name == "1_0.jsonl"
    else:
        written = args.answers_file
    if not rest:
        return
    given = vars(parse(rest[0]))
    if name == "mme":
        assert written == f"{given['data_dir']}/answers/{given['experiment']}.jsonl"
        folder = f"{given['data_dir']}/eval_tool/answers/{given['experiment']}"
        assert parse(rest[1]).results_dir == folder
    elif "experiment" in given:
        assert written == f"{given['result_dir']}/{given['experiment']}.jsonl"
    elif "ckpt" in given:
        folder = f"{given['dir']}/answers/{given['split']}/{given['ckpt']}"
        assert written == f"{folder}/merge.jsonl"
    else:
        flat = [
            v for value in given.values() for v in (value if isinstance(value, list) else [value])
        ]
        assert written in flat


def test_one_chunk_on_each_gpu():
    commands = dry_run("vqav2", CUDA_VISIBLE_DEVICES="4,5,7")
    chunks = [words[words.index("--chunk-idx") + 1] for words in commands[:3]]
    assert chunks == ["0", "1", "2"]
    assert all(words[words.index("--num-chunks") + 1] == "3" for words in commands[:3])
    assert len(dry_run("sqa_eval_batch")) == 8


@pytest.fixture
def fake_python(tmp_path):
    """An interpreter that writes its chunk's number into the answers file, or fails for one."""
    path = tmp_path / "bin" / "python"
    path.parent.mkdir()
    path.write_text(
        "#!/usr/bin/env bash\n"
        "while (($#)); do case $1 in --answers-file) f=$2;; --chunk-idx) i=$2;; esac; shift; done\n"
        '[[ -z ${f:-} ]] && exit 0\n[[ $i != "${FAIL:-none}" ]] || exit 3\n'
        'mkdir -p "$(dirname "$f")"; echo "$CUDA_VISIBLE_DEVICES:$i" >"$f"\n'
    )
    path.chmod(0o755)
    (tmp_path / "seed_bench").mkdir()
    return {"PYTHON": str(path), "EVAL_DIR": str(tmp_path), "CKPT": "c"}


def test_chunks_are_merged_in_order(fake_python, tmp_path):
    (tmp_path / "seed_bench" / "SEED-Bench.json").touch()
    merged = tmp_path / "seed_bench" / "answers" / "c" / "merge.jsonl"
    result = run("v1_5/eval/seed", **fake_python, CUDA_VISIBLE_DEVICES="3,1", FAIL="1")
    assert result.returncode == 2 and not merged.exists()
    assert "chunk 1 of 2 failed" in result.stderr and "goes on where it stopped" in result.stderr
    result = run("v1_5/eval/seed", **fake_python, CUDA_VISIBLE_DEVICES="3,1")
    assert result.returncode == 0, result.stderr
    assert merged.read_text() == "3:0\n1:1\n"


def test_what_is_missing_is_said_first(fake_python):
    result = run("v1_5/eval/seed", **fake_python)
    assert result.returncode == 2
    assert "SEED-Bench.json is missing: it holds the right answers" in result.stderr
    result = run("v1_5/eval/qbench", "--dry-run")
    assert result.returncode == 2 and "expected dev or test, found: --dry-run" in result.stderr
