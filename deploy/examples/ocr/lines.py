"""Lines of text as a scanner or a camera gives them, drawn with Pillow from a seed. Needs numpy and Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 48, 320  # the network's height, and the width that its authors pad short lines to
SIZES = 12, 40  # font sizes in pixels, before the line is scaled to HEIGHT: the smallest come out blurred
LETTERS = 4, 24  # characters of a line
_SKEW_DEGREES = 1.5
_NOISE = 14.0  # largest standard deviation, in grey levels of 256
_VOCABULARY = (
    "about above after again along amount answer apple area back bank batch before begin behind below between black blue board book both "
    "bottle bridge bright brown build call camera carbon carry change check city class clear clock close cloud coast cold copper corner "
    "cost count country cross danger date delta depth doctor door draft dream drive early earth east edge eight empty engine enough "
    "equal every exit extra factor family farm field figure final first fish five floor flower follow force forest form forward found "
    "four fresh friend front fruit garden gate general glass gold grain grand grass green ground group habit hand harbour heavy height "
    "high history hotel hour house human hundred ice index inside iron island item join journey judge jump kept kettle kind king kitchen "
    "knife lake large laser later learn leave left lemon length letter level light limit line list little local long lower machine main "
    "market matter measure metal middle mile milk minute mixed model moment money month morning mountain mouth move music narrow nature "
    "never night nine north note number object ocean office often open orange order outer oxygen page paint paper part past people phone "
    "picture piece place plain plan plant point power press price proof public pump quality quarter queen quick quiet radio rain range "
    "reach ready record red reason ribbon right river road rock roof room round rule sand scale school sea second sense seven shape sharp "
    "ship short side signal silver simple six size sky slow small snow soft solid sound south space speed spring square stage star "
    "station steel stone store storm street strong sugar summer sun supply surface system table tail tall task ten test thick thin third "
    "three time total tower town track train tree turn twelve twenty under unit upper valley value vector village voice wall warm water "
    "wave week weight west wheel white wide wind window winter wire wood word work world yard year yellow young zero zone"
)
_WORDS = _VOCABULARY.split()


@dataclass(frozen=True)
class Lines:
    """x: float32[n, 3, HEIGHT, WIDTH] in [-1, 1], grey, padded with 0 on the right; text: str[n]."""

    x: NDArray[np.float32]
    text: NDArray[np.str_]


def draw(pillow: Any, fonts: Mapping[str, bytes], count: int, seed: int, taken: Collection[str] = ()) -> Lines:
    """`count` lines, different from each other and from those of `taken`; equal seeds and versions give equal lines.

    Args:
        pillow: a namespace with Pillow's modules Image, ImageDraw, ImageFont.
        fonts: name -> content of a TrueType file.
    """
    random = np.random.default_rng(seed)
    samples: dict[str, NDArray[np.uint8]] = {}
    while len(samples) < count:
        text, font = sentence(random), fonts[str(random.choice(sorted(fonts)))]
        picture = scan(pillow, font, text, random)
        if picture.shape[1] <= WIDTH and text not in taken:
            samples.setdefault(text, picture)
    return Lines(np.stack([as_input(p) for p in samples.values()]), np.array(list(samples)))


def sentence(random: np.random.Generator) -> str:
    """Words, or what stands on labels and receipts: numbers, prices, dates, codes."""
    kinds: tuple[Callable[[np.random.Generator], str], ...] = (_words, _words, _words, _price, _date, _code)
    while True:
        text = kinds[int(random.integers(len(kinds)))](random)
        if LETTERS[0] <= len(text) <= LETTERS[1]:
            return text


def _words(random: np.random.Generator) -> str:
    words = [str(w) for w in random.choice(_WORDS, int(random.integers(1, 5)))]
    style = int(random.integers(4))
    if style == 0:
        return " ".join(words).upper()
    if style == 1:
        return " ".join(w.capitalize() for w in words)
    return " ".join(words).capitalize() + ("." if style == 2 else "")


def _price(random: np.random.Generator) -> str:
    return f"{random.choice(_WORDS)} {random.integers(1, 2000)}.{random.integers(100):02d}"


def _date(random: np.random.Generator) -> str:
    day = f"{random.integers(1990, 2030)}-{random.integers(1, 13):02d}-{random.integers(1, 29):02d}"
    return f"{day} {random.integers(24):02d}:{random.integers(60):02d}"


def _code(random: np.random.Generator) -> str:
    letters = "".join(str(c) for c in random.choice(list("ABCDEFGHJKLMNPRSTUVWXYZ"), int(random.integers(2, 5))))
    return f"{letters}-{random.integers(10**6):06d}/{random.integers(100)}"


def scan(pillow: Any, font_file: bytes, text: str, random: np.random.Generator) -> NDArray[np.uint8]:
    """Draws, turns, adds noise, cuts to the line and scales it to HEIGHT: uint8[HEIGHT, any]."""
    size = int(random.integers(SIZES[0], SIZES[1] + 1))
    font = pillow.ImageFont.truetype(io.BytesIO(font_file), size, layout_engine=pillow.ImageFont.Layout.BASIC)
    ink, sheet = int(random.integers(0, 90)), int(random.integers(190, 256))
    left, top, right, bottom = font.getbbox(text)
    margin = size
    picture = pillow.Image.new("L", (right - left + 2 * margin, bottom - top + 2 * margin), sheet)
    pillow.ImageDraw.Draw(picture).text((margin - left, margin - top), text, fill=ink, font=font)
    angle = float(random.uniform(-_SKEW_DEGREES, _SKEW_DEGREES))
    picture = picture.rotate(angle, resample=pillow.Image.Resampling.BICUBIC, fillcolor=sheet)
    border = [max(1, round(size * float(random.uniform(0.08, 0.25)))) for _ in range(4)]
    x0, y0, x1, y1 = picture.point(lambda grey: 255 * (grey < (ink + sheet) // 2)).getbbox()
    picture = picture.crop((x0 - border[0], y0 - border[1], x1 + border[2], y1 + border[3]))
    noise = random.normal(0.0, float(random.uniform(0.0, _NOISE)), (picture.height, picture.width))
    noisy = pillow.Image.fromarray(np.clip(np.rint(np.asarray(picture) + noise), 0, 255).astype(np.uint8))
    width = max(1, -(-noisy.width * HEIGHT // noisy.height))
    return np.asarray(noisy.resize((width, HEIGHT), pillow.Image.Resampling.BILINEAR))


def as_input(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8[HEIGHT, w <= WIDTH] -> float32[3, HEIGHT, WIDTH]: (grey / 255 - 0.5) / 0.5, then zeros."""
    sample = np.zeros((3, HEIGHT, WIDTH), np.float32)
    sample[:, :, : picture.shape[1]] = (picture.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    return sample
