"""Texts that tokenizers disagree about: every script, digits, white space, marks, code."""

from __future__ import annotations

import random
from collections.abc import Iterator

_RANGES = (
    (0x20, 0x7E), (0xA0, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF),
    (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF), (0xE00, 0xE7F), (0xE80, 0xEFF),
    (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1780, 0x17FF), (0x1E00, 0x1FFF),
    (0x2000, 0x206F), (0x2070, 0x20CF), (0x2100, 0x218F), (0x2190, 0x22FF), (0x2460, 0x24FF),
    (0x2500, 0x27BF), (0x2C00, 0x2CFF), (0x2F00, 0x2FDF), (0x3000, 0x303F), (0x3040, 0x30FF),
    (0x3100, 0x318F), (0x3400, 0x3500), (0x4DB0, 0x4E10), (0x4E00, 0x9FFF), (0xA000, 0xA4CF),
    (0xA640, 0xA7FF), (0xA9E0, 0xAA7F), (0xAB70, 0xABBF), (0xAC00, 0xD7FF), (0xF900, 0xFAFF),
    (0xFE00, 0xFE6F), (0xFF00, 0xFFEF), (0x10400, 0x1044F), (0x104B0, 0x104FF), (0x10C80, 0x10CFF),
    (0x118A0, 0x118DF), (0x1D400, 0x1D7FF), (0x1E900, 0x1E95F), (0x1F300, 0x1F6FF),
    (0x20000, 0x20100), (0x2A6D0, 0x2A700), (0x2EBE0, 0x2EBFF), (0x30000, 0x30010),
)  # fmt: skip
_SPACES = (
    " ", "  ", "   ", "    ", "        ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r",
    " \n", "\n ", "\n\t", " \n \n", "\x0b", "\x0c", "\x85", "\xa0", "\u1680", "\u2003", "\u2028",
    "\u2029", "\u202f", "\u3000", "\u200b", "\u200d", "\ufeff", "\x1c", "\x1f", "\x00", "\x7f",
    " " * 17, " " * 33, " " * 70,
)  # fmt: skip
_WORDS = (
    "Hello", "world", "the", "THE", "iPhone", "HTMLParser", "don't", "DON'T", "I'M", "we'Ll",
    "'S", "'ve", "'RE", "'ſ", "'K", "they'd've", "naïve", "Straße", "İstanbul", "ﬁne", "ǅ",
    "µm", "Ωhm", "中文字", "日本語テキスト", "한국어", "カタカナ", "ひらがな", "ไทยภาษา",
    "עברית", "العربية", "हिन\u094dदी", "বাংলা", "Ελληνικά", "Русский", "ქართული", "አማርኛ",
    "ខ\u17d2មែរ", "မြန\u103aမာ", "ລາວ", "e\u0301", "a\u0308\u0323", "0", "1", "12", "123",
    "1234", "12345", "123456", "1234567", "3.14159", "1,000,000", "٣٤٥٦", "①②③", "½", "Ⅷ", "²³",
    "๑๒๓", "０１２３", "x1y22z333", "a1", "1a", "12ab345", "foo_bar", "snake_case_1",
    "def f(x):", "return x+1;", "if(a&&b){", "#include <a.h>", "//", "/*", "*/", "->", "=>",
    "==", "!=", "...", "…", "!!!", "?!", "(", ")", "[", "]", "{", "}", "<", ">", "|", "\\", "^",
    "~", "`", "$", "$5", "€", "+", "-", "=", "\"", "'", "''", "''''", "“quoted”", "—", "–",
    "、", "。", "，", "！", "：", "।", "۔", "،", "😀", "👨\u200d👩\u200d👧", "🇩🇪", "👍🏽", "❤️",
    "http://a.b/c?d=1", "a@b.c", "/usr/bin", "C:\\x", "<s>", "<|x|>", "<sentinel:12>",
    "IMGIMGABCZ", "▁", "Ġ", "�", "\U0010ffff", "\ue000", "\u0378", "〇", "々", "豈", "\ufada",
    "龥", "龦", "鿿", "㐀", "가", "힣", "ㄱ", "ㅏ", "ㄅ", "ｶﾞ", "Ａｂ",
)  # fmt: skip


def _one(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(_WORDS)
    if kind < 0.7:
        return rng.choice(_SPACES)
    if kind < 0.85:
        first, last = rng.choice(_RANGES)
        return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 5)))
    if kind < 0.9:
        return "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 11)))
    if kind < 0.97:
        return "".join(rng.choice("abcdefgSTLVRMD'  .,") for _ in range(rng.randint(1, 9)))
    code = rng.randint(0, 0x10FFFF)
    return chr(code) if not 0xD800 <= code < 0xE000 else "x"


def texts(seed: int, count: int) -> Iterator[str]:
    """``count`` texts, the same for the same ``seed``, each a mixture of up to 24 parts."""
    rng = random.Random(seed)
    for _ in range(count):
        glue = rng.choice(("", "", "", " "))
        yield glue.join(_one(rng) for _ in range(rng.randint(1, 24)))
