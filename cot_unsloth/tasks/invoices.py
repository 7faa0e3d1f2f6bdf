"""Invoices: positions of quantity and price, then perhaps a discount, tax and a stated total that may be wrong.

A solution goes down the invoice with a running total. Percentages are rounded to the cent; no amount lies halfway between two
cents, so every way of rounding gives the same. Where the invoice states a total, the last step compares it with the computed one,
and the answer is the right total whatever was stated.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from cot_unsloth.tasks.stepwise import ARROW, Step, StepwiseProblem, StepwiseTask, nearby, value_of, written_number

GOODS = (
    "mug", "notebook", "lamp", "chair", "cable", "ticket", "book", "shirt", "paint can", "filter",
    "battery", "plant", "pizza", "cleaning hour", "lesson", "poster", "bag", "brush", "towel", "pen",
)  # fmt: skip
SELLERS = ("a repair shop", "a caterer", "a bookshop", "a garden centre", "a freelance designer", "an office supplier")
SHORT = 3
"""Invoices of so few lines have whole prices: then the smallest models can learn them."""
_DISCOUNTS = (5, 10, 15, 20, 25)
_TAXES = (5, 7, 8, 10, 19, 20)
_AMOUNT = re.compile(r"\d{1,7}\.\d\d")
_STATED = re.compile(r"(?P<amount>\d{1,7}\.\d\d)(?: too (?:much|little))?")


def money(cents: int) -> str:
    """An amount as invoices write it.

    >>> money(1350), money(5)
    ('13.50', '0.05')
    """
    return f"{cents // 100}.{cents % 100:02d}"


def cents_of(amount: str) -> int:
    """The cents of an amount that `money` wrote."""
    return int(amount.replace(".", ""))


@dataclass(frozen=True)
class Item:
    """One position."""

    quantity: int
    goods: str
    price: int
    """Of one piece, in cents."""

    def __str__(self) -> str:
        return f"{self.quantity} x {self.goods} at {money(self.price)}"


@dataclass(frozen=True)
class Percentage:
    """A discount (negative) or a tax (positive) on the running total."""

    percent: int

    def __str__(self) -> str:
        return f"discount of {-self.percent}%" if self.percent < 0 else f"tax of {self.percent}%"

    def of(self, cents: int) -> int:
        """The amount in cents that is taken off or added, rounded.

        Raises:
            ValueError: it lies halfway between two cents.
        """
        exact = Fraction(cents * abs(self.percent), 100)
        if exact % 1 == Fraction(1, 2):
            raise ValueError(f"{self} of {money(cents)} lies halfway between two cents")
        return round(exact)


@dataclass(frozen=True)
class Invoice(StepwiseProblem):
    """One invoice."""

    items: tuple[Item, ...]
    changes: tuple[Percentage, ...]
    stated: int | None
    """The total that the invoice states, in cents; None if it states none."""
    seller: str
    task: str = "invoices"

    @property
    def question(self) -> str:
        """The invoice, line by line, and what is asked."""
        lines = [f"({number}) {line}" for number, line in enumerate([*self.items, *self.changes], start=1)]
        ask = "What is the total?"
        if self.stated is not None:
            lines.append(f"({self.length}) stated total {money(self.stated)}")
            ask = "Is the stated total right? Give the right total."
        return "\n".join([f"Check an invoice of {self.seller}.", *lines, ask])

    @property
    def key(self) -> str:
        """Neither the seller nor the names of the goods matter, nor what is stated."""
        items = " ".join(f"{item.quantity}*{item.price}" for item in self.items)
        return f"{self.task}|{items}|{' '.join(str(change.percent) for change in self.changes)}"

    @property
    def length(self) -> int:
        """See `StepwiseProblem`."""
        return len(self.items) + len(self.changes) + (self.stated is not None)

    def step(self, index: int, values: Sequence[str]) -> Step:
        """See `StepwiseProblem`: a position, a percentage, or the comparison with the stated total."""
        if index <= len(self.items):
            item = self.items[index - 1]
            total = money(item.quantity * item.price)
            product = f"{item.quantity} * {money(item.price)}"
            if index == 1:
                return Step(str(item), product, (), total)
            summed = money(cents_of(values[-1]) + item.quantity * item.price)
            return Step(str(item), f"{{}} + {product}", (values[-1],), f"{values[-1]} + {total}{ARROW}{summed}")
        if index <= len(self.items) + len(self.changes):
            change, before = self.changes[index - len(self.items) - 1], cents_of(values[-1])
            # Halfway amounts are never drawn; a wrong value that a model wrote may lead to one, and is rounded down.
            amount = (before * abs(change.percent) * 2 + 99) // 200
            sign = "-" if change.percent < 0 else "+"
            after = before - amount if change.percent < 0 else before + amount
            result = f"{values[-1]} {sign} {money(amount)}{ARROW}{money(after)}"
            return Step(str(change), f"{{}} {sign} {abs(change.percent)}%", (values[-1],), result)
        assert self.stated is not None
        return Step(
            f"stated total {money(self.stated)}", f"{money(self.stated)} - {{}}", (values[-1],), self._compared(values)
        )

    def _compared(self, values: Sequence[str]) -> str:
        difference = (self.stated or 0) - cents_of(values[-1])
        words = " too much" if difference > 0 else " too little" if difference < 0 else ""
        return money(abs(difference)) + words

    def reads(self, index: int, value: str) -> bool:
        """See `StepwiseProblem`."""
        last = self.stated is not None and index == self.length
        return bool((_STATED if last else _AMOUNT).fullmatch(value))

    def output(self, values: Sequence[str]) -> str:
        """The total, which is the value of the step before the comparison."""
        return values[-1 if self.stated is None else -2]

    def wrong_results(self, index: int, step: Step) -> Sequence[str]:
        """Slips of a digit; a percentage taken for an amount; a stated total that is said to agree."""
        value = value_of(step.result)
        head = step.result.removesuffix(value)
        if self.stated is not None and index == self.length:
            slips = nearby(cents_of(value.split(" ")[0]), (100, 1000))
            words = value.partition(" ")[2] or "too much"
            return [f"{money(slip)} {words}" for slip in slips if slip]
        wrong = [head + money(slip) for slip in nearby(cents_of(value), (10, 100, 200, 1000))]
        at = index - len(self.items) - 1
        if at >= 0:
            change, before = self.changes[at], cents_of(step.operands[0])
            literal = before + 100 * change.percent
            if literal >= 0 and money(literal) != value:
                sign = "-" if change.percent < 0 else "+"
                # As likely as all the slips together: it is the error that people make.
                taken = f"{step.operands[0]} {sign} {money(100 * abs(change.percent))}{ARROW}{money(literal)}"
                wrong += [taken] * len(wrong)
        return wrong

    def reason(self, index: int, step: Step, result: str) -> str:
        """The right amounts, one operation at a time."""
        value = value_of(step.result)
        if ARROW not in step.result:
            return f"{step.expression} is {value}, not {value_of(result)}."
        sum_, _, _ = step.result.partition(ARROW)
        amount = sum_.split(" ")[-1]
        part = (
            f"{step.label.rpartition(' ')[2]} of {step.operands[0]}"
            if index > len(self.items)
            else step.expression.partition(" + ")[2]
        )
        return f"{part} is {amount}, and {sum_} is {value}, not {value_of(result)}."


class Invoices(StepwiseTask[Invoice]):
    """Invoices of a few lines."""

    name = "invoices"
    default_steps = (2, 6)
    max_steps = 12

    def draw(self, rng: random.Random, steps: int) -> Invoice:
        """One invoice of `steps` lines: positions, and among three lines or more perhaps percentages or a stated total."""
        while True:
            invoice = self._draw(rng, steps)
            if invoice is not None:
                return invoice

    def _draw(self, rng: random.Random, steps: int) -> Invoice | None:
        """An invoice; None if a percentage lies halfway between two cents."""
        spare = steps - (1 if steps < 4 else 2)  # lines that need not be positions
        kinds = [kind for kind in ("discount", "tax", "stated") if rng.random() < 0.5]
        kinds = sorted(rng.sample(kinds, min(len(kinds), spare)), key=("discount", "tax", "stated").index)
        goods = rng.sample(GOODS, steps - len(kinds))
        whole = steps <= SHORT
        items = tuple(Item(rng.randint(2, 9 if whole else 12), name, _price(rng, whole=whole)) for name in goods)
        changes = tuple(
            Percentage(-rng.choice(_DISCOUNTS) if kind == "discount" else rng.choice(_TAXES))
            for kind in kinds
            if kind != "stated"
        )
        total = sum(item.quantity * item.price for item in items)
        try:
            for change in changes:
                total += change.of(total) if change.percent > 0 else -change.of(total)
        except ValueError:
            return None
        stated = _stated(rng, total) if "stated" in kinds else None
        return Invoice(items, changes, stated, rng.choice(SELLERS))

    def same_answer(self, gold: str, answer: str) -> bool | None:
        """Whether an answer names one amount, and it is the gold one, in any currency.

        >>> [Invoices().same_answer("1326.70", answer) for answer in ("$1,326.70", "No, it is 1326.7 euros.", "1326.07")]
        [True, True, False]
        """
        amounts = {written_number(text) for text in _NUMBER.findall(answer)}
        return amounts == {Fraction(gold)}


_NUMBER = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d%])|(?<![\d.,])\d+(?:\.\d+)?(?![\d%]|[.,]\d|\s?%)")


def _price(rng: random.Random, *, whole: bool) -> int:
    """A price from 0.25 to 40.00, half of them in whole units; or a whole one up to 15.00."""
    if whole:
        return 100 * rng.randint(1, 15)
    return 100 * rng.randint(1, 40) if rng.random() < 0.5 else 50 * rng.randint(1, 40) - rng.choice((0, 5, 10, 25))


def _stated(rng: random.Random, total: int) -> int:
    """A stated total: a third of them are right, so that repeating it is no way to answer."""
    return total if rng.random() < 1 / 3 else rng.choice(nearby(total, (10, 90, 100, 200, 1000)))


TASK = Invoices()
