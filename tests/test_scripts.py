"""Answers and rows in scripts that put no spaces between words, or none between a number and its unit."""

from __future__ import annotations

import pytest

from cot_unsloth.core import answers
from cot_unsloth.core.answers.east_asian import with_english_quantities
from cot_unsloth.core.types import Example, Part, Trace
from cot_unsloth.core.words import count_words, words
from cot_unsloth.data import decontaminate
from cot_unsloth.data.duplicates import Duplicates
from cot_unsloth.data.layouts.responses import final_answer, marked_answer

CHINESE = "小明家的果园里有苹果树四十五棵，梨树比苹果树的两倍还多六棵，果园里一共有多少棵树？"
JAPANESE = "ある果樹園にはりんごの木が四十五本あり、なしの木はその二倍より六本多いです。木は全部で何本ありますか。"
THAI = "สวนแห่งหนึ่งมีต้นแอปเปิลสี่สิบห้าต้นและมีต้นลูกแพร์มากกว่าสองเท่าของต้นแอปเปิลอยู่หกต้นในสวนมีต้นไม้ทั้งหมดกี่ต้น"
HINDI = "एक बाग में सेब के पैंतालीस पेड़ हैं और नाशपाती के पेड़ उनके दोगुने से छह अधिक हैं तो बाग में कुल कितने पेड़ हैं"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("3", "3个"),
        ("3", "3个苹果"),
        ("3个", "3个苹果"),
        ("3", "还剩3个苹果。"),
        ("3", "3倍"),
        ("3", "3，因为5-2=3"),
        ("72", "一共需要72元钱"),
        ("120元", "120"),
        ("20美元", "$20"),
        ("3米", "300厘米"),
        ("3米", "3 meters"),
        ("2小时", "120分钟"),
        ("1.5小时", "1小时30分钟"),
        ("12平方米", "12"),
        ("50%", "百分之50"),
        ("3/4", "4分之3"),
        ("15000", "1.5万元"),
        ("120000000", "1亿2000万"),
        ("-3", "负3"),
        ("2023", "2023年"),
        ("3", "增加到3个"),
        ("北京", "北京。"),
        ("35000", "3万5000円"),
        ("3", "りんごは3個です。"),
        ("3", "答えは3個です"),
        ("3", "사과 3개입니다"),
        ("3", "정답은 3개입니다."),
        ("3", "所以答案为：3。"),
        ("3", "5-2=3\n答：还剩3个苹果。"),
        ("B", "答案：B"),
    ],
)
def test_an_answer_with_its_counter_or_unit_is_the_number(gold: str, answer: str) -> None:
    assert answers.same(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("3", "4个"),
        ("3", "至少3个"),
        ("3", "大于 3"),
        ("3", "不是3"),
        ("3", "约3个"),
        ("3", "超过3人"),
        ("3", "3个以上"),
        ("3", "3或4"),
        ("3", "1到3"),
        ("3", "多达3个"),
        ("3", "第3"),
        ("3", "3月"),
        ("3", "3点"),
        ("3", "3个半小时"),
        ("3", "3年级"),
        ("3", "3個以上"),
        ("3", "3명 이상"),
        ("3", "3번째"),
        ("3个苹果", "3个橙子"),
        ("20元", "$20"),
        ("12平方米", "12米"),
        ("10000", "1亿"),
    ],
)
def test_an_answer_that_says_something_else_is_not(gold: str, answer: str) -> None:
    assert not answers.same(gold, answer)


@pytest.mark.parametrize("text", ["3 apples", "$1,234.50", "x = 3", "3 км", "३ सेब", "3 μm"])
def test_text_in_other_scripts_is_left_alone(text: str) -> None:
    assert with_english_quantities(text) == text


def test_a_chinese_solution_is_split_from_its_answer() -> None:
    solution = "小明原来有五个苹果，后来又吃掉了两个，所以现在还剩下三个苹果没有吃，答案是3个。"
    assert final_answer(solution) == "3个"
    assert answers.gold_answer(solution) == "3个"
    assert marked_answer("所以答案是：72元。") == "72元"


def test_prose_is_recognized_without_spaces() -> None:
    assert answers.is_prose("因为小明原来有五个苹果，后来又吃掉了两个，所以他还剩下三个苹果")
    assert answers.is_prose(HINDI)
    assert not answers.is_prose("还剩下三个苹果")


def test_words_keep_their_vowel_signs() -> None:
    assert words("किताबें, 5 रुपये") == ("किताबें", "5", "रुपये")
    assert len(words(HINDI)) == len(HINDI.split())
    assert count_words(CHINESE) == 19
    assert 12 <= count_words(THAI) <= 40


@pytest.mark.parametrize("question", [CHINESE, JAPANESE, THAI, HINDI])
def test_a_test_question_inside_a_row_is_found(question: str) -> None:
    def example(text: str, thinking: str = "") -> Example:
        return Example(text, text, Trace((Part("think", thinking or "…"),), "1"), "1", where="f:1")

    rows = [example(f"5: {question} 42"), example("?", f"({question})"), example(question[: len(question) // 4])]
    overlap = decontaminate.find_overlap(rows, [example(question)])
    assert list(overlap.of(decontaminate.BY_LONG)) == [0, 1]
    assert not overlap.kinds[2]


def test_hindi_words_are_not_counted_by_syllable() -> None:
    """Seven words in common; Python's `\\w` made 13 pieces of them, so the row was dropped."""
    shared = " ".join(HINDI.split()[:7])
    test, row = (Example(end, f"{shared} {end}", Trace((), "1"), "1") for end in ("और", "या"))
    assert not decontaminate.find_overlap([row], [test]).kinds[0]


def test_near_duplicates_are_found_without_spaces() -> None:
    other = CHINESE.replace("六", "八")
    rows = [
        Example(text, text, Trace((), "1"), "1")
        for text in (CHINESE, other, "小红每天跑步三公里，一个星期跑多少公里？")
    ]
    assert Duplicates(rows).near()[0] == 1
