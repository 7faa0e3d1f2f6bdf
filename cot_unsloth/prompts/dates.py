"""Fixes the date that templates print, so that training and exports agree on it.

Templates read it in two ways: `date_string`, which Llama 3's templates print unchanged, and `strftime_now(format)`,
which others call with their own formats. Both give `model.date_string`; the second formats that day, at midnight.
"""

from __future__ import annotations

import datetime
import functools
import json

from cot_unsloth.core.errors import ConfigError

_WRITTEN = ("%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%B %d, %Y", "%b %d, %Y", "%d.%m.%Y", "%Y/%m/%d", "%d-%m-%Y")
"""Accepted formats. If day and month are both numbers, the day comes before the month unless the year is first."""
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_PERCENT = "\ue000"
"""Placeholder for a literal percent sign (%%) while directives are replaced."""


def parse(text: str) -> datetime.date:
    """The day that a `date_string` names.

    >>> parse("26 Jul 2024") == parse("2024-07-26") == parse("July 26, 2024")
    True

    Raises:
        ConfigError: it is not a date.
    """
    for form in _WRITTEN:
        try:
            # %b and %B follow the locale, which is C, with English names, unless the program calls setlocale.
            return datetime.datetime.strptime(" ".join(text.split()), form).date()
        except ValueError:
            continue
    raise ConfigError(
        f"{text!r} is not a date, but the chat template calls strftime_now",
        where="model.date_string",
        hint="write it as 26 Jul 2024 or 2024-07-26",
        name="not_a_date",
    )


@functools.cache
def directives(text: str) -> dict[str, str]:
    """The value of each strftime directive on the day of a `date_string`, at midnight, in English.

    >>> [directives("26 Jul 2024")[name] for name in ("%A", "%-d", "%j", "%T")]
    ['Friday', '26', '208', '00:00:00']

    Raises:
        ConfigError: as `parse`.
    """
    # Spelt out rather than taken from date.strftime, which follows the locale and lacks %-d, %e and %P on Windows.
    day = parse(text)
    name, month = _DAYS[day.weekday()], _MONTHS[day.month - 1]
    since_sunday = (day.weekday() + 1) % 7
    of_year = day.timetuple().tm_yday
    iso_year, iso_week, iso_day = day.isocalendar()
    return {
        "%A": name, "%a": name[:3], "%B": month, "%b": month[:3], "%h": month[:3],
        "%Y": f"{day.year:04}", "%y": f"{day.year % 100:02}", "%C": f"{day.year // 100:02}", "%G": f"{iso_year:04}", "%g": f"{iso_year % 100:02}",
        "%m": f"{day.month:02}", "%d": f"{day.day:02}", "%e": f"{day.day:2}", "%j": f"{of_year:03}",
        "%-m": f"{day.month}", "%-d": f"{day.day}", "%-j": f"{of_year}", "%-y": f"{day.year % 100}",
        "%u": f"{iso_day}", "%w": f"{since_sunday}", "%V": f"{iso_week:02}",
        "%U": f"{(of_year + 6 - since_sunday) // 7:02}", "%W": f"{(of_year + 6 - day.weekday()) // 7:02}",
        "%H": "00", "%I": "12", "%M": "00", "%S": "00", "%-H": "0", "%-I": "12", "%-M": "0", "%-S": "0", "%f": "000000",
        "%p": "AM", "%P": "am", "%Z": "", "%z": "", "%s": f"{(day - datetime.date(1970, 1, 1)).days * 86400}",
        "%D": f"{day.month:02}/{day.day:02}/{day.year % 100:02}", "%x": f"{day.month:02}/{day.day:02}/{day.year % 100:02}",
        "%F": f"{day.year:04}-{day.month:02}-{day.day:02}", "%T": "00:00:00", "%X": "00:00:00", "%R": "00:00", "%r": "12:00:00 AM",
        "%c": f"{name[:3]} {month[:3]} {day.day:2} 00:00:00 {day.year:04}", "%n": "\n", "%t": "\t",
    }  # fmt: skip


def strftime(date_string: str, form: str) -> str:
    """A format filled in with a date; text that is not a directive is unchanged.

    >>> strftime("26 Jul 2024", "%A, %d %B %Y (100%%Y)")
    'Friday, 26 July 2024 (100%Y)'

    Raises:
        ConfigError: as `parse`.
    """
    text = form.replace("%%", _PERCENT)
    for directive, value in directives(date_string).items():
        text = text.replace(directive, value)
    return text.replace(_PERCENT, "%")


def _quoted(text: str) -> str:
    """A Jinja string. Letters are not escaped, because not every Jinja engine reads four-digit escapes."""
    return json.dumps(text, ensure_ascii=False)


@functools.lru_cache(maxsize=64)
def frozen(template: str, date_string: str) -> str:
    """A template that prints the same date on every day, in every program.

    `strftime_now` becomes a macro in the template that does the same as `strftime` here for any format, so it does not
    matter where and how often the template calls it.

    Raises:
        ConfigError: as in `parse`, if the template calls `strftime_now`.
    """
    if "strftime_now" in template:
        # Only `replace` is used, because the Jinja engines of llama.cpp and others implement few filters.
        filters = [("%%", _PERCENT), *directives(date_string).items(), (_PERCENT, "%")]
        calls = "".join(f" | replace({_quoted(a)}, {_quoted(b)})" for a, b in filters)
        template = f"{{%- macro strftime_now(format) -%}}{{{{- format{calls} -}}}}{{%- endmacro -%}}{template}"
    if "date_string" in template:
        template = f"{{%- set date_string = {_quoted(date_string)} %}}{template}"
    return template
