"""Everything that the LRM-LLaVA paper adds to LLaVA: languages, instructions, mixtures."""

from llava.moved import keep_old_paths

__version__ = "0.1.0"

keep_old_paths(
    {
        "lrm_ext.analysis": "lrm_ext.report",
        "lrm_ext.benchmarks": "lrm_ext.evaluate",
        "lrm_ext.benchmarks.parse": "lrm_ext.evaluate.reading",
        "lrm_ext.benchmarks.pictures": "lrm_ext.evaluate.official",
        "lrm_ext.benchmarks.words": "lrm_ext.evaluate.reading",
        "lrm_ext.corpus.emoji": "lrm_ext.emoji",
        "lrm_ext.evaluate.agreement": "lrm_ext.evaluate.translating",
        "lrm_ext.evaluate.printing": "lrm_ext.report.evaluation",
        "lrm_ext.evaluation": "lrm_ext.evaluate",
        "lrm_ext.export.benchmarks": "lrm_ext.export.evaluation",
        "lrm_ext.export.predictions": "lrm_ext.export.evaluation",
        "lrm_ext.files": "llava.files",
        "lrm_ext.languages._toml": "llava.files",
        "lrm_ext.languages.plot_fonts": "lrm_ext.languages.fonts",
        "lrm_ext.planning": "lrm_ext.plan",
        "lrm_ext.training.sampler": "lrm_ext.training.dataset",
        "lrm_ext.training.validation": "lrm_ext.training.data_module",
        "lrm_ext.serve": "lrm_ext",
        "lrm_ext.translate.engines.batch_api": "lrm_ext.translate.engines.openai",
        "lrm_ext.translate.quality.checking": "lrm_ext.translate.quality",
        "lrm_ext.translation": "lrm_ext.translate",
        "lrm_ext.translation.engines.chat": "lrm_ext.translate.engines.openai",
    },
    renamed={
        "PictureStore": "ImageStore",
        # engines of other packages use these
        "Engine": "TranslationEngine",
        "Segment": "TextSegment",
    },
)
