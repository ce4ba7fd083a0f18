"""Made-up files in the shapes of the benchmarks' official distributions."""

import base64
import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(number):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 40 % 256, 10, 20)).save(file, format="PNG")
    return file.getvalue()


def write_tsv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


# MME: two categories, one of each layout; one question has two blanks before its instruction.
MME = [
    ("color", "000001", "Is the car red? Please answer yes or no.", "Yes"),
    ("color", "000001", "Is the car blue?  Please answer yes or no.", "No"),
    ("posters", "tt01", "Is it Jaws? Please answer yes or no.", "Yes"),
    ("posters", "tt01", "Is it Alien? Please answer yes or no.", "No"),
]


def mme_folder(root):
    for number, (category, stem, question, answer) in enumerate(MME):
        apart = category == "posters"
        texts = root / category / ("questions_answers_YN" if apart else "")
        images = root / category / ("images" if apart else "")
        texts.mkdir(parents=True, exist_ok=True)
        images.mkdir(parents=True, exist_ok=True)
        (images / f"{stem}.jpg").write_bytes(picture(number // 2))
        with (texts / f"{stem}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{question}\t{answer}\n")
    return root


def mme_bundle(root):
    mme_folder(root / "MME_Benchmark_release_version")
    rows = []
    for category, stem, question, _ in MME:
        inner = "images/" if category == "posters" else ""
        name = f"{category}/{inner}{stem}.jpg"
        bare = question.replace("Please answer yes or no.", "").strip()
        text = f"{bare}\nAnswer the question using a single word or phrase."
        rows.append({"question_id": name, "image": name, "text": text, "category": category})
    return write_lines(root / "llava_mme.jsonl", rows)


def mme_table(path):
    rows = [
        {
            "question_id": f"{category}/{stem}.jpg",
            "image": {"bytes": picture(number // 2), "path": None},
            "question": question,
            "answer": answer,
            "category": category,
        }
        for number, (category, stem, question, answer) in enumerate(MME)
    ]
    if path.suffix == ".tsv":
        for number, row in enumerate(rows):
            row["image"] = base64.b64encode(row["image"]["bytes"]).decode()
            row["image_path"] = row.pop("question_id")
            row["index"] = number
        return write_tsv(path, rows)
    return write_parquet(path, rows)


POPE = [
    ("random", 1, "COCO_val2014_01", "Is there a dog in the image?", "yes"),
    ("random", 2, "COCO_val2014_01", "Is there an owl in the imange?", "no"),
    ("popular", 1, "COCO_val2014_01", "Is there a dog in the image?", "yes"),
    ("popular", 2, "COCO_val2014_01", "Is there a person in the image?", "no"),
    ("adversarial", 1, "COCO_val2014_02", "Is there a cat in the image?", "yes"),
    ("adversarial", 2, "COCO_val2014_02", "Is there a sofa in the image?", "no"),
]


def pope_folder(root):
    for category in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": number, "image": f"{image}.jpg", "text": text, "label": label}
            for name, number, image, text, label in POPE
            if name == category
        ]
        write_lines(root / f"coco_pope_{category}.json", rows)
    (root / "val2014").mkdir()
    for name in ("COCO_val2014_01", "COCO_val2014_02"):
        (root / "val2014" / f"{name}.jpg").write_bytes(picture(int(name[-1])))
    return root


def pope_bundle(root):
    pope_folder(root / "coco")
    offsets = {"adversarial": 0, "random": 10000000, "popular": 20000000}
    rows = [
        {
            "question_id": offsets[category] + number,
            "image": f"{image}.jpg",
            "text": f"{text.replace('imange', 'image')}\nAnswer the question using a single word "
            "or phrase.",
            "category": category,
        }
        for category, number, image, text, _ in sorted(POPE)
    ]
    return write_lines(root / "llava_pope_test.jsonl", rows)


def pope_parquet(path):
    rows = [
        {"id": str(i), "question_id": str(number), "question": text, "answer": label,
         "image_source": image, "image": {"bytes": picture(int(image[-1])), "path": None},
         "category": category}
        for i, (category, number, image, text, label) in enumerate(POPE)
    ]  # fmt: skip
    return write_parquet(path, rows)


def pope_tsv(path):
    """The question that two categories share is one row."""
    rows = [
        {"index": 0, "image": base64.b64encode(picture(1)).decode(),
         "question": "Is there a dog in the image?", "answer": "Yes", "category": "random,popular"},
        {"index": 1, "image": base64.b64encode(picture(1)).decode(),
         "question": "Is there an owl in the image?", "answer": "No", "category": "random"},
    ]  # fmt: skip
    return write_tsv(path, rows)


SEED_TYPES = {"Scene Understanding": 1, "Instance Location": 4}


def seed_rows():
    base = {"choice_a": "one", "choice_b": "two", "choice_c": "three", "choice_d": "four"}
    return [
        {**base, "question_id": "101", "question": "How many?", "answer": "B", "data_id": "p1",
         "data_type": "image", "question_type_id": 1},
        {**base, "question_id": "102", "question": "Where?", "answer": "D", "data_id": "p2",
         "data_type": "image", "question_type_id": 4},
        {**base, "question_id": "v7", "question": "What next?", "answer": "A", "data_id": "v.mp4",
         "data_type": "video", "question_type_id": 10, "segment": [0, 1]},
    ]  # fmt: skip


def seed_folder(root):
    images = root / "SEED-Bench-image"
    images.mkdir(parents=True)
    for number, name in enumerate(("p1", "p2")):
        (images / name).write_bytes(picture(number))
    content = {"questions": seed_rows(), "question_type": SEED_TYPES}
    (root / "SEED-Bench.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def seed_bundle(root):
    seed_folder(root)
    rows = [
        {"image": f"SEED-Bench-image/{row['data_id']}", "text": row["question"],
         "category": "x", "question_id": 101 + i if i < 2 else "v7"}
        for i, row in enumerate(seed_rows())
    ]  # fmt: skip
    return write_lines(root / "llava-seed-bench.jsonl", rows)


def seed_parquet(path):
    rows = seed_rows()
    for number, row in enumerate(rows):
        row["image"] = [{"bytes": picture(number), "path": None}]
        row.pop("segment", None)
    return write_parquet(path, rows)


def seed_tsv(path):
    rows = [
        {"index": row["question_id"], "image": base64.b64encode(picture(i)).decode(),
         "question": row["question"], "A": row["choice_a"], "B": row["choice_b"],
         "C": row["choice_c"], "D": row["choice_d"], "answer": row["answer"],
         "category": "Scene Understanding"}
        for i, row in enumerate(seed_rows()[:2])
    ]  # fmt: skip
    return write_tsv(path, rows)


def mmbench_rows():
    """One question with three options, the second row with the picture of the first; one of two."""
    image = base64.b64encode(picture(1)).decode()
    common = {"hint": "nan", "category": "image_topic", "source": "s", "comment": "",
              "l2-category": "coarse_perception", "split": "dev"}  # fmt: skip
    turns = [("cat", "dog", "None of these", "B"), ("dog", "None of these", "cat", "A"),
             ("None of these", "cat", "dog", "C")]  # fmt: skip
    rows = [
        {"index": 7 + k * 10**6, "question": "What is it?", "A": a, "B": b, "C": c, "D": "nan",
         "answer": gold, "image": image if k == 0 else "7", **common}
        for k, (a, b, c, gold) in enumerate(turns)
    ]  # fmt: skip
    rows += [
        {"index": 8 + k * 10**6, "question": "Is it big?", "A": a, "B": b, "C": "", "D": "",
         "answer": "A" if k == 0 else "B", "image": image, **common, "hint": "Look closely."}
        for k, (a, b) in enumerate((("yes", "no"), ("no", "yes")))
    ]  # fmt: skip
    # rows of a question are not adjacent in the file
    return [rows[0], rows[3], rows[1], rows[4], rows[2]]


def mmbench_tsv(path):
    return write_tsv(path, mmbench_rows())


def mmbench_parquet(path, index=str):
    rows = []
    for row in mmbench_rows():
        row["index"] = index(row["index"])
        row["L2-category"] = row.pop("l2-category")
        row["image"] = {"bytes": picture(1), "path": None}
        rows.append(row)
    return write_parquet(path, rows)
