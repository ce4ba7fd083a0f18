"""A mixture file that names its corpora trains by itself."""

import json


def test_corpora_of_the_mixture_file(run_lrm, corpus_path, tmp_path):
    mixture = tmp_path / "m.toml"
    mixture.write_text(
        f'languages = ["hr"]\n[[corpora]]\npath = "{corpus_path}"\nepochs = 0.5\n'
        '[[curriculum]]\nsampling = "unimax"\nmax_epochs = 2\n'
    )
    out = run_lrm(corpus_path=None, mixture_path=mixture, max_steps=1, save_steps=1)
    identity = json.loads((out / "checkpoint-1" / "run_identity.json").read_text())
    assert identity["samples in an epoch"] == 12  # six rows, and as many in Croatian
