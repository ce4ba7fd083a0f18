"""An invented evaluation for the tests of tables and pages."""

from PIL import Image

from lrm_ext.evaluate.report import (
    BenchmarkResult,
    EvalReport,
    Example,
    ExampleAnswer,
    GroupScore,
    LanguageResult,
)
from lrm_ext.evaluate.statistics import wilson_interval
from lrm_ext.languages.registry import PAPER_LANGUAGES, get_language, list_languages

TASKS = ("existence", "naming", "position", "counting", "color", "category")


def group(num_correct, num_total, blind=0.5, **counts):
    low, high = wilson_interval(num_correct, num_total)
    values = {"majority": 0.5, "num_unparsed": 0, "num_empty": 0, "num_cut": 0, "fidelity": 1.0}
    return GroupScore(
        num_questions=num_total,
        accuracy=num_correct / num_total,
        low=low,
        high=high,
        blind_accuracy=blind,
        **{**values, **counts},
    )


def language(lang, share, blind=0.5):
    tasks = {
        task: group(round((share - 0.03 * i) * 200), 200, blind) for i, task in enumerate(TASKS)
    }
    known = get_language(lang) if lang in list_languages() else None
    return LanguageResult(
        lang=lang,
        name=known.name if known else lang,
        native_name=known.native_name if known else lang,
        sha256="0" * 64,
        total=group(round((share - 0.1) * 1000), 1000, blind, num_unparsed=3, fidelity=0.987),
        yesno=group(round(share * 600), 600, blind),
        text=group(round((share - 0.2) * 400), 400, blind),
        tasks=tasks,
        yesno_tasks=("existence", "category"),
    )


def make_report(folder, blind=0.5, languages=None):
    """A report with two examples whose images lie in `folder`."""
    (folder / "examples").mkdir(parents=True, exist_ok=True)
    examples = []
    for number, colour in ((1, "teal"), (2, "orange")):
        Image.new("RGB", (128, 128), colour).save(folder / f"examples/scenes-{number}.png")
        answers = (
            ExampleAnswer("en", "Is there a <b> in the picture?", "Yes", "Yes", True),
            ExampleAnswer("hr", "Što se nalazi gore desno na slici?", "mačka", "pas", False),
            ExampleAnswer("zh", "这张图片上是否有拖拉机？", "是", "是", True),
        )
        examples.append(Example(f"some/{number}.png", f"examples/scenes-{number}.png", answers))
    codes = languages or PAPER_LANGUAGES
    shares = [max(0.3, 0.98 - 0.02 * i) for i in range(len(codes))]
    results = tuple(language(lang, share, blind) for lang, share in zip(codes, shares, strict=True))
    return EvalReport(
        model_path="runs/mini",
        model_id="mini",
        mode="local",
        limit=None,
        command="lrm eval --model runs/mini",
        environment={"lrm_ext": "0.1.0", "torch": "2.13.0"},
        benchmarks=(BenchmarkResult("scenes", results, tuple(examples)),),
    )
