"""Schedules: times of day over midnight and local times, and dates with days, weeks and business days.

Times add hours and minutes by themselves and then carry: `Monday 23:50 + 2:35 = 23 + 2 = 25, 50 + 35 = 85 -> 85 - 60 = 25, 25 + 1 =
26 -> 26 - 24 = 2 -> Tuesday 2:25`. Dates count on in the month and carry over its end, and weekdays are listed from the last whole
week on; business days are listed one by one. Local times are given as a difference to the one before, so no clock change is involved.
"""

from __future__ import annotations

import abc
import calendar
import datetime
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from cot_unsloth.tasks import time_answers
from cot_unsloth.tasks.stepwise import ARROW, Step, StepwiseProblem, StepwiseTask, value_of

DAYS = tuple(calendar.day_name)
MONTHS = tuple(calendar.month_name)
DAY_MINUTES = 24 * 60
SHORT = 2
"""Schedules of so few changes have changes of a few hours or days: then the smallest models can learn them."""
_NAMED_DAY = "|".join(DAYS)
_TIME = re.compile(rf"(?P<day>{_NAMED_DAY}) (?P<hour>\d\d?):(?P<minute>\d\d)")
_DATE = re.compile(rf"(?P<weekday>{_NAMED_DAY}) (?P<day>\d\d?) (?P<month>{'|'.join(MONTHS[1:])}) (?P<year>\d{{4}})")


class Schedule(StepwiseProblem):
    """A chain of changes to a time or a date, from `start`."""

    start: str
    changes: tuple[Change, ...]
    event: str
    first: ClassVar[str]
    """The first line of the question, with places for the event and the start."""
    asked: ClassVar[str]
    """Its last line."""

    @property
    def question(self) -> str:
        """The start, the changes by number, and what is asked."""
        lines = [f"({number}) {change.phrase}" for number, change in enumerate(self.changes, start=1)]
        return "\n".join([self.first.format(event=self.event, start=self.start), *lines, self.asked])

    @property
    def key(self) -> str:
        """The wording does not matter."""
        return f"{self.task}|{self.start}|{' '.join(change.key for change in self.changes)}"

    @property
    def length(self) -> int:
        """See `StepwiseProblem`."""
        return len(self.changes)

    def step(self, index: int, values: Sequence[str]) -> Step:
        """See `StepwiseProblem`."""
        return self.changes[index - 1].step(values[-1] if values else self.start)

    def reads(self, index: int, value: str) -> bool:
        """See `StepwiseProblem`."""
        return _read_time(value) is not None or _read_date(value) is not None

    def output(self, values: Sequence[str]) -> str:
        """The last value."""
        return values[-1]

    def wrong_results(self, index: int, step: Step) -> Sequence[str]:
        """Errors of an hour or ten minutes, and minutes that are not carried; errors of a day or two."""
        return self.changes[index - 1].wrong_results(step)

    def reason(self, index: int, step: Step, result: str) -> str:
        """What the result is instead."""
        return self.changes[index - 1].reason(step, result)


class Change(abc.ABC):
    """One step of a schedule."""

    phrase: str
    """Its wording in question and solution."""

    @property
    @abc.abstractmethod
    def key(self) -> str:
        """What it does, whatever the wording."""

    @abc.abstractmethod
    def step(self, before: str) -> Step:
        """The step that applies it to a time or date; a value of the other kind is left as it is."""

    @abc.abstractmethod
    def wrong_results(self, step: Step) -> Sequence[str]:
        """See `StepwiseProblem`."""

    def reason(self, step: Step, result: str) -> str:
        """See `StepwiseProblem`."""
        return f"{step.expression} is {value_of(step.result)}, not {value_of(result)}."


def clock(minutes: int) -> str:
    """Minutes as hours and minutes; also more than 24 hours.

    >>> clock(155), clock(1585)
    ('2:35', '26:25')
    """
    return f"{minutes // 60}:{minutes % 60:02d}"


def time_text(minutes: int) -> str:
    """Minutes since Monday 0:00, modulo a week, as a day and a time.

    >>> time_text(1585)
    'Tuesday 2:25'
    """
    day, minute = divmod(minutes % (7 * DAY_MINUTES), DAY_MINUTES)
    return f"{DAYS[day]} {clock(minute)}"


def _read_time(text: str) -> int | None:
    match = _TIME.fullmatch(text)
    if match is None or int(match["hour"]) > 23 or int(match["minute"]) > 59:
        return None
    return DAYS.index(match["day"]) * DAY_MINUTES + int(match["hour"]) * 60 + int(match["minute"])


