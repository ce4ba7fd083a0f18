from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llava.data.sample import Turn
from llava.errors import DataError
from lrm_ext.corpus.store import TEXT_SCHEMA, Corpus, CorpusRow, CorpusText
from lrm_ext.corpus.writer import CorpusWriter


def make_row(i: int, translatable: bool = True) -> CorpusRow:
    turns = (Turn("human", f"<image>\nHow many ducks, {i}?"), Turn("gpt", str(i)))
    return CorpusRow(f"id-{i}", f"{i}.jpg", "unit", "count", translatable, turns)


def czech(i: int) -> tuple[Turn, ...]:
    return (Turn("human", f"<image>\nKolik je kachen, {i}?"), Turn("gpt", str(i)))


def write(path: Path, num_rows: int = 23) -> Corpus:
    """Czech: rows 3, 13 missing, 4 suspect, 5 rejected; every seventh row is untranslatable."""
    with CorpusWriter(path, ["cs", "hr"], rows_per_shard=8, rows_per_batch=4) as writer:
        for i in range(num_rows):
            texts: dict[str, CorpusText | tuple[Turn, ...]] = {}
            if i % 10 != 3:
                status = {4: "suspect", 5: "rejected"}.get(i, "ok")
                texts["cs"] = CorpusText(czech(i), status, engine="nllb", reason="digits")
            writer.append(make_row(i, translatable=i % 7 != 0), texts)
    return Corpus.open(path)


