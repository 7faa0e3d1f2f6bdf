"""Weekdays, times of day and dates as people write them, for the answers to `schedules`.

An answer has to name the weekday, and one time or one date. Dates in digits other than ISO's are not read: 7/6 is June in one
country and July in another.
"""

from __future__ import annotations

import calendar
import datetime
import re

_DAYS = tuple(name.casefold() for name in calendar.day_name)
_MONTHS = tuple(name.casefold() for name in calendar.month_name)
_TIME = re.compile(r"(?<![\d:.-])(\d\d?)(?::(\d\d)(?!\d))?\s*(?:([ap])\.?\s?m\b\.?)?", re.IGNORECASE)
_NAMED_TIMES = {0: r"\bmidnight\b", 12 * 60: r"\bnoon\b"}
_YEAR = r"(?P<year>\d{4})(?!\d)"
_DATES = (
    re.compile(r"(?P<year>\d{4})-(?P<number>\d\d)-(?P<day>\d\d)"),
    re.compile(rf"(?P<day>\d\d?)(?:st|nd|rd|th)?(?: of)? (?P<month>[a-z]{{3,9}})\.?,?(?: {_YEAR})?", re.IGNORECASE),
    re.compile(rf"(?P<month>[a-z]{{3,9}})\.? (?P<day>\d\d?)(?:st|nd|rd|th)?\b(?:,? {_YEAR})?", re.IGNORECASE),
)


def is_time(answer: str, day: int, minutes: int) -> bool:
    """Whether an answer names this day of the week (0 is Monday) and this time, in minutes, and no others.

    >>> is_time("2:05 p.m. on Tue", 1, 14 * 60 + 5), is_time("Tuesday 2:05", 1, 14 * 60 + 5)
    (True, False)
    """
    return _weekdays(answer) == {day} and _times(answer) == {minutes}


def is_date(answer: str, date: datetime.date) -> bool:
    """Whether an answer names this date, with its weekday, with or without its year, and no other.

    >>> is_date("Sunday, June 7th", datetime.date(2026, 6, 7)), is_date("7 June 2026", datetime.date(2026, 6, 7))
    (True, False)
    """
    named = {
        (int(fields["year"] or date.year), month, int(fields["day"]))
        for pattern in _DATES
        for match in pattern.finditer(answer)
        if (month := _month(fields := match.groupdict()))
    }
    return _weekdays(answer) == {date.weekday()} and named == {(date.year, date.month, date.day)}


def _weekdays(text: str) -> set[int]:
    """The weekdays that a text names, in full or by three letters and more."""
    words = {word.removesuffix("s") for word in re.findall(r"[a-z]{3,}", text.casefold())}
    return {number for number, day in enumerate(_DAYS) if any(day.startswith(word) for word in words)}


def _times(text: str) -> set[int]:
    """The times that a text names, in minutes; a bare number is none. 5:60 counts, as a time that is never right."""
    times = {minutes for minutes, word in _NAMED_TIMES.items() if re.search(word, text, re.IGNORECASE)}
    for match in _TIME.finditer(text):
        hour, minute, half = int(match[1]), int(match[2] or 0), (match[3] or "").casefold()
        if match[2] or half:
            times.add((hour % 12 + 12 * (half == "p") if half else hour) * 60 + minute)
    return times


def _month(fields: dict[str, str | None]) -> int | None:
    """The month of a date: its number, or a word of at least three letters."""
    if fields.get("number"):
        return int(fields["number"] or 0)
    word = (fields["month"] or "").casefold()
    word = "sep" if word == "sept" else word
    return next((number for number, month in enumerate(_MONTHS) if month and month.startswith(word)), None)
