"""The packages that sounds are taken from, what is used of each, and under which licence."""

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

from audiogen_fast.training.corpus.containers import Member

FREE = ("CC0-1.0", "CC-BY-3.0", "CC-BY-SA-3.0", "CC-BY-SA-3.0+", "public-domain")
"""Licences of what a model may learn from; others only serve to judge it."""
FREE_TOO = ("CC0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-SA-3.0 or CC-BY-3.0")
"""Those that only the packages of `LARGE_PACKAGES` count as free: the split of the others was made
without them."""
_OPENCLONK_CC0 = (
    r"Balloon/Pop|SoftTouch|SoftHit2|GeneralHit|DullMetalHit|DullWoodHit2|GlassHit|Catapult|"
    r"BlastLiquid1|RockHit|/Fuse|LightMetalHit2|/Earthquake\.|WoodCreak|Boiling|Blowout|"
    r"SteamEngine|Pumpjack|Puka/Teleport|Click2|MosquitoBuzz|Furnace/|SawmillRipcut|Fossilize"
)


@dataclass(frozen=True)
class Package:
    """One Debian package."""

    name: str
    licence: str
    """Of all its sounds; `title`: the container says; `copyright`: its copyright file does."""
    credit: str
    keep: str = ""
    """Pattern of the members that are sounds to use."""
    others: tuple[tuple[str, str], ...] = ()
    """Patterns of members, and the licence that those have instead."""
    prefix: str = ""
    """What the copyright file puts before the names of members."""
    strip: str = ""
    """What it leaves out of them."""
    held_out: bool = True
    """Whether sounds of it may judge; those of others are only learnt from."""

    def may_teach(self, licence: str) -> bool:
        """Whether a model may learn from its sounds under this licence."""
        return licence in FREE or (not self.held_out and licence in FREE_TOO)

    def licence_of(self, member: Member, copyright: str) -> str:
        for pattern, licence in self.others:
            if re.search(pattern, member.name):
                return licence
        if self.licence == "title":
            return _licence_in_title(member.note)
        if self.licence == "copyright":
            name = member.name.removeprefix(self.strip)
            return _licence_in_copyright(copyright, self.prefix + name)
        return self.licence

    def credit_of(self, member: Member) -> str:
        return member.note.split(" License:")[0] if member.note else self.credit


PACKAGES = (
    Package("openttd-opensfx", "title", "OpenSFX contributors"),
    Package("scratch", "CC-BY-SA-3.0", "MIT Media Lab, Scratch 1.4", "Media/Sounds/"),
    Package(
        "minetest-data",
        "CC-BY-SA-3.0",
        "Minetest contributors (see debian/copyright)",
        r"minetest_game/mods/.*\.ogg$",
        (("mods/doors/sounds", "CC-BY-3.0"),),
    ),
    Package("ufoai-sound", "copyright", "UFO:AI team", prefix="base/"),
    Package("wordwarvi-sound", "CC-BY-SA-3.0", "Stephen M. Cameron"),
    Package("sonic-pi-samples", "CC0-1.0", "freesound.org, see samples/README.md", "samples/"),
    Package("ardentryst", "CC-BY-SA-3.0", "Kendra Pietruszewski and others", "/Sounds/"),
    Package(
        "openclonk-data",
        "CC-BY-3.0",
        "see Sound.ocg/authors.txt",
        r"Sound\.ocg!",
        ((_OPENCLONK_CC0, "CC0-1.0"),),
    ),
    Package("flare-game", "CC-BY-SA-3.0+", "Clint Bellanger and others", "/soundfx/"),
)
"""Mostly under licences of `FREE`."""

OTHER_PACKAGES = (
    Package("gcompris-qt-data", "copyright", "GCompris contributors", strip="gcompris/"),
    Package("wesnoth-1.16-data", "GPL-2+", "Battle for Wesnoth project", "/sounds/"),
    Package("lincity-ng-data", "GPL-2+ or CC-BY-SA-2.0", "LinCity-NG team", "/sounds/"),
    Package("scorched3d-data", "GPL-2+", "Gavin Camp", "", (("globalmods/apoc", "CC-BY-SA-3.0"),)),
    Package("searchandrescue-data", "GPL", "SearchAndRescue authors"),
    Package("simutrans-pak64", "Artistic-1.0", "Simutrans team"),
    Package("sound-icons", "GPL-2+", "Brailcom"),
    Package("bucklespring-data", "GPL-2+", "Ico Doornekampt"),
)
"""Mostly under other licences."""

LARGE_PACKAGES = (
    Package("0ad-data", "CC-BY-SA-3.0", "Wildfire Games", "audio/", held_out=False),
    Package("megaglest-data", "CC-BY-SA-3.0", "MegaGlest team", held_out=False),
    Package(
        "redeclipse-data",
        "copyright",
        "Red Eclipse team (see debian/copyright)",
        "data/sounds/",
        strip="usr/share/games/redeclipse/",
        held_out=False,
    ),
    Package("lugaru-data", "CC-BY-SA-3.0", "Wolfire Games", "/Sounds/", held_out=False),
    Package(
        "supertuxkart-data",
        "copyright",
        "SuperTuxKart team (see debian/copyright)",
        strip="usr/share/games/supertuxkart/",
        held_out=False,
    ),
    Package("minetest-mod-homedecor", "CC-BY-SA-4.0", "Vanessa Dannenberg", held_out=False),
)
"""Three gigabytes under free licences, only to learn from: what judges is the same without."""


def _licence_in_title(title: str) -> str:
    for word, licence in (("Zero", "CC0-1.0"), ("ShareAlike", "CC-BY-SA-3.0")):
        if word in title:
            return licence
    return "CC-BY-3.0" if "Attribution 3.0" in title else "CC-BY-SA-3.0"


def _licence_in_copyright(copyright: str, path: str) -> str:
    """By the last paragraph that names the file, as Debian's format DEP-5 has it."""
    found = "see copyright"
    for paragraph in re.split(r"\n\s*\n", copyright):
        files = re.match(r"Files:\s*(.*?)\n(?=\S)", paragraph + "\n.", re.S)
        licence = re.search(r"^License:\s*(.*)$", paragraph, re.M)
        if files and licence:
            patterns = [p for glob in files[1].split() for p in (glob, f"*/{glob}")]
            if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns):
                found = licence[1].strip()
    return found


class CaptionRules:
    """What a sound is called: `captions.tsv` has a package, a pattern of members and a caption in
    each line; the first that fits counts, and `-` leaves the sound out."""

    def __init__(self, path: Path):
        self.rules: dict[str, list[tuple[re.Pattern[str], str]]] = {}
        for line in path.read_text("utf-8").splitlines():
            if line and not line.startswith("#"):
                package, pattern, caption = line.split("\t")
                rule = (re.compile(pattern, re.IGNORECASE), caption)
                self.rules.setdefault(package, []).append(rule)

    def caption(self, package: str, member: str) -> str | None:
        for pattern, caption in self.rules.get(package, []):
            if match := pattern.search(member):
                if "{1}" in caption:
                    caption = caption.replace("{1}", match[1].replace("_", " ").lower())
                return None if caption == "-" else caption
        return None
