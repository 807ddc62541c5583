"""nano's word-level tokenizer: special tokens, picture names, punctuation, words, and the numbers up to 1023.

A timestamp at a whole second, "Time 12.0s:", is one token, its number; another one, "Time 12.5s:", is 12 . 5 s:.
"""

from __future__ import annotations

import functools

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from experiments.synthetic import pictures

SPECIAL = ("<unk>", "<visual>", "<|im_start|>", "<|im_end|>")
NUMBERS = 1024
NOTHING = "nothing"  # the word whose embedding visual tokens have where no picture is
_PUNCTUATION = "? . , : ; ! ' \" - ( ) / s:"
_PROMPT = "system user assistant you are helpful time"
_QUESTIONS = """
is there a an which comes first the or when does appear appears at seconds what yes no how many times once twice three
between and in order from to
"""  # the words of all questions and answers, except names and numbers
_COMMON = """
about after again all already also always am any anything anywhere at away back be because been
before begin beginning being below between both but by can clip colour come could did do does
done during each earlier either else end ends ever every find following for frame from get give go
had happen happens has have he her here him his how i if in into it its just kind last later leave
left like long look made make many may me minute minutes more most moment much my name near never
next not now object of off often on once one only other our out over picture place please point put
right same say scene screen second see seen shall she show shown shows so some something start
starts still tell than that their them then there these they thing this those through to together
top two under until up us very video visible was watch way we well were where whether while who
whole why will with within without would your anyone animal food happening three four five six
seven eight nine ten answer question
"""


@functools.cache
def words() -> tuple[str, ...]:
    """Every token of the vocabulary; the index of a token is its id."""
    names = pictures.load()[0]
    plain = sorted({*_PROMPT.split(), *_QUESTIONS.split(), *_COMMON.split(), NOTHING} - set(names))
    return *SPECIAL, *names, *_PUNCTUATION.split(), *plain, *map(str, range(NUMBERS))


@functools.cache
def tokenizer() -> Tokenizer:
    """Text becomes lower case and is split into numbers, "s:", words and punctuation. White space is dropped, and all of
    a timestamp at a whole second except its number."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words())}, unk_token="<unk>"))

    def drop(pattern):
        return normalizers.Replace(Regex(pattern), "")

    made.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), drop(r"\btime (?=\d+(\.\d+)?s:)"), drop(r"(?<=\d)\.0s:")]
    )
    pieces = Regex(r"<\|[a-z_]+\|>|\d+|s:|[a-z]+|[^\sa-z\d]")
    made.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    return made


def encode(text: str) -> list[int]:
    """Token ids of `text`."""
    return tokenizer().encode(text, add_special_tokens=False).ids


def name_ids() -> list[int]:
    """Ids of the picture names, in the order of `pictures.load()`, and of NOTHING."""
    return [words().index(name) for name in (*pictures.load()[0], NOTHING)]


def number_ids() -> list[int]:
    """Ids of the numbers 0, 1, … in order."""
    first = words().index("0")
    return list(range(first, first + NUMBERS))
