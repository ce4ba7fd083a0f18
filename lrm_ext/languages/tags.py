"""Codes of languages as BCP-47 writes them, and what the Unicode CLDR knows about a language.

CLDR comes with Babel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from fontTools.unicodedata import script_horizontal_direction

from llava.errors import ConfigError

# RFC 5646, section 2.1, without extended language subtags, extensions and irregular tags.
_TAG = re.compile(
    r"(?P<language>[a-z]{2,3})(?:-(?P<script>[a-z]{4}))?(?:-(?P<region>[a-z]{2}|[0-9]{3}))?"
    r"(?P<variants>(?:-(?:[a-z0-9]{5,8}|[0-9][a-z0-9]{3}))*)(?P<private>-x(?:-[a-z0-9]{1,8})+)?",
    re.IGNORECASE,
)
_MAX_LENGTH = 35  # RFC 5646, section 4.4.1
# Languages of NLLB-200 and FLORES-200: three letters and a script.
NLLB_CODES = tuple(
    """
    ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn amh_Ethi apc_Arab
    arb_Arab ars_Arab ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn
    bak_Cyrl bam_Latn ban_Latn bel_Cyrl bem_Latn ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt
    bos_Latn bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn cjk_Latn ckb_Arab crh_Latn cym_Latn
    dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn est_Latn eus_Latn
    ewe_Latn fao_Latn pes_Arab fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn gla_Latn
    gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn
    hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn jpn_Jpan kab_Latn
    kac_Latn kam_Latn kan_Knda kas_Arab kas_Deva kat_Geor knc_Arab knc_Latn kaz_Cyrl kbp_Latn
    kea_Latn khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn kon_Latn kor_Hang kmr_Latn lao_Laoo
    lvs_Latn lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn ltg_Latn ltz_Latn lua_Latn lug_Latn
    luo_Latn lus_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Latn mkd_Cyrl plt_Latn mlt_Latn
    mni_Beng khk_Cyrl mos_Latn mri_Latn zsm_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva
    nso_Latn nus_Latn nya_Latn oci_Latn gaz_Latn ory_Orya pag_Latn pan_Guru pap_Latn pol_Latn
    por_Latn prs_Arab pbt_Arab quy_Latn ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Beng
    scn_Latn shn_Mymr sin_Sinh slk_Latn slv_Latn smo_Latn sna_Latn snd_Arab som_Latn sot_Latn
    spa_Latn als_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn swh_Latn szl_Latn tam_Taml
    tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi taq_Latn taq_Tfng tpi_Latn tsn_Latn
    tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab
    uzn_Latn vec_Latn vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr yor_Latn yue_Hant zho_Hans
    zho_Hant zul_Latn
    """.split()
)
# Other names of codes, beside those that CLDR knows.
_ALIASES = {"nb": "no", "nn": "no", "quy": "qu"}


@dataclass(frozen=True)
class KnownNames:
    """CLDR's entries for a language; None for unknown values.

    Attributes:
        language: The first part of the code, without script and region.
        name: English name.
        native_name: Name in the language itself.
        script: ISO 15924 code of its most likely script.
    """

    language: str
    name: str | None = None
    native_name: str | None = None
    script: str | None = None

    @property
    def iso_639_3(self) -> str | None:
        """Three-letter code."""
        return _three_letters(self.language)

    @property
    def spaced(self) -> bool | None:
        """Whether the script separates words by spaces."""
        return None if self.script is None else self.script not in _UNSPACED_SCRIPTS

    @property
    def full_stop(self) -> str | None:
        """What ends a sentence in the script; "" if nothing does."""
        return None if self.script is None else _FULL_STOPS.get(self.script, ".")


# Scripts that are one code in ISO 15924 and several in Unicode.
SCRIPT_PARTS: Mapping[str, frozenset[str]] = {
    "Hans": frozenset({"Hani"}),
    "Hant": frozenset({"Hani"}),
    "Jpan": frozenset({"Hani", "Hira", "Kana"}),
    "Kore": frozenset({"Hang", "Hani"}),
}
# Scripts of no language: digits, punctuation, marks, unknown characters.
NEUTRAL_SCRIPTS = frozenset({"Zyyy", "Zinh", "Zzzz"})
# Scripts that are written without spaces between words, and full stops other than ".".
_UNSPACED_SCRIPTS = ("Hans", "Hant", "Hani", "Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt")
_FULL_STOPS: Mapping[str, str] = {
    **dict.fromkeys(("Deva", "Beng", "Guru", "Orya"), "\u0964"),
    **dict.fromkeys(("Hans", "Hant", "Hani", "Jpan"), "\u3002"),
    **dict.fromkeys(("Thai", "Laoo"), ""),
    "Armn": "\u0589",
    "Ethi": "\u1362",
    "Khmr": "\u17d4",
    "Mymr": "\u104b",
    "Tibt": "\u0f0d",
}


def direction_of_script(script: str) -> str:
    """Returns `ltr` or `rtl` for an ISO 15924 code, by Unicode; `ltr` for an unknown one."""
    return script_horizontal_direction(script, "LTR").lower()


def normalize_tag(code: str) -> str:
    """Normalises a tag as BCP-47 recommends: `sk`, `zh-Hant`, `pt-BR`, `sr-Latn-ME`, `de-1996`.

    Raises:
        ConfigError: The tag is not well-formed.
    """
    match = _TAG.fullmatch(code)
    if match is None or len(code) > _MAX_LENGTH:
        raise ConfigError(
            f"{code!r} is not a language code; expected a BCP-47 tag such as sk, zh-Hant or pt-BR."
        )
    script, region = match["script"] or "", match["region"] or ""
    parts = filter(None, (match["language"].lower(), script.title(), region.upper()))
    return "-".join(parts) + (match["variants"] + (match["private"] or "")).lower()


def preferred_tag(code: str) -> str | None:
    """Returns the preferred code for an alias, `sk` for `slk`; None if `code` is preferred."""
    language, hyphen, rest = code.partition("-")
    usual = _ALIASES.get(language) or str(_cldr("language_aliases").get(language, language))
    # an alias such as sh -> sr_Latn is more than another name
    return usual + hyphen + rest if usual != language and "_" not in usual else None


def known_names(code: str) -> KnownNames:
    """Looks up a normalised tag in CLDR."""
    from babel import Locale, UnknownLocaleError

    match = _TAG.fullmatch(code)
    assert match is not None, code
    language, script, region = match["language"], match["script"], match["region"]
    if match["variants"] or match["private"]:
        region = None  # CLDR has no names of variants
    subtags = _cldr("likely_subtags")
    full = subtags.get(f"{language}_{region}") or subtags.get(language) or language
    script_used = script or (*full.split("_"), None)[1]
    try:
        locale = Locale(language, territory=region, script=script)
    except (UnknownLocaleError, ValueError):
        return KnownNames(language, Locale("en").languages.get(language), None, script_used)
    name, native_name = locale.get_display_name("en"), locale.get_display_name()
    return KnownNames(language, name, native_name, script_used)


@cache
def name_in(code: str, language: str) -> str | None:
    """Returns CLDR's name of the language `code` in another language, None if it has none.

    Args:
        code: A normalised tag.
        language: The normalised tag of the language to say it in.
    """
    from babel import Locale, UnknownLocaleError

    try:
        locale = Locale.parse(language.partition("-x-")[0], sep="-")
    except (UnknownLocaleError, ValueError):
        return None
    try:
        return Locale.parse(code.partition("-x-")[0], sep="-").get_display_name(locale)
    except (UnknownLocaleError, ValueError):
        return locale.languages.get(code.partition("-")[0])


def _three_letters(language: str) -> str | None:
    if len(language) == 3:
        return language
    aliases = _cldr("language_aliases").items()
    found = sorted(old for old, new in aliases if new == language and len(old) == 3)
    if len(found) == 1:
        return found[0]
    # of `slk` and `slo`, `ces` and `cze`, take the one that is in the lists of engines
    used = {code.partition("_")[0] for code in NLLB_CODES}
    return next((code for code in found if code in used), None)


@cache
def _cldr(name: Literal["language_aliases", "likely_subtags"]) -> dict[str, Any]:
    from babel.core import get_global

    return dict(get_global(name))