def test_rows_and_texts_come_back_across_shards(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus")
    assert len(corpus) == 23
    assert corpus.languages == ("en", "cs", "hr")
    for i in (22, 0, 7, 8, 15, 16, 3):
        assert corpus.row(i) == make_row(i, translatable=i % 7 != 0)
        assert corpus.turns("en", i) == make_row(i).turns
    assert corpus.turns("cs", 12) == czech(12)
    assert corpus.turns("hr", 12) is None
    assert corpus.image_paths(9) == (tmp_path / "corpus" / "images" / "9.jpg",)


def test_only_accepted_text_is_returned_and_counted(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus")
    assert [i for i in range(23) if corpus.turns("cs", i) is None] == [3, 4, 5, 13]
    assert corpus.text("cs", 4) == CorpusText(czech(4), "suspect", "nllb", "digits")
    assert corpus.text("cs", 3) is None
    assert [corpus.statuses(lang)["ok"] for lang in ("cs", "hr", "en")] == [19, 0, 23]
    assert corpus.statuses("cs") == {"ok": 19, "suspect": 1, "rejected": 1}
    usable = [i for i in range(23) if i not in (3, 4, 5, 13) and i % 7 != 0]
    np.testing.assert_array_equal(corpus.usable_rows("cs"), usable)
    assert len(corpus.usable_rows("hr")) == 0
    assert len(corpus.usable_rows("en")) == 23


def test_figures_of_quality_come_back(tmp_path: Path) -> None:
    row, figures = make_row(1), {"length": 1.25, "language": 0.0333, "chrf": 71.4}
    with CorpusWriter(tmp_path / "corpus", ["cs"]) as writer:
        writer.append(row, {"cs": CorpusText(czech(1), quality=figures)})
        writer.append(row, {"cs": CorpusText(czech(1), quality={})})
        writer.append(row, {"cs": czech(1)})
    corpus = Corpus.open(tmp_path / "corpus")
    found = [corpus.text("cs", i) for i in range(3)]
    assert [text and text.quality for text in found] == [figures, {}, None]


def test_texts_of_before_figures_of_quality_still_open(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus")
    for path in (tmp_path / "corpus" / "text").rglob("*.arrow"):
        table = pa.ipc.open_file(path.read_bytes()).read_all().drop_columns(["quality"])
        with pa.ipc.new_file(str(path), table.schema) as file:
            for batch in table.to_batches():
                file.write_batch(batch)
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.text("cs", 4) == CorpusText(czech(4), "suspect", "nllb", "digits")
    assert all(batch.schema == TEXT_SCHEMA for batch in corpus.text_batches("cs"))


def test_travels_to_a_worker(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus")
    corpus.row(0)  # an open map must not stop it from being pickled
    other = pickle.loads(pickle.dumps(corpus))
    assert other.turns("cs", 20) == corpus.turns("cs", 20)


def test_image_root_can_be_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "corpus")
    corpus = Corpus.open(tmp_path / "corpus", image_root="/pictures")
    assert corpus.image_paths(1) == (Path("/pictures/1.jpg"),)


def test_text_only_row_and_empty_corpus(tmp_path: Path) -> None:
    turns = (Turn("human", "Hello?"), Turn("gpt", "Hi."))
    with CorpusWriter(tmp_path / "a", []) as writer:
        writer.append(CorpusRow("x", None, None, None, True, turns), {"en": turns})
    corpus = Corpus.open(tmp_path / "a")
    assert corpus.row(0).image is None
    assert corpus.image_paths(0) == ()
    with CorpusWriter(tmp_path / "b", ["cs"]):
        pass
    assert len(Corpus.open(tmp_path / "b")) == 0


def test_unknown_language_lists_those_there(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus")
    with pytest.raises(DataError, match=r"'fr'.*en, cs, hr"):
        corpus.turns("fr", 0)


@pytest.mark.parametrize("index", [-1, 23])
def test_row_out_of_range(tmp_path: Path, index: int) -> None:
    corpus = write(tmp_path / "corpus")
    with pytest.raises(DataError, match=rf"row {index} .*0 to 22"):
        corpus.row(index)


def test_truncated_and_missing_shard_are_named(tmp_path: Path) -> None:
    write(tmp_path / "corpus")
    shard = tmp_path / "corpus" / "rows" / "00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-40])
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.row(0).id == "id-0"
    with pytest.raises(DataError, match=r"rows/00001\.arrow: truncated.*8 rows"):
        corpus.row(8)
    shard.unlink()
    with pytest.raises(DataError, match=r"rows/00001\.arrow.*missing"):
        corpus.row(8)


def test_swapped_shard_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "corpus")
    folder = tmp_path / "corpus" / "rows"
    (folder / "00002.arrow").replace(folder / "00000.arrow")
    with pytest.raises(DataError, match=r"rows/00000\.arrow"):
        Corpus.open(tmp_path / "corpus").row(7)


def test_truncated_row_list_is_noticed(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus")
    (tmp_path / "corpus/text/cs/usable.u32").write_bytes(b"\0" * 8)
    with pytest.raises(DataError, match=r"usable\.u32.*it has 8"):
        corpus.usable_rows("cs")


def test_folder_without_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        Corpus.open(tmp_path / "nowhere")
    write(tmp_path / "corpus")
    (tmp_path / "corpus" / "corpus.toml").unlink()
    with pytest.raises(DataError, match="not a corpus"):
        Corpus.open(tmp_path / "corpus")


def test_other_format_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "corpus")
    meta = tmp_path / "corpus" / "corpus.toml"
    meta.write_text(meta.read_text().replace("format_version = 1", "format_version = 99"))
    with pytest.raises(DataError, match="99"):
        Corpus.open(tmp_path / "corpus")


def test_a_failed_run_leaves_nothing_and_a_killed_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "corpus"
    with pytest.raises(RuntimeError), CorpusWriter(path, ["cs"]) as writer:
        writer.append(make_row(0), {})
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    CorpusWriter(path, ["cs"]).append(make_row(0), {})  # killed before close()
    assert not path.exists()
    assert len(write(path)) == 23
    assert list(tmp_path.iterdir()) == [path]


def test_overwrite_must_be_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "corpus")
    with pytest.raises(DataError, match="exists already"):
        CorpusWriter(tmp_path / "corpus", [])
    with CorpusWriter(tmp_path / "corpus", [], overwrite=True) as writer:
        writer.append(make_row(0), {})
    assert len(Corpus.open(tmp_path / "corpus")) == 1
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("work of years")
    with pytest.raises(DataError, match="not a corpus"):
        CorpusWriter(tmp_path / "home", [], overwrite=True)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"fr": czech(0)}, r"'fr'.*opened for cs"),
        ({"cs": czech(0)[:1]}, r"id 'id-0'.*turns"),
        ({"cs": (Turn("human", "Kolik?"), Turn("gpt", "0"))}, "<image>"),
        ({"cs": CorpusText(czech(0), status="good")}, "'good'"),
        ({"en": czech(0)}, "English text differs"),
    ],
)
def test_texts_that_do_not_fit_are_refused(tmp_path: Path, texts: object, message: str) -> None:
    writer = CorpusWriter(tmp_path / "corpus", ["cs"])
    with pytest.raises(DataError, match=message):
        writer.append(make_row(0), texts)  # type: ignore[arg-type]
