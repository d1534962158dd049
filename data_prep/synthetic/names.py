"""File names of the public data sets: which person, which camera.

Three families are read: Market-1501 (`0002_c1s1_000451_03.jpg`), DukeMTMC-reID
(`0001_c2_f0046182.jpg`) and MSMT17, both as its lists give it
(`0000/0000_045_12_0303morning_0006_2.jpg 0`) and renamed after Market-1501
(`0000_c12_0045.jpg`).
"""

import dataclasses
import re
from pathlib import PurePosixPath

_MARKET = re.compile(r"^(-1|\d+)_c(\d+)s\d+_")
_DUKE = re.compile(r"^(-1|\d+)_c(\d+)(?:_|s|$)")
_MSMT = re.compile(r"^(\d{4,})_\d+_(\d{2})_\d{4}[a-z]+_")


@dataclasses.dataclass(frozen=True)
class ParsedName:
    """One line of a list of file names.

    Attributes:
      path: relative path of the image.
      pid: identity; -1 is junk, 0 in the Market family a distractor.
      camera: number of the camera as written.
      family: market, duke or msmt.
    """

    path: str
    pid: int
    camera: int
    family: str

    @property
    def is_person(self) -> bool:
        """Whether the name stands for an identity, not for junk or a distractor."""
        return self.pid > 0 or (self.pid == 0 and self.family != "market")


def parse_name(line: str) -> ParsedName:
    """Reads one file name or one line of a list (`path label`).

    Args:
      line: for example "0000/0000_045_12_0303morning_0006_2.jpg 0".

    Returns:
      What the name says.

    Raises:
      ValueError: for a name of no known family or a path that leaves its folder.
    """
    path = PurePosixPath(line.strip().split()[0] if line.strip() else "")
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file name {line!r} leaves its folder; give relative paths")
    for family, pattern in (("market", _MARKET), ("msmt", _MSMT), ("duke", _DUKE)):
        match = pattern.match(path.stem)
        if match:
            return ParsedName(str(path), int(match[1]), int(match[2]), family)
    raise ValueError(
        f"file name {line!r} is of no known family; expected one like 0002_c1s1_000451_03.jpg,"
        " 0001_c2_f0046182.jpg or 0000_045_12_0303morning_0006_2.jpg"
    )
