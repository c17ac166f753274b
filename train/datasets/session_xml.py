"""The session.xml of a MAHNOB-HCI session: plain attributes, and nothing that XML can do beyond them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn
from xml.parsers import expat

from knarr.train.data_error import DataError

MAX_XML_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 16


@dataclass(frozen=True)
class Session:
    """Attributes of a session.

    Args:
        path: The file.
        session_id: As written.
        subject: The person's number, at least 1.
        attributes: All attributes of the element `session`.
    """

    path: Path
    session_id: str
    subject: int
    attributes: dict[str, str]

    @property
    def rated(self) -> bool:
        """Whether the person said what it felt; neutral clips and damaged sessions have no felt arousal."""
        return "feltArsl" in self.attributes

    def rating(self, name: str) -> int:
        """A felt score, 1 .. 9.

        Raises:
            DataError: Absent, not a whole number, or out of range.
        """
        text = self.attributes.get(name)
        if text is None:
            raise DataError(self.path, f"label missing: no {name}; restore the file", self.session_id)
        if not re.fullmatch("[1-9]", text):
            reason = f"label out of range: {name} is '{text[:40]}', not one of 1 .. 9; restore the file"
            raise DataError(self.path, reason, self.session_id)
        return int(text)


def read_session(path: Path) -> Session:
    """Read a session.xml whose size was checked.

    Raises:
        DataError: "malformed XML" (a document type or an entity is refused too), or no `session` with a sessionId and
            exactly one `subject` with a whole number for an id.
    """
    elements: list[tuple[int, str, dict[str, str]]] = []
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        if depth >= MAX_DEPTH:
            raise DataError(path, f"malformed XML: deeper than {MAX_DEPTH} elements; restore the file")
        elements.append((depth, name, attributes))
        depth += 1

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1

    def refuse(*_: object) -> NoReturn:
        raise DataError(
            path, "malformed XML: it declares a document type or an entity, none allowed; remove it"
        )

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except (
        expat.ExpatError,
        ValueError,
        LookupError,
    ) as error:  # the latter two of encodings it does not know
        raise DataError(path, f"malformed XML: {error}; restore the file") from error
    _, name, attributes = elements[0]
    if name != "session" or not attributes.get("sessionId"):
        raise DataError(path, "malformed session: no element 'session' with a sessionId; restore the file")
    people = [found.get("id", "") for level, child, found in elements if (level, child) == (1, "subject")]
    if len(people) != 1 or not re.fullmatch("[0-9]{1,9}", people[0]) or int(people[0]) < 1:
        reason = (
            f"malformed session: subjects {str(people)[:100]}, not one with a number from 1; restore the file"
        )
        raise DataError(path, reason, attributes["sessionId"])
    return Session(path, attributes["sessionId"], int(people[0]), attributes)
