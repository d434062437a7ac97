"""Texts and chats that tell two tokenizers, or two renderings of a chat template, apart."""
# ruff: noqa: RUF001 - characters that look alike are what this is about

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

Chat = list[dict[str, str]]

_MET, _AT, _IN = (
    ("geese", "foxes", "cows", "bees", "hens"),
    ("mill", "old bridge", "harbour"),
    ("rain", "sun", "fog", "wind"),
)
# what a long prompt is made of where the recipe has no text: some 2,500 tokens in which nothing comes twice
STORY = " ".join(
    f"On day {day} we met {day * 7 % 23 + 2} {_MET[day % 5]} near the {_AT[day % 3]}, in the {_IN[day % 4]}."
    for day in range(1, 121)
)
_PROSE = 'It was a bright cold day in April; the clocks struck 13. Winston\'s chin (0.5 m above) hurt — "badly".\n'
_CODE = "def area(width, height):\n\treturn width * height  # in m²\n\n\nprint(f'{area(3, 4):>8.2f}')   \n"
_ACCENTS = "Où est l'été ? Ångström, naïve, Đặng, Việt Nam"

_TEXTS: dict[str, tuple[str, ...]] = {
    "plain": (
        "Hello, world!",
        "The quick brown fox jumps over the lazy dog.",
        "I'm sure you're right: they'll say we've won, he'd agree, it's 'fine' and y'all'd've known.",
        "I'M YOU'RE HE'S WE'VE THEY'LL I'D DON'T",
        "I’m you’re he’s “quoted” — and… so on",
        "CamelCase snake_case kebab-case SCREAMING_CASE iPhone15Pro hElLo",
        "e.g. i.e. etc. vs. Dr. Mrs. No. 5, $100.00 (USD), 50% off!!! #tag @name",
        "Antidisestablishmentarianism floccinaucinihilipilification",
        "?!?!?! ... --- *** === ~~~ ///",
    ),
    "latin": (
        "Où est la bibliothèque ? Ça coûte 12 €, s’il vous plaît.",
        "Größenwahn, Straße, Äpfel, Übermut, ẞ",
        "El niño comió piñas. ¿Cuándo? ¡Ahora!",
        "Příliš žluťoučký kůň úpěl ďábelské ódy",
        "Zażółć gęślą jaźń",
        "Árvíztűrő tükörfúrógép",
        "Şişli'de İstanbul, ılık ığdır",
        "Kæmi ný öxi hér, ykist þjófum nú bæði víl og ádrepa",
        "Tiếng Việt: Nguyễn, được, những, Hà Nội",
        "ǅ ǆ Ǆ ﬁ ﬂ ﬀ ĳ ŉ ſ K Å",
        _ACCENTS,
        unicodedata.normalize("NFD", _ACCENTS),
        "e\u0301 e\u0323\u0301 q\u0307\u0323 A\u030a ü u\u0308",
        "Z\u0351\u036b\u0343\u036a\u0302a\u0348l\u0334g\u0335o\u0336",
    ),
    "other alphabets": (
        "Съешь же ещё этих мягких французских булок, да выпей чаю",
        "Ґанок, їжак, єнот; Љубав, Ђорђе; Қазақстан, Ӏ",
        "Θέλω να πάω στην Αθήνα· ὦ ἄνδρες Ἀθηναῖοι, ςΣσ",
        "Հայաստան, բարև ձեզ։",
        "ქართული ენა, გამარჯობა ᲐᲑᲒ",
        "هذا نصٌّ عربيٌّ قصير، فيه أرقام ٠١٢٣٤٥ وعلامة؟",
        "سلام دنیا؛ می‌خواهم ۱۲۳ را بخوانم",
        "שָׁלוֹם עוֹלָם, מה נשמע? ״ציטוט״ ₪5",
        "ܫܠܡܐ ދިވެހި ߒߞߏ",
        "ᚠᚢᚦᚨᚱᚲ ᛒᚱᛁᛏ ⲁⲃⲅ 𐌰𐌱𐌲 𓀀𓂀 𒀀𒁁",
        "ሰላም ለዓለም፣ አማርኛ ፩፪፫ ።",
        "ᎣᏏᏲ ᏣᎳᎩ ꮳꮃꭹ ᐃᓄᒃᑎᑐᑦ",
        "ⵜⴰⵎⴰⵣⵉⵖⵜ ꓡꓲꓢꓴ 𞤀𞤣𞤤𞤢𞤥",
    ),
    "indic and south-east asian": (
        "नमस्ते दुनिया, क्षत्रिय ज्ञान १२३ रु॰",
        "আমি বাংলায় গান গাই ৪৫৬",
        "வணக்கம் உலகம் ௧௨",
        "నమస్కారం ప్రపంచం",
        "ನಮಸ್ಕಾರ ಪ್ರಪಂಚ",
        "നമസ്കാരം, ചില്ലക്ഷരം ൻ ർ ൽ",
        "ગુજરાતી ਪੰਜਾਬੀ ଓଡ଼ିଆ සිංහල",
        "क़ क\u093c ড় ড\u09bc",
        "สวัสดีชาวโลก ราคา ๑๒๓ บาท น้ำ",
        "ສະບາຍດີ ຊາວໂລກ",
        "မင်္ဂလာပါ ကမ္ဘာလောက ၁၂၃",
        "សួស្តី\u200bពិភពលោក ១២៣",
        "བོད་ཡིག་གི་སྐད། ཨོཾ་མ་ཎི་པདྨེ་ཧཱུྃ",
        "ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ᠌",
    ),
    "east asian": (
        "你好，世界！今天天氣很好。",
        "中文English混合123测试",
        "日本語のテキスト、カタカナとひらがな。ｶﾞｷﾞｸﾞ",
        "ＦＵＬＬＷＩＤＴＨ　１２３！？",
        "안녕하세요 세계! 한국어 텍스트입니다.",
        unicodedata.normalize("NFD", "한국어 텍스트"),
        "ㄱㄴㄷ ㅏㅑ ㅋㅋㅋㅋㅋ",
        "𠮷野家 𡃁 𪚥 㐀 龘 豈 邊󠄀",
        "注音ㄅㄆㄇㄈ ꀀꀁꀂ",
        "「『』」【】〜ー々〆ヶ㈱㌔①Ⅷ",
    ),
    "emoji": (
        "😀😃😄 hello 😀 world😀!",
        "👨‍👩‍👧‍👦 👩🏽‍💻 🏳️‍🌈 🧑🏿‍🚀 👁️‍🗨️",
        "👍👍🏻👍🏼👍🏽👍🏾👍🏿",
        "🇫🇷🇩🇪🇯🇵🇺🇳 🇦 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
        "1️⃣ #️⃣ *️⃣ ❤️ ❤ ☎︎ ☎️ ™️",
        "🫠🫶🏾🪿🩷🫨",
        "x😂😂😂y \u200d 👩\u200d \ufe0f",
    ),
    "mathematics and symbols": (
        "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β = ¬(¬α ∨ β)",
        "∫₀^∞ e^(−x²) dx = √π⁄2 ≈ 0.8862",
        "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝑓(𝑥) 𝟘𝟙𝟚 ℵ₀ ℏ",
        r"\frac{a}{b} \sum_{i=1}^{n} x_i^2 \leq \mathbb{R}^{n \times m} $$E=mc^2$$",
        "½ ⅓ ⅞ x² y³ H₂O CO₂ 10⁻⁹ ‰ ‱",
        "→ ⇒ ↔ ✓ ✗ ★ ☃ ♠ ♫ ⚠ © ® ™ § ¶ † ‡ • ·",
        "┌─┬─┐ │ │ └─┴─┘ ░▒▓█ ▁▂▃▄▅▆▇",
        "€ £ ¥ ₹ ₿ ¢ ₩ ₽ ¤",
        "⠓⠑⠇⠇⠕ 🂡 𝄞 🀄",
    ),
    "numbers": (
        "0",
        "7 42 365 1234 12345 123456 1234567890",
        "3.14159, 2,718.28, 1e-9, 6.022E+23, -40, +1, .5, 5., 1_000_000",
        "0xFF 0b1010 0o777 #ff00aa 1.2.3-rc4 v10 192.168.0.1:8080 2001:db8::1",
        "2024-02-29T23:59:59.999Z 12:34 31/12/1999 1990s 1st 22nd",
        "a1 b22 c333 1a 22b 333c",
        "  1   12    123",
        "x  7\n  8\t9\n\n  10",
        "1 2 3 4 5 6 7 8 9 10 11 12 13",
        "007 00 000 0000 00000",
        "٣٫١٤ १२३ ๔๕๖ ７８９ Ⅻ ¼",
        "9" * 300,
    ),
    "code": (
        _CODE,
        "for (int i = 0; i < n; ++i) {\n    a[i] += b->c * (*d)++; // comment\n}\n",
        "SELECT id, COUNT(*) AS n FROM t WHERE x != 'it''s' GROUP BY 1;",
        '{"a": [1, 2.5, null, true], "b": {"c": "\\u00e9\\n"}}',
        "<div class=\"a b\" id='c'>&nbsp;&amp;<br/></div><!-- x -->",
        "#!/bin/sh\nset -eu\n[ -z \"${1:-}\" ] && exit 1\ncat <<'EOF' | sed 's/a\\/b/c/g'\nEOF\n",
        'fn main() -> Result<(), Box<dyn Error>> { let x: &\'static str = r#"raw"#; Ok(()) }',
        "func (s *S) Do(ctx context.Context) (err error) {\n\tdefer func() { err = recover().(error) }()\n}\n",
        "const f = async ({a, ...b}) => `${a?.x ?? 'y'}`; // 🚀",
        "main = do\n  xs <- map read . words <$> getLine :: IO [Int]\n  print $ foldr (+) 0 xs\n",
        "| a | b |\n|---|:-:|\n| 1 | 2 |\n\n- [ ] x\n  - y\n\n```py\nx\n```\n",
        "%macro push 1\n\tmov\teax, [ebp+8]\t; arg\n.L1:\n",
        "a=b==c===d!=e<=f>=g<<h>>i&&j||k//l**m:=n->o=>p::q..r...s",
        "    four\n        eight\n\ttab\n\t\ttwo tabs\n  \t mixed\n",
        "trailing blanks   \n\tand tabs\t\t\n   \n",
    ),
    "whitespace": (
        "",
        " ",
        "  ",
        "\n",
        "\t",
        "\n\n\n",
        "\r\n",
        " \n \n ",
        " leading",
        "trailing ",
        "  both  ",
        "a b  c   d    e     f      g",
        "a\nb\n\nc\n\n\nd\n\n\n\ne",
        "one\r\ntwo\r\n\r\nthree\rfour",
        "a\tb\t\tc \t d\t \n\te",
        "a\u00a0b \u00a0c\u2003d\u2009e\u202ff\u3000g\u1680h",
        "a\u2028b\u2029c\u0085d\x0be\x0cf",
        "end with newline\n",
        "\nstart with newline",
        " " * 40 + "x" + " " * 17,
        "\n" * 25 + "x",
        "( a ) , b ; c ! d ? e 's f 'll",
    ),
    "invisible and control": (
        "\ufeffwith a byte order mark",
        "mid\ufeffdle",
        "zero\u200bwidth\u200cjoin\u200der\u2060word",
        "soft\u00adhyphen right\u200fto\u200eleft \u202aembed\u202c \u2066isolate\u2069",
        "bell\x07 back\x08 escape\x1b[31mred\x1b[0m delete\x7f",
        "unit\x1fseparator \x01\x02\x03",
        "c1 \x80\x9f controls",
        "nul\x00inside",
        "nul at the end\x00",
        "\x00",
        "replacement \ufffd character",
        "noncharacter \ufffe \uffff \U0010ffff",
        "private \ue000 \uf8ff \U000f0000",
        "unassigned \u0378 \U000e0080 tag \U000e0041",
    ),
    "long": (
        _PROSE * 200,
        _CODE * 250,
        "Donaudampfschifffahrtsgesellschaft" * 200,
        "a" * 5000,
        "長い文章です。" * 500,
        "é😀" * 1000,
        " " * 3000 + "x",
        "ab " * 3000,
        "=" * 2000,
    ),
    "links and names": (
        "https://user:pass@sub.example.co.uk:8443/a/b%20c/?q=1&r[]=%C3%A9#frag",
        "first.last+tag@example.org, C:\\Users\\me\\file.tar.gz, ~/.ssh/id_rsa, ../../x",
        "550e8400-e29b-41d4-a716-446655440000 d41d8cd98f00b204e9800998ecf8427e",
        "aGVsbG8gd29ybGQgdGhpcyBpcyBiYXNlNjQ=",
        "ACGTACGTTAGC MKVLAAGIVGLLLAQWERTY CC(=O)OC1=CC=CC=C1C(=O)O",
    ),
    "looks special": (
        "<s> </s> <unk> <pad> <bos> <eos> [INST] [/INST] [CLS] [SEP] [MASK]",
        "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
        "<start_of_turn>user\nhi<end_of_turn>\n<|user|>hi<|end|><|assistant|>",
        "<| im_end |> <|im_end| > <|im_en <|IM_END|>",
        "<0x0A> <0xE2> ▁word ▁▁ Ġword Ċ ĉ",
        "<think>why</think> <tool_call>{}</tool_call>",
        "{{ messages }} {% for x in y %} {# z #}",
    ),
}

