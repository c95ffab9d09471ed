"""What could not be packed, and why."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Failure:
    """One line of a failures list.

    Attributes:
        source: the video as the annotations or the folder name it.
        reason: one of a few words that can be counted: missing, empty file, unreadable, no video stream, too large,
            too short, decode error, truncated, outside the file, timeout, crashed, not copyable, hdr;
            docs/packing.md says what to do.
        detail: the particulars, on one line.
        examples: how many examples (clips, or keyframes of a localisation set) are lost by it.
        seconds: length of the video that is lost with it, where it is known.
    """

    source: str
    reason: str
    detail: str = ""
    examples: int = 1
    seconds: float = 0.0

    def to_json(self) -> dict[str, str | int | float]:
        return {name: value for name, value in asdict(self).items() if value not in ("", 0.0)}


class Unpackable(Exception):
    """A video that cannot be packed: a reason of `Failure` and a detail."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
