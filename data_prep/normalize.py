"""The VQA challenge's answer normalization: exact match compares normalized strings.

>>> normalize("The  Two-tone Mug.")
'2 tone mug'
>>> normalize("A") == normalize("a"), normalize("3.5 lbs")
(True, '3.5 lbs')
"""

from __future__ import annotations

import re
from functools import lru_cache

NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = {"a", "an", "the"}
CONTRACTIONS = {
    "aint": "ain't", "arent": "aren't", "cant": "can't", "couldnt": "couldn't", "didnt": "didn't", "doesnt": "doesn't",
    "dont": "don't", "hadnt": "hadn't", "hasnt": "hasn't", "havent": "haven't", "isnt": "isn't", "its": "it's",
    "mustnt": "mustn't", "shouldnt": "shouldn't", "thats": "that's", "wasnt": "wasn't", "werent": "weren't",
    "whats": "what's", "wont": "won't", "wouldnt": "wouldn't", "youre": "you're",
}  # fmt: skip
_PUNCTUATION = re.compile(r'[;/\[\]"{}()=+\\_><@`?!-]')
_PERIOD = re.compile(r"\.(?!\d)")  # a decimal point stays
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")


@lru_cache(maxsize=200_000)
def normalize(answer: str) -> str:
    """Lower-case, remove punctuation and articles, write number words as digits, restore apostrophes in contractions.

    The steps of the VQA challenge's evaluation code (Antol et al. 2015, "VQA: Visual Question Answering",
    ``vqaEvaluation/vqaEval.py``), with three differences: hyphens and colons always become spaces, only common contractions
    are listed, and an answer that consists of articles alone is kept, since it would become empty.
    """
    text = answer.lower().strip().replace("\n", " ").replace("\t", " ")
    text = _COMMA_IN_NUMBER.sub("", text).replace(",", " ")
    text = _PERIOD.sub("", _PUNCTUATION.sub(" ", text)).replace(":", " ")
    words = [CONTRACTIONS.get(w, w) for w in (NUMBERS.get(word, word) for word in text.split())]
    kept = [w for w in words if w not in ARTICLES]
    return " ".join(kept or words)