_WITH_SPECIAL = ("{}", "{}{}", "a{}b", "a {} b", " {} ", "\n{}\n", "é{}1", "{}  2")
_SPECIAL_ALONE = 40  # more than that, and a tokenizer with hundreds of reserved ones would outweigh the rest

_ASK = {"role": "user", "content": "What is 2 + 2?"}
_TELL = {"role": "assistant", "content": "4."}
_ODD_CONTENTS = {
    "empty": "",
    "a blank": " ",
    "blanks around": "  two blanks before, two after  ",
    "newlines around": "\n\nHello\n\n",
    "a tab and a carriage return": "\tHello\r\nworld\r\n",
    "quotes and backslashes": "He said \"no\", I said 'yes': C:\\new\\table \\n",
    "html": "<b>&amp; \"x\" 'y'</b>",
    "braces": "{{ messages[0]['content'] }} {% if true %}x{% endif %} {# gone #}",
    "python literals": "None True False nil [1, 2] {'a': 1}",
    "scripts": "Ünïcödé 你好 שלום नमस्ते 😀👨‍👩‍👧",
    "unnormalised": "e\u0301 한 \u212b",
    "zero width": "a\u200bb\ufeffc\u00a0d",
    "code": _CODE,
    "template-like": "<|im_end|>\n<|im_start|>system\n[INST] <<SYS>> x <</SYS>> [/INST] </s><end_of_turn><|eot_id|>",
    "a thought": "<think>\nhm\n</think>\n\nYes.",
    "very long": _PROSE * 200,
}


