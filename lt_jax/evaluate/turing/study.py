"""What passes between maker, reader and scorer: the key, and a reader's results."""

import collections
import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lt_jax.errors import UserError
from lt_jax.runtime import files

KEY_VERSION, RESULTS_VERSION = 1, 1
REAL, SYNTHETIC, MISSING = 0, 1, -1
ANSWERS = {"real": REAL, "synthetic": SYNTHETIC}
CONFIDENCES = (1, 2, 3, 4, 5)
_LONGEST_NAME = 60


class StudyError(UserError, ValueError):
    """A study that cannot be made of these images, or results that do not belong to one."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One image of a study.

    Attributes:
      id: as in the page; says nothing.
      synthetic: the answer.
      label: the class's index.
      source: the manifest's id of a real image, the pool's index of a synthetic one.
    """

    id: str
    synthetic: bool
    label: int
    source: str


@dataclasses.dataclass(frozen=True)
class Key:
    """The answers to a study, and whence its images come.

    Attributes:
      study: hash of the images in their order; the page and all results carry it.
      split: of the manifest; the real images are its.
      manifest_sha256: of the manifest, to which the pool belongs.
      generator: key of the generator's artifact.
      pool_sha256: of the pool's table.
    """

    study: str
    seed: int
    split: str
    manifest_sha256: str
    generator: str
    pool_sha256: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]

    @property
    def synthetic(self) -> Bool[np.ndarray, "n"]:
        """The answers."""
        return np.array([item.synthetic for item in self.items], bool)

    @property
    def labels(self) -> Int[np.ndarray, "n"]:
        """The classes."""
        return np.array([item.label for item in self.items], np.int32)

    def save(self, path: pathlib.Path) -> None:
        """Writes it, whole or not at all."""
        text = json.dumps({"version": KEY_VERSION, **dataclasses.asdict(self)}, indent=1)
        files.write_atomically(path, text + "\n", "the study's key")


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """What a reader answered, by image in the key's order [n].

    Attributes:
      token: made up by the page, one a reader and browser.
      name: as given, or "".
      years: of experience, or None.
      answers: REAL, SYNTHETIC or MISSING.
      confidence: one of CONFIDENCES; 0 where none was given.
      seconds: that the image was on view before it was answered; NaN where that is unknown.
    """

    path: pathlib.Path
    token: str
    name: str
    years: float | None
    answers: Int[np.ndarray, "n"]
    confidence: Int[np.ndarray, "n"]
    seconds: Float[np.ndarray, "n"]


def load_key(path: pathlib.Path) -> Key:
    """Reads a study's key.

    Raises:
      StudyError: missing, unreadable, or of another version.
    """
    if not path.is_file():
        raise StudyError(
            f"{path}: no such key; `make` wrote it beside the page, as turing.key.json: give it "
            "with --key"
        )
    values = _object(path, "key of a study")
    try:
        if (version := values.pop("version")) != KEY_VERSION:
            raise StudyError(f"{path}: version {version}, this program reads {KEY_VERSION}")
        items = tuple(Item(**item) for item in values.pop("items"))
        key = Key(**{**values, "classes": tuple(values["classes"]), "items": items})
    except (KeyError, TypeError) as error:
        raise StudyError(f"{path}: no key of a study ({type(error).__name__}: {error})") from error
    if len({item.id for item in items}) < len(items) or not items:
        raise StudyError(f"{path}: no key of a study (no images, or an id that stands twice)")
    return key