@dataclass(frozen=True)
class Elapse(Change):
    """Minutes pass, or the clock is set forward or back to a local time."""

    minutes: int
    phrase: str

    @property
    def key(self) -> str:
        """See `Change`."""
        return f"{self.minutes:+d}min"

    def step(self, before: str) -> Step:
        """See `Change`."""
        sign = "+" if self.minutes >= 0 else "-"
        start = _read_time(before)
        result = before if start is None else self._result(start)
        return Step(self.phrase, f"{{}} {sign} {clock(abs(self.minutes))}", (before,), result)

    def _result(self, start: int) -> str:
        """Hours and minutes each by themselves, then what is carried or borrowed, then the day and time."""
        (hour, minute), (hours, minutes) = divmod(start % DAY_MINUTES, 60), divmod(abs(self.minutes), 60)
        shown = []
        if self.minutes >= 0:
            shown.append(f"{hour} + {hours} = {hour + hours}, {minute} + {minutes} = {minute + minutes}")
            hour, minute = hour + hours, minute + minutes
            if minute > 59:
                shown.append(f"{minute} - 60 = {minute - 60}, {hour} + 1 = {hour + 1}")
                hour += 1
            if hour > 23:
                shown.append(f"{hour} - 24 = {hour - 24}")
        else:
            if minute < minutes:
                shown.append(f"{minute} + 60 = {minute + 60}, {hour} - 1 = {hour - 1}")
                hour, minute = hour - 1, minute + 60
            if hour < hours:
                shown.append(f"{hour} + 24 = {hour + 24}")
                hour += 24
            shown.append(f"{hour} - {hours} = {hour - hours}, {minute} - {minutes} = {minute - minutes}")
        return ARROW.join([*shown, time_text(start + self.minutes)])

    def wrong_results(self, step: Step) -> Sequence[str]:
        """See `Change`; where an hour is carried or borrowed, forgetting it is as likely as all the others together."""
        value = value_of(step.result)
        end, head = _read_time(value), step.result.removesuffix(value)
        if end is None:
            return [f"{DAYS[0]} 0:00"]
        slips = (-60, 60, -10, 10, DAY_MINUTES, *[-60 if self.minutes > 0 else 60] * (5 * _carries(step)))
        return [head + time_text(end + slip) for slip in slips]

    def reason(self, step: Step, result: str) -> str:
        """See `Change`."""
        (day, time), wrong = value_of(step.result).split(" "), value_of(result).split(" ")
        if time == wrong[-1]:
            return f"The day is {day}, not {wrong[0]}."
        if _carries(step) and time.split(":")[1] == wrong[-1].split(":")[-1]:
            return f"60 minutes are an hour, so it is {day} {time}, not {' '.join(wrong)}."
        return super().reason(step, result)


def _carries(step: Step) -> bool:
    """Whether an hour is carried or borrowed."""
    return "- 60 =" in step.result or "+ 60 =" in step.result


def date_text(date: datetime.date, weekday: int | None = None) -> str:
    """A date with its weekday, or with another one that a model wrote.

    >>> date_text(datetime.date(2026, 5, 28))
    'Thursday 28 May 2026'
    """
    return f"{DAYS[date.weekday() if weekday is None else weekday % 7]} {date.day} {MONTHS[date.month]} {date.year}"


def _read_date(text: str) -> tuple[datetime.date, int] | None:
    """A date and the weekday as written, from 0 for Monday."""
    match = _DATE.fullmatch(text)
    try:
        assert match is not None
        date = datetime.date(int(match["year"]), MONTHS.index(match["month"]), int(match["day"]))
    except (AssertionError, ValueError):
        return None
    return (date, DAYS.index(match["weekday"])) if 1900 <= date.year <= 2199 else None


@dataclass(frozen=True)
class Days(Change):
    """Calendar days or business days pass."""

    days: int
    kind: Literal["days", "business days"]
    phrase: str

    @property
    def key(self) -> str:
        """See `Change`."""
        return f"+{self.days}{'b' if self.kind == 'business days' else 'd'}"

    def step(self, before: str) -> Step:
        """See `Change`."""
        read = _read_date(before)
        count = f"{self.days} {self.kind if self.days > 1 else self.kind.removesuffix('s')}"
        result = before if read is None else self._business(*read) if self.kind != "days" else self._calendar(*read)
        return Step(self.phrase, f"{{}} + {count}", (before,), result)

    def _calendar(self, date: datetime.date, weekday: int) -> str:
        """The day of the month with what is over its end, then the weekdays that are left after whole weeks."""
        shown, day, month = (
            [f"{date.day} + {self.days} = {date.day + self.days}"],
            date.day + self.days,
            date.replace(day=1),
        )
        while day > (length := calendar.monthrange(month.year, month.month)[1]):
            shown.append(f"{day} - {length} = {day - length}")
            day -= length
            month = (month + datetime.timedelta(days=32)).replace(day=1)
        weeks, rest = divmod(self.days, 7)
        if weeks and rest:
            shown.append(f"{self.days} - {7 * weeks} = {rest}")
        if rest:
            shown.append(", ".join(DAYS[(weekday + passed) % 7] for passed in range(1, rest + 1)))
        end = date + datetime.timedelta(days=self.days)
        return ARROW.join([*shown, date_text(end, weekday + self.days)])

    def _business(self, date: datetime.date, weekday: int) -> str:
        counted: list[str] = []
        passed = 0
        while len(counted) < self.days:
            passed += 1
            if (weekday + passed) % 7 < 5:
                day = (date + datetime.timedelta(days=passed)).day
                counted.append(f"{DAYS[(weekday + passed) % 7]} {day}")
        end = date_text(date + datetime.timedelta(days=passed), weekday + passed)
        return f"{', '.join(counted)}{ARROW}{end}"

    def wrong_results(self, step: Step) -> Sequence[str]:
        """See `Change`."""
        value = value_of(step.result)
        read, head = _read_date(value), step.result.removesuffix(value)
        if read is None:
            return [date_text(datetime.date(2000, 1, 1))]
        date, weekday = read
        wrong = [head + date_text(date + datetime.timedelta(days=slip), weekday + slip) for slip in (-2, -1, 1, 2)]
        return [*wrong, head + date_text(date, weekday + 1), head + date_text(date, weekday - 1)]