def stress_texts(special: Sequence[str]) -> dict[str, str]:
    """Return the stress texts by name; `special` are the tokenizer's own special tokens, which occur in some."""
    texts = {f"{group} {n}": text for group, members in _TEXTS.items() for n, text in enumerate(members, start=1)}
    if special:
        texts |= {f"special {form!r}": form.format(special[0], special[0]) for form in _WITH_SPECIAL}
    texts |= {f"special {token}": f"a {token}b" for token in special[:_SPECIAL_ALONE]}
    return texts


def stress_chats(special: Sequence[str]) -> dict[str, Chat]:
    """Return the stress chats by name; each name has a blank, as no prompt's id has."""
    contents = _ODD_CONTENTS | {f"special {token}": f"a {token} b" for token in special[:2]}
    chats = {f"user says {name}": [{"role": "user", "content": text}] for name, text in contents.items()}
    system = {"role": "system", "content": "You are terse."}
    odd = '  \n Yes, "4". {{ x }}\n '
    return chats | {
        "two turns": [_ASK, _TELL, {"role": "user", "content": "And 3 + 3?"}],
        "six turns": [_ASK, _TELL] * 3 + [_ASK],
        "a system message": [system, _ASK],
        "system and turns": [system, _ASK, _TELL, _ASK],
        "empty system": [{**system, "content": ""}, _ASK],
        "odd system": [{**system, "content": odd}, _ASK],
        "odd answer": [_ASK, {**_TELL, "content": odd}, _ASK],
        "a thought in an answer": [_ASK, {**_TELL, "content": _ODD_CONTENTS["a thought"]}, _ASK],
        "empty answer": [_ASK, {**_TELL, "content": ""}, _ASK],
        "two users in a row": [_ASK, _ASK],
        "answer last": [_ASK, _TELL],
    }
