"""Made-up runs whose scores are known: 20 yes/no questions of MMBench's and POPE's sort."""

import json

WORDS = {"en": ("Yes", "No"), "cs": ("Ano", "Ne"), "de": ("Ja", "Nein"), "zh": ("是", "否")}
NUM = 20


def write_run(folder, right, name="toy", num=NUM, num_answered=None):
    """Answers of which so many are right, by language."""
    for lang, num_right in right.items():
        path = folder / "predictions" / f"{name}.{lang}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(num if num_answered is None else num_answered):
            yes = number % 2 == 0
            text = WORDS[lang][yes == (number >= num_right)]
            lines.append(json.dumps({
                "question_id": str(number), "key": str(number), "text": text,
                "prompt": f"{lang} {number}?", "gold": WORDS[lang][not yes], "category": "there",
                "benchmark": name, "lang": lang, "image": f"{number // 2}.jpg",
                "answer_type": "yesno",
            }, ensure_ascii=False) + "\n")  # fmt: skip
        path.write_text("".join(lines), encoding="utf-8")
    return folder