def load_results(path: pathlib.Path, key: Key) -> Results:
    """Reads what one reader answered; images without an answer are MISSING.

    Raises:
      StudyError: the file is missing, truncated, of another study, or holds no answers or ones
        that the page does not give.
    """
    values = _object(path, "results of a reader")
    if "study" not in values or not isinstance(values.get("answers"), list):
        raise StudyError(f"{path}: no results of a reader; takes the file that the page downloads")
    if values["study"] != key.study:
        raise StudyError(
            f"{path}: answers to study {_plain(values['study'])}, the key is of study {key.study}; "
            "give the key that was written with the reader's page"
        )
    if values.get("version") != RESULTS_VERSION:
        raise StudyError(
            f"{path}: version {_plain(values.get('version'))}, this program reads {RESULTS_VERSION}"
        )
    row_of = {item.id: row for row, item in enumerate(key.items)}
    answers = np.full(len(row_of), MISSING)
    confidence = np.zeros(len(row_of), int)
    seconds = np.full(len(row_of), np.nan)
    for number, entry in enumerate(values["answers"]):
        where = f"{path}: answer {number + 1}"
        row, answers_it, sure, took = _answer(entry, row_of, where)
        if answers[row] != MISSING:
            raise StudyError(f"{where}: image {_plain(entry['id'])} is answered twice")
        answers[row], confidence[row], seconds[row] = answers_it, sure, took
    if (answers == MISSING).all():
        raise StudyError(f"{path}: holds no answers")
    reader = values.get("reader")
    told: Mapping[str, Any] = reader if isinstance(reader, dict) else {}
    return Results(
        path,
        _plain(told.get("token") or ""),
        _plain(told.get("name") or "").strip(),
        _number(told.get("years")),
        answers,
        confidence,
        seconds,
    )


def named(results: Sequence[Results]) -> tuple[str, ...]:
    """A name for each reader; those who gave none are numbered.

    Raises:
      StudyError: a reader's results are given twice: by the page's token, or by name.
    """
    for what in ("token", "name"):
        given = [getattr(one, what).casefold() for one in results]
        for value, count in collections.Counter(given).items():
            if value and count > 1:
                twice = [one for one, own in zip(results, given, strict=True) if own == value]
                told = " and ".join(
                    f"{one.path} ({int((one.answers != MISSING).sum())} answers)" for one in twice
                )
                raise StudyError(
                    f"{told} are of one reader ({what} {getattr(twice[0], what)!r}); give the "
                    "later file alone, or, if two readers share a name, change it in one file"
                )
    return tuple(one.name or f"reader {number + 1}" for number, one in enumerate(results))


def _answer(entry: Any, row_of: Mapping[str, int], where: str) -> tuple[int, int, int, float]:
    """Row, answer, confidence and seconds of one entry."""
    if not isinstance(entry, dict) or not {"id", "answer"} <= set(entry):
        raise StudyError(f"{where}: takes an object with id and answer")
    if not isinstance(entry["id"], str) or entry["id"] not in row_of:
        raise StudyError(f"{where}: image {_plain(entry['id'])} is not in the study")
    if not isinstance(entry["answer"], str) or entry["answer"] not in ANSWERS:
        raise StudyError(f"{where}: got {_plain(entry['answer'])}; takes real or synthetic")
    sure = entry.get("confidence")
    if sure is not None and (type(sure) is not int or sure not in CONFIDENCES):
        raise StudyError(f"{where}: confidence {_plain(sure)}; takes 1 to 5, or none")
    took = _number(entry.get("milliseconds"))
    return (
        row_of[entry["id"]],
        ANSWERS[entry["answer"]],
        int(sure or 0),
        math.nan if took is None else took / 1000,
    )


def _object(path: pathlib.Path, what: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StudyError(f"{path}: no such file") from error
    except ValueError as error:
        raise StudyError(
            f"{path}: no readable {what} ({error}); it may have been cut short: fetch it again"
        ) from error
    if not isinstance(values, dict):
        raise StudyError(f"{path}: no {what}")
    return values


def _number(value: Any) -> float | None:
    """A finite number that is not negative, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None


def _plain(value: Any) -> str:
    """What a file from elsewhere says, fit for a terminal."""
    return "".join(c for c in str(value) if c.isprintable())[:_LONGEST_NAME]
