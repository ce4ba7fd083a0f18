"""Made-up result files whose verdicts are known."""

import numpy as np
import pytest

from tools.reproduce import results as results_module
from tools.reproduce.results import pack_bits, read_results, write_result

LANGS = ("en", "cs", "hr")
NUM_PICTURES = 100
PER_PICTURE = 4


def _language(rng, share):
    right = [bool(one) for one in rng.random(NUM_PICTURES * PER_PICTURE) < share]
    return {
        "score": 100 * sum(right) / len(right),
        "right": pack_bits(right),
        "num_right": sum(right),
        "num_questions": len(right),
        "counts": {"questions": len(right), "answer_lang": {"en": 30, "cs": 60, "undecided": 10}},
        "fidelity": {},
    }


@pytest.fixture
def make_results(tmp_path):
    """Write results from shares of right answers: (English, others) by setting."""

    def make(shares, seeds=(0, 1, 2), names=("mini-mmbench", "scenes")):
        questions = {
            name: {
                "keys": [f"{i:04}" for i in range(NUM_PICTURES * PER_PICTURE)],
                "pictures": [f"{i // PER_PICTURE}.jpg" for i in range(NUM_PICTURES * PER_PICTURE)],
            }
            for name in names
        }
        folder = tmp_path / "results"
        rng = np.random.Generator(np.random.PCG64(0))
        for setting, (english, others) in shares.items():
            for seed in seeds:
                content = {
                    "format": results_module.FORMAT,
                    "setting": setting,
                    "seed": seed,
                    "steps": {"pretrain": 4, "finetune": 8},
                    "questions_sha256": results_module._digest(questions),
                    "benchmarks": {
                        name: {
                            "languages": {
                                lang: _language(rng, english if lang == "en" else others)
                                for lang in LANGS
                            }
                        }
                        for name in names
                    },
                }
                write_result(folder, content, questions)
        return folder, read_results(folder)

    return make
