"""Models that come with the package."""

from pathlib import Path

TINY = "audiogen-fast/tiny"
FOLDERS = {TINY: Path(__file__).with_name("tiny")}
"""Where their files are, by name; each has its own licence and model card."""
ABOUT = {
    TINY: "the small model in the package, trained on 80 minutes of freely licensed sound "
    "effects; it knows short sounds and a few hundred descriptions"
}
"""What people should know who did not ask for one of them."""


def labelled(name: str) -> str:
    """The name, with what people should know about the model if it is one of these."""
    return f"{name}: {ABOUT[name]}" if name in ABOUT else str(name)
