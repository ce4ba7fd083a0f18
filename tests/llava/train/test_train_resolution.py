"""Trainings with tiles, several images in a sample and text among them."""

import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_distributed import ROOT, launch, losses

from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.batching import DataCollatorForSupervisedDataset
from llava.data.dataset import num_ids_within
from llava.data.sample import SampleError
from llava.errors import ConfigError
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_projector.builder import read_tensors
from llava.train.llava_trainer import describe_batch
from llava.train.metrics import read_metrics

SIZES = [(20, 30), (90, 40), (30, 150), (61, 60), (170, 160), (28, 28)]
TILED = {
    "image_aspect_ratio": "anyres_max_4",
    "image_grid_pinpoints": "(1x1),...,(4x4)",
    "mm_patch_merge_type": "spatial_unpad",
    "model_max_length": 512,
}


def turns(*texts):
    roles = ("human", "gpt")
    return [{"from": roles[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def mixed_data(tmp_path_factory):
    """One image, several in one and in every turn, text only."""
    folder = tmp_path_factory.mktemp("mixed")
    for i, size in enumerate(SIZES):
        gradient = Image.linear_gradient("L").resize(size)
        Image.merge("RGB", [gradient, gradient.rotate(90), gradient]).save(folder / f"{i}.png")
    records = [
        {"id": f"one {i}", "image": f"{i}.png", "conversations": turns("What?\n<image>", "A.")}
        for i in range(len(SIZES))
    ]
    records += [
        {
            "id": "between words", "image": ["0.png", "1.png"],
            "conversations": turns("Is <image> the same as <image> here?", "No."),
        },
        {"id": "text", "conversations": turns("Say B.", "B it is.")},
        {
            "id": "every turn", "image": ["2.png", "3.png", "4.png"],
            "conversations": turns("<image> C?", "C.", "And <image>?", "D.", "Or <image>?", "E."),
        },
        {"id": "more text", "conversations": turns("Why?", "So.", "Truly?", "Yes.")},
    ]  # fmt: skip
    (folder / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


@pytest.fixture
def mixed(mixed_data):
    return {"data_path": mixed_data / "data.json", "image_folder": mixed_data}


def rows_of(dataset, indices, tokenizer):
    batch = DataCollatorForSupervisedDataset(tokenizer)([dataset[i] for i in indices])
    return {key: value for key, value in batch.items() if key != "image_positions"}


def losses_of(model, batch, packing):
    """Each sample's summed loss, of a padded or a packed batch."""
    vision = batch["images"], batch.get("image_sizes")
    with torch.no_grad():
        logits = model.eval()(**batch, packing=packing).logits
        ids, mask, labels = (batch[key] for key in ("input_ids", "attention_mask", "labels"))
        if packing:
            rows = model.pack_inputs(ids, mask, labels, *vision)
            labels, borders = rows.labels, rows.cu_seq_lens.tolist()
        else:
            labels = model.prepare_inputs_labels_for_multimodal(
                ids, None, mask, None, labels, *vision
            )[5]
    found = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    if not packing:
        return found.sum(dim=1), None
    pairs = zip(borders, borders[1:], strict=False)
    lengths = [end - start for start, end in zip(borders, borders[1:], strict=False)]
    return torch.stack([found[0, start : end - 1].sum() for start, end in pairs]), lengths


@pytest.mark.parametrize("settings", [TILED, {"image_aspect_ratio": "pad"}])
def test_padded_and_packed_give_the_losses_of_each_sample(settings, trained, mixed):
    trainer = trained(**mixed, **settings)
    dataset, model, tokenizer = trainer.train_dataset, trainer.model, trainer.processing_class
    order = [3, 6, 7, 2, 8, 0, 9]
    batch = rows_of(dataset, order, tokenizer)
    alone = torch.cat([losses_of(model, rows_of(dataset, [i], tokenizer), False)[0] for i in order])
    assert (alone > 0).all()
    padded, _ = losses_of(model, batch, packing=False)
    packed, lengths = losses_of(model, batch, packing=True)
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    # known before any image is opened
    assert [dataset.lengths[i] for i in order] == lengths


def test_a_run_learns_the_newline_and_counts_positions(trained, mixed, tmp_path):
    before = trained(**mixed, **TILED, output_dir=tmp_path / "one", max_steps=1)
    trainer = trained(
        **mixed, **TILED, output_dir=tmp_path / "two", max_steps=3, packing=True,
        train_sampling_strategy="group_by_length",
    )  # fmt: skip
    one, two = (
        read_tensors(tmp_path / name / "model.safetensors")["model.image_newline"]
        for name in ("one", "two")
    )
    assert not torch.equal(one, two)
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["image_grid_pinpoints"][:2] == [[28, 28], [28, 56]]
    assert config["image_aspect_ratio"] == "anyres_max_4"
    lines = read_metrics(tmp_path / "two" / "metrics.jsonl")
    assert all(line["tokens_per_second"] > 0 for line in lines if "loss" in line)
    batch = before.data_collator([before.train_dataset[i] for i in (4, 6, 7)])
    lengths = [before.train_dataset.lengths[i] for i in (4, 6, 7)]
    positions, tiles = zip(*batch["image_positions"], strict=True)
    ids = [len(before.train_dataset[i]["input_ids"]) for i in (4, 6, 7)]
    # a sentinel is an id and no position
    assert [i + p - n for i, p, n in zip(ids, positions, (1, 2, 0), strict=True)] == lengths
    assert tiles == (17, 2, 0) and len(batch["images"]) == 4
    text = f"{sum(tiles)} tiles of images or frames of videos in {sum(positions)} positions"
    assert text in describe_batch(batch)
    tokenizer, model, processor, _ = load_pretrained_model(
        str(tmp_path / "two"), None, "llava", device="cpu"
    )
    image = Image.open(mixed["image_folder"] / "4.png")
    ids = tokenizer_image_token("<image>\nWhat?", tokenizer, return_tensors="pt")[None]
    pixels = process_images([image], processor, model.config)
    with torch.no_grad():
        logits = model(ids, images=pixels, image_sizes=[image.size]).logits
    assert logits.shape[1] == ids.shape[1] - 1 + trainer.train_dataset._positions([image.size])[0]


def test_the_projector_stage_saves_the_newline_for_the_next(trained, mixed, tmp_path):
    stage = {**mixed, **TILED, "tune_mm_mlp_adapter": True}
    first = trained(**stage, max_steps=2, save_steps=1, output_dir=tmp_path / "first")
    parts = {name: p.requires_grad for name, p in first.model.named_parameters()}
    assert parts["model.image_newline"] and not parts["lm_head.weight"]
    found = read_tensors(tmp_path / "first" / "mm_projector.bin")
    assert len(found) == 5
    newline = found["model.image_newline"]
    assert torch.equal(newline, first.model.get_model().image_newline)
    steps = [tmp_path / "first" / f"checkpoint-{i}" / "mm_projector.bin" for i in (1, 2)]
    was, is_now = (read_tensors(path)["model.image_newline"] for path in steps)
    assert not torch.equal(was, is_now) and torch.equal(is_now, newline)
    # an exact resume needs it, too
    again = trained(**stage, max_steps=2, save_steps=1, output_dir=tmp_path / "first")
    assert torch.equal(again.model.get_model().image_newline, newline)
    second = trained(
        **mixed, **TILED, pretrain_mm_mlp_adapter=tmp_path / "first" / "mm_projector.bin",
        learning_rate=0, output_dir=tmp_path / "second",
    )  # fmt: skip
    assert torch.equal(second.model.get_model().image_newline, newline)
    # the base and the file together are a model
    model = load_pretrained_model(
        str(tmp_path / "first"), str(first.model.config.name_or_path), "llava", device="cpu"
    )[1]
    assert torch.equal(model.get_model().image_newline, newline)


def test_a_checkpoint_without_tiles_gets_a_newline(trained, mixed, tmp_path):
    trained(**mixed, output_dir=tmp_path / "flat")
    trained(**mixed, **TILED, model_name_or_path=tmp_path / "flat", output_dir=tmp_path / "tiled")
    assert "model.image_newline" in read_tensors(tmp_path / "tiled" / "model.safetensors")


def test_lora_saves_the_newline(trained, mixed, tmp_path):
    trained(**mixed, **TILED, lora_enable=True, lora_r=2, output_dir=tmp_path / "lora")
    tensors = read_tensors(tmp_path / "lora" / "non_lora_trainables.bin")
    assert "base_model.model.model.image_newline" in tensors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_grid_pinpoints": None}, "expected a list.*or a range"),
        ({"image_aspect_ratio": "anyres_max_x"}, "anyres_max_N"),
        ({"image_grid_pinpoints": "[(28, 56), (30, 56)]"}, r"\[30, 56\]. are no multiples of 28"),
        ({"mm_patch_merge_type": "flat"}, "needs --mm_patch_merge_type spatial_unpad"),
        ({"mm_vision_select_feature": "cls_patch"}, "the tower gives 17: give .* flat"),
        # 4 x 4, and twelve lines of twelve with a newline
        ({"model_max_length": 172}, "an image of 84 x 84 pixels takes 172 positions"),
    ],
)
def test_tiles_that_do_not_fit_are_an_error_before_the_first_step(
    changes, message, flags, run_train, mixed, tmp_path
):
    settings = {**mixed, **TILED, "image_aspect_ratio": "anyres_max_9", **changes}
    with pytest.raises(ConfigError, match=message):
        run_train(flags(**settings))
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("images", "text", "reason", "message"),
    [
        (
            ["0.png"] * 200,
            "<image>" * 200,
            "too_many_images",
            "200 images take 3,200 positions.*512",
        ),
        (["0.png"] * 2, "<image>", "image_mismatch", "hold 1 <image>, expected 2"),
        (["0.png"] * 2, "<image>" * 3, "image_mismatch", "hold 3 <image>, expected 2"),
        (["0.png", "9.png"], "<image>" * 2, "missing_image", "9.png does not exist"),
    ],
)
def test_images_that_do_not_fit_are_an_error_before_the_first_step(
    images, text, reason, message, flags, run_train, mixed, tmp_path
):
    record = {"id": "bad", "image": images, "conversations": turns(text, "A.")}
    (tmp_path / "bad.json").write_text(json.dumps([record]), encoding="utf-8")
    settings = {**mixed, **TILED, "data_path": tmp_path / "bad.json"}
    with pytest.raises(SampleError, match=f"sample 'bad'.*{message}") as error:
        run_train(flags(**settings))
    assert error.value.reason == reason
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_ids_that_lie_within_a_limit():
    image = IMAGE_TOKEN_INDEX
    assert num_ids_within([1, image, 2, 3], [10], 13) == 4
    assert num_ids_within([1, image, 2, 3], [10], 12) == 3
    assert num_ids_within([1, image, 2, 3], [10], 10) == 1
    assert num_ids_within([1, 2, image, 3, image, 4], [4, 5], 12) == 5
    assert num_ids_within([1, 2, 3], [], 2) == 2


def test_a_sample_that_is_cut_keeps_the_images_whose_places_are_left(trained, mixed, tmp_path):
    """Its places lie in every turn; the model cuts again after the images have taken theirs."""
    trainer = trained(**mixed, **TILED)
    dataset, tokenizer = trainer.train_dataset, trainer.processing_class
    whole = dataset[8]
    third = int((whole["input_ids"] == IMAGE_TOKEN_INDEX).nonzero()[2])
    tokenizer.model_max_length = trainer.model.config.tokenizer_model_max_length = third
    cut = dataset[8]
    assert len(whole["image"]) == 3 and len(cut["image"]) == len(cut["image_sizes"]) == 2
    batch = rows_of(dataset, [8, 7], tokenizer)
    assert trainer.model.eval()(**batch).logits.shape[1] == third
    assert "truncated_answer" in dataset.report()


@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_two_ranks_under_zero_3_learn_what_one_process_learns(run_train, flags, mixed, tmp_path):
    """Also the newline, which no rank holds as a whole and a batch of texts does not use."""
    pytest.importorskip("deepspeed")
    settings = {
        **mixed, **TILED, "train_sampling_strategy": "sequential", "save_steps": 50,
        "max_steps": 3, "learning_rate": 1e-3, "per_device_train_batch_size": 2,
    }  # fmt: skip
    run_train(flags(output_dir=tmp_path / "base", **{**settings, "max_steps": 1}))
    settings["model_name_or_path"] = tmp_path / "base"
    one, two = tmp_path / "one", tmp_path / "two"
    run_train(flags(output_dir=one, **settings))
    settings["per_device_train_batch_size"] = 1
    launch(2, flags(output_dir=two, deepspeed=ROOT / "scripts" / "zero3.json", **settings))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    left, right = (read_tensors(folder / "model.safetensors") for folder in (one, two))
    newline = left["model.image_newline"]
    torch.testing.assert_close(right["model.image_newline"].float(), newline, atol=1e-4, rtol=1e-3)
    start = read_tensors(tmp_path / "base" / "model.safetensors")["model.image_newline"]
    assert not torch.equal(newline, start)