@dataclass(frozen=True)
class Clocks(Schedule):
    """A time of the day, and what takes how long from then."""

    start: str
    changes: tuple[Elapse, ...]
    event: str
    task: str = "schedules"

    first = "{event} begins on {start}."
    asked = "Which day and time is it then?"


@dataclass(frozen=True)
class Deadline(Schedule):
    """A date, and the days until others."""

    start: str
    changes: tuple[Days, ...]
    event: str
    task: str = "schedules"

    first = "{event} on {start}. Business days are Monday to Friday."
    asked = "Which weekday and date is it then?"


_EVENTS = ("A night shift", "A train journey", "A flight", "A delivery tour", "A backup", "A business trip")
_LASTS = ("drive for {}", "wait for {}", "work for {}", "break of {}", "flight of {}", "meeting of {}")
_FILED = ("An order is placed", "A contract is signed", "An invoice is dated", "A claim is filed", "A parcel is sent")
_AFTER = ("payment {} later", "reply {} later", "delivery {} later", "reminder {} later", "hearing {} later")


class Schedules(StepwiseTask[Schedule]):
    """Times and dates of a few changes."""

    name = "schedules"
    default_steps = (2, 4)
    max_steps = 12

    def draw(self, rng: random.Random, steps: int) -> Schedule:
        """A time or a date, as likely, with `steps` changes."""
        return self._clocks(rng, steps) if rng.random() < 0.5 else self._deadline(rng, steps)

    def _clocks(self, rng: random.Random, steps: int) -> Clocks:
        start = rng.randrange(0, 7 * DAY_MINUTES, 5)
        changes = tuple(_elapse(rng, 5 if steps <= SHORT else 10) for _ in range(steps))
        return Clocks(time_text(start), changes, rng.choice(_EVENTS))

    def _deadline(self, rng: random.Random, steps: int) -> Deadline:
        start = datetime.date(2024, 1, 1) + datetime.timedelta(days=rng.randrange(7 * 365))
        changes = tuple(_days(rng, 20 if steps <= SHORT else 45) for _ in range(steps))
        return Deadline(date_text(start), changes, rng.choice(_FILED))

    def same_answer(self, gold: str, answer: str) -> bool | None:
        """Whether an answer names the gold weekday and time, or weekday and date, in any usual form, and no other.

        >>> [Schedules().same_answer("Tuesday 14:05", answer) for answer in ("2:05 pm on Tue.", "Tuesday, 2:05", "14:05")]
        [True, False, False]
        >>> [Schedules().same_answer("Sunday 7 June 2026", text) for text in ("Sun, June 7th", "2026-06-07 (Sunday)", "7 June")]
        [True, True, False]
        """
        minutes, date = _read_time(gold), _read_date(gold)
        if minutes is not None:
            return time_answers.is_time(answer, *divmod(minutes, DAY_MINUTES))
        return date is not None and time_answers.is_date(answer, date[0])


def _elapse(rng: random.Random, most_hours: int) -> Elapse:
    """What takes less than `most_hours`, or a local time that differs by less."""
    kind = rng.random()
    if kind < 0.15:
        hours = rng.choice([hours for hours in range(1 - most_hours, most_hours) if hours])
        words = f"{abs(hours)} h {'ahead' if hours > 0 else 'behind'}"
        return Elapse(60 * hours, f"change to local time, {words}")
    minutes = 5 * rng.randint(2, 12) if kind < 0.5 else 5 * rng.randint(13, 12 * most_hours - 1)
    hours, rest = divmod(minutes, 60)
    words = " ".join([f"{hours} h"] * (hours > 0) + [f"{rest} min"] * (rest > 0))
    if kind > 0.9:
        return Elapse(-minutes, f"start {words} earlier")
    return Elapse(minutes, rng.choice(_LASTS).format(words))


def _days(rng: random.Random, most: int) -> Days:
    """Business days, whole weeks or at most `most` days."""
    phrase, kind = rng.choice(_AFTER), rng.random()
    if kind < 0.4:
        days = rng.randint(2, 3 + most // 9)
        return Days(days, "business days", phrase.format(f"{days} business days"))
    if kind < 0.6:
        weeks = rng.randint(1, most // 10)
        return Days(7 * weeks, "days", phrase.format(f"{weeks} week{'s' * (weeks > 1)}"))
    days = rng.randint(2, most)
    return Days(days, "days", phrase.format(f"{days} days"))


TASK = Schedules()
