"""Languages by script, the worst first, and lists that stay short."""

from lrm_ext.languages.grouping import (
    MAX_ROWS,
    NUM_WORST,
    group_by_script,
    group_name,
    listed,
    script_name,
    table_rows,
    worst_and_rest,
)


def test_scripts_have_cldrs_names_and_a_stranger_has_none():
    assert [script_name(code) for code in ("hr", "ru", "zh", "x-no-such")] == [
        "Latin", "Cyrillic", "Han", "other",
    ]  # fmt: skip


def test_groups_begin_with_the_least_mean_and_value():
    values = {"hr": 0.9, "cs": 0.5, "ru": 0.6, "xx": 0.1, "yy": 0.0, "zh": 0.8}
    assert group_by_script(values) == [("ru",), ("cs", "hr"), ("zh",), ("yy", "xx")]


def test_worst_languages_are_apart_from_the_rest():
    values = {f"q{chr(97 + i)}": float(-i) for i in range(12)} | {"hr": 5.0, "cs": 6.0}
    worst, rest = worst_and_rest(values)
    assert worst == tuple(f"q{chr(97 + i)}" for i in range(11, 11 - NUM_WORST, -1))
    assert rest == [("hr", "cs"), ("qb", "qa")]
    assert [group_name(codes) for codes in rest] == ["Latin: 2", "other: 2"]
    assert group_name(("hr",)) == "Croatian"


def test_long_lists_say_how_many_are_left_out():
    texts = [str(i) for i in range(MAX_ROWS + 1)]
    assert listed(texts[:-1]) == ", ".join(texts[:-1])
    assert listed(texts) == f"{', '.join(texts[:NUM_WORST])} and {MAX_ROWS + 1 - NUM_WORST} more"


def test_rows_of_many_languages_are_english_the_worst_and_scripts():
    few = {f"q{chr(97 + i)}": float(i) for i in range(MAX_ROWS - 1)} | {"en": -9.0}
    every = [(code,) for code in few]
    assert table_rows(few) == every
    many = few | {"hr": 50.0, "ru": 51.0, "uk": 52.0}
    assert table_rows(many, show_all=True) == [(code,) for code in many]
    rows = table_rows(many)
    assert rows[: 1 + NUM_WORST] == [("en",), *every[:NUM_WORST]]
    assert rows[1 + NUM_WORST :] == [
        ("hr",), ("ru", "uk"), tuple(few)[NUM_WORST:-1],
    ]  # fmt: skip
