"""`lrm inspect`: what is shown, how it is filtered, and what nobody can reach through it."""

import json

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from llava.errors import ConfigError, DataError
from lrm_ext.evaluate.inspecting import PAGE_SIZE, load_runs, make_app
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.registry import write_folder

EVIL = "</script><img src=x onerror=alert(1)>"


def answer(number, lang="cs", text="Ano", gold="Yes", **more):
    record = {
        "question_id": f"q{number}",
        "key": f"q{number}",
        "prompt": f"Je tu {number}?" if lang == "cs" else f"Is {number} here?",
        "text": text,
        "benchmark": "own",
        "kind": "answers",
        "lang": lang,
        "category": "existence",
        "image": f"{number}.png",
        "gold": gold,
        "answer_type": "yesno",
        "finish_reason": "stop",
    }
    return record | more


def write_run(folder, records):
    by_lang = {}
    for record in records:
        by_lang.setdefault(record["lang"], []).append(record)
    for lang, own in by_lang.items():
        path = folder / "predictions" / f"own.{lang}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(one) + "\n" for one in own), encoding="utf-8")
    return folder


@pytest.fixture
def benchmarks(tmp_path):
    """A benchmark whose first image is there; the second is a way out of the folder."""
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (4, 4)).save(images / "0.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (images / "2.png").symlink_to(tmp_path / "secret.png")
    items = tuple(Item(f"q{n}", f"{n}.png", "Here?", "c", "Yes", "en", "yesno") for n in range(3))
    write_folder(tmp_path / "bench" / "own", "answers", "en", items, images, tmp_path / "x")
    return tmp_path / "bench"


@pytest.fixture
def client(tmp_path, benchmarks):
    """Answers of two runs: `client(first, second)`."""

    def make(*runs):
        folders = [write_run(tmp_path / f"run{n}", run) for n, run in enumerate(runs)]
        app = make_app(load_runs(folders, benchmarks))
        return TestClient(app, base_url="http://127.0.0.1")

    return make


def test_answers_stand_beside_each_other_with_their_english(client):
    first = [answer(0), answer(1, text="Ne"), answer(0, "en", "Yes")]
    found = client(first, [answer(0, text="")]).get("/rows").json()
    assert [(row["lang"], row["id"]) for row in found["rows"]] == [
        ("en", "q0"), ("cs", "q0"), ("cs", "q1"),
    ]  # fmt: skip
    row = found["rows"][1]
    assert row["has_picture"] == [True] and row["prompt_in_english"] == "Is 0 here?"
    ours, theirs = row["answers"]
    assert (ours["run"], ours["text"], ours["in_english"], ours["right"]) == (
        "run0", "Ano", "Yes", True,
    )  # fmt: skip
    assert (theirs["text"], theirs["right"]) == ("", False)
    assert found["rows"][2]["answers"][1]["text"] is None
    assert found["rows"][2]["has_picture"] == [False]
    assert found["counts"] == [
        {"run": "run0", "right": 2, "answered": 3},
        {"run": "run1", "right": 0, "answered": 1},
    ]


def test_filters(client):
    page = client([answer(0), answer(1, text="Ne"), answer(0, "en", "Yes")], [answer(0, text="Ne")])

    def ids(**query):
        return [(r["lang"], r["id"]) for r in page.get("/rows", params=query).json()["rows"]]

    assert ids(state="wrong") == [("cs", "q1")]
    assert ids(state="right", lang="cs") == [("cs", "q0")]
    assert ids(state="different") == [("cs", "q0")]
    assert ids(text="IS 0 HERE") == [("en", "q0"), ("cs", "q0")]
    assert ids(benchmark="other") == []
    assert page.get("/rows", params={"state": "maybe"}).status_code == 422


def test_pages_cover_every_row_once(client):
    page = client([answer(n) for n in range(PAGE_SIZE * 2 + 5)])
    found = [page.get("/rows", params={"page": n}).json() for n in range(3)]
    assert found[0]["num_pages"] == 3
    shown = [row["number"] for one in found for row in one["rows"]]
    assert shown == list(range(PAGE_SIZE * 2 + 5))
    assert page.get("/rows", params={"page": 99}).json()["page"] == 2


def test_only_images_of_the_benchmark_are_served(client):
    inside, link, climbing = answer(0), answer(2), answer(1, image="../secret.png")
    page = client([inside, link, climbing])
    assert page.get("/picture/0/0").headers["content-type"] == "image/png"
    for path in ("1/0", "2/0", "3/0", "-1/0", "0/1", "0/-1", "0/..", "..%2f..%2fsecret.png"):
        assert page.get(f"/picture/{path}").status_code in (404, 422), path


def test_a_question_without_an_image_is_told_from_an_answer_that_names_none(client):
    rows = client([answer(0, image=[]), answer(1, image=None)]).get("/rows").json()["rows"]
    assert [(row["images"], row["is_text_only"]) for row in rows] == [([], True), ([], False)]


def test_answers_that_were_filed_under_another_name_find_their_images(tmp_path, benchmarks):
    run = write_run(tmp_path / "old", [answer(0)])
    path = run / "predictions" / "own.cs.jsonl"
    path.rename(path.with_name("scenes.cs.jsonl"))
    images = tmp_path / "images"
    assert load_runs([run], benchmarks / "own").roots == {"scenes": images}
    assert load_runs([run]).roots == {}  # the built-in scenes have no such image


def test_another_host_is_refused(client):
    page = client([answer(0)])
    assert page.get("/rows", headers={"host": "example.org"}).status_code == 400
    assert page.get("/", headers={"host": "localhost:7861"}).status_code == 200


def test_answers_cannot_become_markup(client, tmp_path):
    page = client([answer(0, text=EVIL)]).get("/")
    assert "innerHTML" not in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    write_run(tmp_path / EVIL.replace("/", ""), [answer(0)])
    app = make_app(load_runs([tmp_path / EVIL.replace("/", "")]))
    body = TestClient(app, base_url="http://127.0.0.1").get("/").text
    assert "<img" not in body


def test_other_versions_and_contradictions_are_refused(tmp_path):
    first = write_run(tmp_path / "a", [answer(0, version="own-1-aa")])
    second = write_run(tmp_path / "b", [answer(0, version="own-1-bb")])
    with pytest.raises(DataError, match="version own-1-bb"):
        load_runs([first, second])
    other = write_run(tmp_path / "c", [answer(0, prompt="Je to 0?")])
    with pytest.raises(DataError, match="different versions"):
        load_runs([first, other])
    twice = write_run(tmp_path / "d", [answer(0), answer(0, text="Ne")])
    with pytest.raises(DataError, match="second time"):
        load_runs([twice])
    with pytest.raises(DataError, match="no answers to anything in hr"):
        load_runs([first], languages=["hr"])
    with pytest.raises(ConfigError, match="twice"):
        load_runs([first, first])


def test_a_folder_that_is_not_there_is_said_to_be_missing(tmp_path):
    run = write_run(tmp_path / "a", [answer(0)])
    with pytest.raises(DataError, match=r"nope: no such folder; expected a model"):
        load_runs([run, tmp_path / "nope"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no answers in it"):
        load_runs([run, tmp_path / "empty"])
