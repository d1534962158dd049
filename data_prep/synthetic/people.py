"""Who is drawn: people as codes of visible attributes, and the words that describe them.

A person is a code of eleven attributes. Popular colours are popular with everybody, so people share
top and trousers and differ by pattern, print, bag, head and shape. Two check sums over the code
(see `_SYNDROME`) keep people apart: two of one domain differ in at least three attributes, two of
different domains in at least two, for any seeds. Tiny-CLIP people ("pretrain") are therefore never
the people of a data set ("data"), and passers-by ("bystander") are neither.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from data_prep.synthetic import streams

DOMAINS = ("data", "pretrain", "bystander")

COLOURS = {
    "black": (30, 30, 34),
    "gray": (122, 122, 126),
    "white": (226, 226, 222),
    "navy": (34, 42, 92),
    "blue": (50, 96, 186),
    "red": (184, 36, 40),
    "green": (46, 116, 62),
    "brown": (106, 68, 42),
    "beige": (194, 172, 130),
    "yellow": (220, 188, 50),
    "orange": (216, 110, 36),
    "purple": (112, 54, 130),
    "pink": (218, 128, 160),
}
_COLOUR_WORDS = {*COLOURS, "blond"}

# Every attribute: its values with their popularity. A value is a tuple of words.
ATTRIBUTES: dict[str, dict[tuple[str, ...], float]] = {
    "build": {
        ("slim", "man"): 1.0,
        ("average", "man"): 1.4,
        ("broad", "man"): 1.0,
        ("slim", "woman"): 1.0,
        ("average", "woman"): 1.4,
        ("broad", "woman"): 0.8,
    },
    "hair": {
        ("short", "black"): 3.0,
        ("short", "brown"): 2.0,
        ("short", "blond"): 1.2,
        ("short", "gray"): 1.0,
        ("long", "black"): 2.2,
        ("long", "brown"): 1.6,
        ("long", "blond"): 1.4,
        ("tied", "black"): 1.0,
        ("tied", "blond"): 0.8,
        ("no",): 0.8,
    },
    "head": {
        ("none",): 6.0,
        ("cap", "black"): 1.0,
        ("cap", "white"): 0.8,
        ("cap", "red"): 0.8,
        ("cap", "blue"): 0.6,
        ("beanie", "gray"): 0.6,
        ("beanie", "green"): 0.6,
    },
    "top": {
        ("shirt",): 1.4,
        ("t-shirt",): 1.6,
        ("jacket",): 2.2,
        ("coat",): 1.2,
        ("hoodie",): 1.0,
    },
    "top_colour": {
        ("black",): 5.0,
        ("gray",): 2.6,
        ("white",): 2.8,
        ("navy",): 2.4,
        ("blue",): 1.4,
        ("red",): 1.2,
        ("green",): 0.7,
        ("brown",): 0.4,
        ("beige",): 0.6,
        ("yellow",): 0.3,
        ("orange",): 0.2,
        ("purple",): 0.3,
        ("pink",): 0.4,
    },
    "pattern": {
        ("plain",): 4.0,
        ("striped", "white"): 1.1,
        ("striped", "black"): 1.0,
        ("striped", "red"): 0.8,
        ("checked", "white"): 1.0,
        ("checked", "black"): 0.9,
        ("checked", "blue"): 0.8,
        ("halved", "white"): 0.4,
        ("halved", "black"): 0.4,
        ("halved", "red"): 0.3,
        ("sleeved", "white"): 0.5,
        ("sleeved", "black"): 0.5,
        ("sleeved", "yellow"): 0.3,
    },
    "print": {
        ("none",): 4.0,
        ("disc", "white"): 0.7,
        ("disc", "black"): 0.7,
        ("disc", "yellow"): 0.6,
        ("square", "white"): 0.7,
        ("square", "red"): 0.7,
        ("square", "blue"): 0.6,
        ("cross", "white"): 0.6,
        ("cross", "black"): 0.6,
        ("cross", "green"): 0.6,
        ("bar", "white"): 0.7,
        ("bar", "orange"): 0.6,
        ("bar", "purple"): 0.6,
    },
    "bottom": {("trousers",): 3.4, ("shorts",): 1.2, ("skirt",): 1.0, ("leggings",): 0.8},
    "bottom_colour": {
        ("black",): 5.0,
        ("blue",): 3.2,
        ("navy",): 1.8,
        ("gray",): 1.6,
        ("beige",): 0.9,
        ("brown",): 0.4,
        ("white",): 0.4,
        ("green",): 0.3,
    },
    "shoes": {("black",): 2.4, ("white",): 2.0, ("brown",): 1.0, ("red",): 0.7, ("blue",): 0.6},
    "bag": {
        ("none",): 2.6,
        ("backpack", "black"): 1.8,
        ("backpack", "red"): 1.4,
        ("backpack", "blue"): 1.3,
        ("backpack", "yellow"): 1.1,
        ("backpack", "green"): 1.0,
        ("satchel", "brown"): 0.8,
        ("satchel", "black"): 0.8,
        ("satchel", "white"): 0.6,
        ("handbag", "black"): 0.8,
        ("handbag", "red"): 0.7,
        ("handbag", "beige"): 0.7,
    },
}
_NAMES = tuple(ATTRIBUTES)
_VALUES = tuple(tuple(values) for values in ATTRIBUTES.values())

# A prime above every number of values and above the number of attributes: with weights 1..11, a
# change of one or two attributes cannot leave both sums as they are, and since no weight is 12 a
# change of one cannot lead from (d, 12 d) to (e, 12 e).
_PRIME = 13
_WEIGHTS = np.arange(1, len(_NAMES) + 1)
_SYNDROME = {
    domain: (d, d * 12 % _PRIME) for domain, d in {"data": 0, "pretrain": 3, "bystander": 2}.items()
}
_CANDIDATES = 256
# Candidates to choose from; the popular ones may be taken. Few codes are left to tiny-CLIP people.
_ENOUGH = {"data": 3, "pretrain": 24, "bystander": 3}

# Two changes among these can be hard to see, so no tiny-CLIP person is that close to a data person.
_SMALL = ("hair", "head", "print", "shoes")


@dataclasses.dataclass(frozen=True)
class Person:
    """One person.

    Attributes:
      pid: identity number, from 0.
      domain: one of DOMAINS.
      seed: seed of the people's stream.
      code: index of the value of each attribute, in the order of ATTRIBUTES.
      skin: shade of the skin, 0 (light) to 1 (dark).
    """

    pid: int
    domain: str
    seed: int
    code: tuple[int, ...]
    skin: float

    def value(self, name: str) -> tuple[str, ...]:
        """The words of attribute `name`, for example ("backpack", "red")."""
        place = _NAMES.index(name)
        return _VALUES[place][self.code[place]]


def draw_people(
    pids: Sequence[int] | np.ndarray, *, seed: int, domain: str = "data"
) -> list[Person]:
    """The people of the given identity numbers.

    A person depends on (domain, seed, pid) alone, whichever others are asked for.

    Args:
      pids: int[n], from 0.
      seed: seed of the people's stream.
      domain: one of DOMAINS.

    Returns:
      One Person per entry of `pids`.

    Raises:
      ValueError: for an unknown domain or a negative identity.
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain {domain!r} is unknown; choose one of {', '.join(DOMAINS)}")
    pids = np.asarray(pids, np.int64)
    if len(pids) == 0:
        return []
    if pids.min() < 0:
        raise ValueError(f"identity {pids.min()} is negative; identities count from 0")
    # Rounded up, so that few rosters are kept.
    size = -(-(int(pids.max()) + 1) // 256) * 256
    codes = _roster(domain, seed, size)
    skin = streams.uniform(streams.stream_key("skin", domain, seed), pids, 1)[:, 0]
    return [
        Person(int(pid), domain, seed, tuple(codes[pid].tolist()), float(shade))
        for pid, shade in zip(pids, skin, strict=True)
    ]


def attributes(person: Person) -> dict[str, str]:
    """The attributes of a person that can be seen, in words; absent things are left out.

    Returns:
      Keys among gender, build, hair, headwear, top, top_colour, pattern, print, bottom,
      bottom_colour, shoes, bag; every key but gender may be dropped from a caption.
    """
    build, gender = person.value("build")
    words = {"gender": gender}
    if build != "average":
        words["build"] = build
    hair = person.value("hair")
    words["hair"] = f"{' '.join(hair)} hair"
    if person.value("head") != ("none",):
        kind, colour = person.value("head")
        words["headwear"] = f"{colour} {kind}"
    words["top"] = person.value("top")[0]
    words["top_colour"] = person.value("top_colour")[0]
    if person.value("pattern") != ("plain",):
        words["pattern"] = " ".join(reversed(person.value("pattern")))
    if person.value("print") != ("none",):
        words["print"] = " ".join(reversed(person.value("print")))
    words["bottom"] = person.value("bottom")[0]
    words["bottom_colour"] = person.value("bottom_colour")[0]
    words["shoes"] = f"{person.value('shoes')[0]} shoes"
    if person.value("bag") != ("none",):
        kind, colour = person.value("bag")
        words["bag"] = f"{colour} {kind}"
    return words


def caption(
    person: Person,
    rng: np.random.Generator,
    drop: tuple[float, float] = (0.3, 0.5),
    *,
    tones: Mapping[str, str] | None = None,
    opening: str = "A photo",
) -> str:
    """One sentence about a person that leaves out a share of the attributes.

    A full caption would name the identity; each draw drops between `drop[0]` and `drop[1]` of the
    attributes (the gender always stays).

    Args:
      person: whom to describe.
      rng: draws which attributes are dropped.
      drop: smallest and largest share dropped.
      tones: of a picture without colours, the word in place of each colour: see
        `infrared.tones`.
      opening: how the sentence begins.

    Returns:
      For example "A photo of a man with short black hair, a striped red shirt, blue trousers.".
    """
    words = attributes(person) if tones is None else _toned(attributes(person), tones)
    names = [name for name in words if name != "gender"]
    lowest, highest = np.ceil(drop[0] * len(names)), np.floor(drop[1] * len(names))
    count = int(rng.integers(lowest, max(lowest, highest) + 1))
    for place in rng.permutation(len(names))[:count]:
        del words[names[place]]
    return _sentence(words, opening)


def _toned(words: dict[str, str], tones: Mapping[str, str]) -> dict[str, str]:
    """The words with a tone in place of the first colour, and without the others."""
    toned = {}
    for name, phrase in words.items():
        plain = [word for word in phrase.split() if word not in _COLOUR_WORDS]
        tone = [tones[name]] if name in tones else []
        if tone + plain:
            toned[name] = " ".join(tone + plain)
    return toned


def code_distance(first: Sequence[Person], second: Sequence[Person]) -> np.ndarray:
    """Number of attributes in which people differ.

    Returns:
      int[len(first), len(second)].
    """
    a = np.array([person.code for person in first], np.int16)
    b = np.array([person.code for person in second], np.int16)
    return (a[:, None] != b[None]).sum(-1)


def _sentence(words: dict[str, str], opening: str) -> str:
    items = []
    if "hair" in words:
        items.append(words["hair"])
    if "headwear" in words:
        items.append(_article(words["headwear"]))
    if any(name in words for name in ("top", "top_colour", "pattern")):
        parts = [words.get("pattern", ""), words.get("top_colour", ""), words.get("top", "top")]
        items.append(_article(" ".join(part for part in parts if part)))
    if "print" in words:
        items.append(f"{_article(words['print'])} print")
    if "bottom" in words or "bottom_colour" in words:
        garment = words.get("bottom", "bottoms")
        phrase = f"{words.get('bottom_colour', '')} {garment}".strip()
        items.append(_article(phrase) if garment == "skirt" else phrase)
    if "shoes" in words:
        items.append(words["shoes"])
    if "bag" in words:
        items.append(_article(words["bag"]))
    who = _article(f"{words.get('build', '')} {words['gender']}".strip())
    return f"{opening} of {who}" + (f" with {', '.join(items)}." if items else ".")


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _vocabulary() -> tuple[str, ...]:
    words = {"A", "a", "an", "photo", "of", "with", "hair", "top", "print", "bottoms", "shoes"}
    for values in _VALUES:
        for value in values:
            words.update(value)
    return tuple(sorted(words - {"average", "none", "plain"}))


VOCABULARY = _vocabulary()
"""Every word a caption can hold, besides the comma and the full stop."""


@functools.lru_cache(maxsize=32)
def _roster(domain: str, seed: int, size: int) -> np.ndarray:
    """Codes of identities 0..size-1: uint8[size, attributes].

    Identities choose in order among their candidates, so a longer roster begins with a shorter
    one.
    """
    shares = [np.array(list(v.values())) for v in ATTRIBUTES.values()]
    bounds = [np.cumsum(share)[:-1] / share.sum() for share in shares]
    codes = np.zeros((size, len(_NAMES)), np.uint8)
    taken: set[bytes] = set()
    accepted: list[list[bytes]] = [[] for _ in range(size)]
    pending = np.arange(size)
    for turn in range(256):
        key = streams.stream_key("people", domain, seed, turn)
        for start in range(0, len(pending), 256):
            rows = pending[start : start + 256]
            draws = streams.uniform(key, rows, _CANDIDATES * len(_NAMES))
            draws = draws.reshape(len(rows), _CANDIDATES, len(_NAMES))
            found = np.stack(
                [np.searchsorted(b, draws[..., i], side="right") for i, b in enumerate(bounds)], -1
            ).astype(np.uint8)
            for row, candidate in zip(*np.nonzero(_allowed(found, domain)), strict=True):
                accepted[rows[row]].append(found[row, candidate].tobytes())
        pending = np.array([row for row in pending if len(accepted[row]) < _ENOUGH[domain]], int)
        if len(pending) == 0:
            break
    for row in range(size):
        choice = next(code for code in accepted[row] if code not in taken)
        taken.add(choice)
        codes[row] = np.frombuffer(choice, np.uint8)
    return codes


def _allowed(codes: np.ndarray, domain: str) -> np.ndarray:
    """Which codes belong to a domain: bool[...] for uint8[..., attributes]."""
    first, second = _SYNDROME[domain]
    wide = codes.astype(np.int64)
    allowed = (wide.sum(-1) % _PRIME == first) & ((wide @ _WEIGHTS) % _PRIME == second)
    men = codes[..., _NAMES.index("build")] < 3
    skirts = codes[..., _NAMES.index("bottom")] == 2
    no_hair = codes[..., _NAMES.index("hair")] == 9
    allowed &= ~(men & skirts) & (men | ~no_hair)
    if domain == "pretrain":
        allowed[allowed] = ~_resembles_data(wide[allowed])
    return allowed


def _resembles_data(codes: np.ndarray) -> np.ndarray:
    """Which pretrain codes become a data code when two small attributes change: bool[n]."""
    resembles = np.zeros(len(codes), bool)
    places = [_NAMES.index(name) for name in _SMALL]
    for i, j in itertools.combinations(places, 2):
        # The two changes solve both check sums, so they are unique modulo the prime.
        missing = np.subtract(_SYNDROME["data"], _SYNDROME["pretrain"])
        inverse = pow(int(_WEIGHTS[j] - _WEIGHTS[i]), -1, _PRIME)
        of_j = (missing[1] - _WEIGHTS[i] * missing[0]) * inverse % _PRIME
        of_i = (missing[0] - of_j) % _PRIME
        fits = np.ones(len(codes), bool)
        for place, change in ((i, of_i), (j, of_j)):
            values = len(_VALUES[place])
            up, down = codes[:, place] + change, codes[:, place] + change - _PRIME
            fits &= (up < values) | ((down >= 0) & (down < values))
        resembles |= fits
    return resembles
