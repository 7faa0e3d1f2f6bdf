"""Quantities in Chinese, Japanese and Korean text, rewritten so that they are read as English ones are.

These scripts put no space between a number and its words: 还剩3个苹果 says that 3 apples are left. A number is set apart from the
words beside it, counters (个, 冊, 명) are left out, units get their English names, and 万, 百分之 and 分之 are worked out. As in
`quantity`, in doubt a text states no number: `changes_number` finds the words that deny it, bound it, or make it a date.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

_LETTERS = "\u3005\u3041-\u3096\u30a1-\u30fa\u30fc\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
_LETTER = re.compile(f"[{_LETTERS}]")
_NUMBER = r"\d[\d,]*(?:\.\d+)?"

_UNITS = {
    name: unit
    for unit, names in {
        "millimetre": "毫米 公釐 ミリメートル 밀리미터", "centimetre": "厘米 公分 センチメートル センチ 센티미터",
        "metre": "米 公尺 メートル 미터", "kilometre": "千米 公里 キロメートル 킬로미터",
        "milligram": "毫克", "gram": "克 公克 グラム 그램", "kilogram": "千克 公斤 キログラム 킬로그램", "ton": "吨 公噸 トン",
        "millilitre": "毫升 公撮 ミリリットル 밀리리터", "litre": "升 公升 リットル 리터",
        "second": "秒钟 秒鐘 秒間 秒 초", "minute": "分钟 分鐘 分間", "hour": "个小时 個小時 小时 小時 时间 時間 시간",
        "day": "天 日間", "week": "个星期 個星期 星期 周 週間 週 주일", "month": "个月 個月 ヶ月 か月 カ月 ヵ月 개월",
        "year": "年間 年 년", "yuan": "人民币 元 块钱 塊錢", "yen": "日元 日圆 円 엔", "won": "韩元 韓元 원",
        "dollar": "美元 美金 ドル 달러", "cent": "美分 セント 센트", "euro": "欧元 歐元 ユーロ 유로", "degree": "度 도",
        "celsius": "摄氏度 攝氏度", "percent": "パーセント 퍼센트 프로",
    }.items()
    for name in names.split()
}  # fmt: skip
_COUNTERS = (
    "个 個 只 隻 条 條 本 支 枝 张 張 辆 輛 台 块 塊 名 位 头 頭 匹 棵 朵 件 双 雙 对 對 根 粒 颗 顆 把 份 次 页 頁 层 層 排 组 組 步 包 盒 "
    "箱 瓶 杯 碗 袋 篇 封 架 艘 座 间 間 家 种 種 题 題 道 圈 套 倍 岁 歲 枚 幅 盆 筐 桶 人 口 分 "
    "つ 冊 羽 歳 回 "
    "개 명 마리 권 장 살 대 송이 자루 번 그루 봉지 상자 분"
)
"""Words between a number and what it counts, without a meaning of their own."""
_ENDINGS = "です だ である になります となります でした 입니다 이다 이에요 예요 了"


def _any_of(names: str) -> str:
    return "|".join(sorted(names.split(), key=len, reverse=True))


_PERCENT = re.compile(rf"百分之\s*({_NUMBER})")
_FRACTION = re.compile(r"(?<![\d.])(\d{1,9})\s*(?:分之|分の|분의)\s*(\d{1,9})(?![\d.])")
_MINUS = re.compile(r"(?:负|負|マイナス|마이너스)\s*(?=\d)")
_SCALES = {"百": 10**2, "千": 10**3, "천": 10**3, "万": 10**4, "萬": 10**4, "만": 10**4, "亿": 10**8, "億": 10**8, "억": 10**8}  # fmt: skip
_SCALE = rf"[{''.join(_SCALES)}]{{1,2}}(?![米克瓦卡分])"
_TERM = re.compile(rf"({_NUMBER})({_SCALE})")
_SCALED = re.compile(rf"(?<![\d.,])(?:{_NUMBER}{_SCALE})+(?:\d{{1,4}}(?![\d.]))?")
_APART = re.compile(rf"(?<=\d)(?=[{_LETTERS}])|(?<=%)(?=[{_LETTERS}])|(?<=[{_LETTERS}])(?=[-$¥€]?\.?\d)")
_UNIT = re.compile(rf"(?<=\d) (平方|立方|제곱|세제곱)?({_any_of(' '.join(_UNITS))})(?![饭级級])")
_COUNTER = re.compile(rf"(?<=\d) (?:{_any_of(_COUNTERS)})(?![{_LETTERS}]*[级級])")
_ENDING = re.compile(rf"(?:{_any_of(_ENDINGS)})(?=[\s.!]*$)|(?<=\d )の")
_POWERS = {"平方": "square ", "立方": "cubic ", "제곱": "square ", "세제곱": "cubic "}

_CHANGES = re.compile(
    # Denied, or one of several.
    r"不|非|没|沒|无法|無法|未|错误|錯誤|ない|ません|아니|않|或|または|또는"
    # A bound, or an estimate.
    r"|至少|至多|最多|最少|大于|大於|小于|小於|多于|多於|少于|少於|超过|超過|超え|多达|多達|低于|低於|高于|高於|以上|以下|以内|以內|以外|未満|左右|接近|大约|大約"
    r"|이상|이하|미만|초과|[约約近약第]\s*\d"
    # A date, a time of day, an ordinal, a half more, a power, a discount.
    r"|\d\s*(?:月|日(?![元圆間])|号|號|点|點|时(?!间)|時(?!間)|年[级級]|世[纪紀]|多|余|餘|几|幾|折|割|次方|平方\s*(?:$|[^\s\w])|番目|번째|월|일(?!간)|시(?!간)|배\s*반)|半|반"
)


def changes_number(text: str) -> bool:
    """Whether words of these scripts make the number of a text another one, or none.

    >>> changes_number("至少3个"), changes_number("3月5日"), changes_number("还剩3个苹果")
    (True, True, False)
    """
    return not text.isascii() and _CHANGES.search(text) is not None


def with_english_quantities(text: str) -> str:
    """A text with its quantities as in English: 还剩3个苹果 as "还剩 3 苹果", 1小时30分钟 as "1 hour 30 minute".

    >>> [with_english_quantities(t) for t in ("还剩3个苹果", "百分之50", "4分之3", "1.5万元", "12平方米", "3 apples")]
    ['还剩 3 苹果', '50%', '3/4', '15000 yuan', '12 square metre', '3 apples']
    """
    if text.isascii() or not _LETTER.search(text):
        return text
    text = _FRACTION.sub(r"\2/\1", _PERCENT.sub(r"\1%", text))
    text = _SCALED.sub(_scaled, _MINUS.sub("-", text))
    text = _APART.sub(" ", text)
    text = _UNIT.sub(lambda unit: f" {_POWERS.get(unit[1], '')}{_UNITS[unit[2]]} ", text)
    text = _ENDING.sub("", _COUNTER.sub(" ", text))
    return " ".join(text.split())


def _scaled(number: re.Match[str]) -> str:
    """The digits of 1.5万 or 1亿2000万; the text as it is if that is no whole number, or its scales do not fall."""
    total, before = Fraction(0), None
    rest = number[0]
    for term in _TERM.finditer(number[0]):
        scale = math.prod(_SCALES[character] for character in term[2])
        if before is not None and scale >= before:
            return number[0]
        total += Fraction(term[1].replace(",", "")) * scale
        rest, before = number[0][term.end() :], scale
    total += int(rest or 0)
    return str(total) if total.denominator == 1 else number[0]
