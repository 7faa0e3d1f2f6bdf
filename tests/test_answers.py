"""Comparison of answers: equal answers in any form, near misses, and the answer that a text gives."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import module

from cot_unsloth.core import answers
from cot_unsloth.core.answers import TimeLimit, symbolic
from cot_unsloth.core.types import Completion, Example, Part, Trace
from cot_unsloth.evaluation import score
from cot_unsloth.evaluation.scorecard import arm_result

ROOT = Path(__file__).parent.parent
EXAMPLE = Example("e", "how many?", Trace((Part("think", "s"),), "7"), "7", task="t")

SAME = [
    ("x^5 - x^4", "x^5-x^4"),
    ("p - q", "p-q"),
    ("3", "+3"),
    ("3/2", "1 1/2"),
    (".5", "0.5"),
    ("72", "72."),
    ("72", "**72**"),
    ("72", "$72$"),
    ("72", "\\(72\\)"),
    ("72", "\\[72\\]"),
    ("72", "\\boxed{72}"),
    ("72", "The answer is 72."),
    ("72", "<answer>72</answer>"),
    ("72", '"72"'),
    ("72", "72 clips"),
    ("72", "$72"),
    ("72", "72.0"),
    ("72", "72%"),
    ("72", "72 degrees"),
    ("72", "x = 72"),
    ("72", "\\text{72}"),
    ("72", "72/1"),
    ("72", "144/2"),
    ("72", "seventy-two"),
    ("72", "So she sold 72 clips altogether."),
    ("72", "48 + 24 = 72"),
    ("72", "7.2e1"),
    ("72", "7.2 \\times 10^1"),
    ("72", "72\\text{ clips}"),
    ("72", "  72\n"),
    ("72", "72. I hope it is correct."),
    ("72", "\\$72.00"),
    ("72", "USD 72"),
    ("72", "72 USD"),
    ("x^2", "x \\cdot x"),
    ("1,-2", "-2, 1"),
    ("1,-2", "x = 1 or x = -2"),
    ("1,-2", "1 and -2"),
    ("\\frac{1}{2}", "0.5"),
    ("\\frac{1}{2}", "1/2"),
    ("0.5", "\\frac12"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, pi/2)"),
    ("2\\sqrt{2}", "2√2"),
    ("2\\sqrt{2}", "2*sqrt(2)"),
    ("y=2x+3", "2x+3"),
    ("2x+3", "y = 2x+3"),
    ("(-\\infty,2]", "(-∞, 2]"),
    ("\\text{Evelyn}", "Evelyn"),
    ("\\text{(B)}", "B"),
    ("B", "B) 12 cm"),
    ("B", "Option B"),
    ("B", "\\boxed{\\text{B}}"),
    ("B", "The answer is \\textbf{(B)}"),
    ("(B) 12 cm", "B"),
    ("(B) 12 cm", "12 cm"),
    ("B", "(B)"),
    ("B", "B."),
    ("B", "b"),
    ("12 cm", "12cm"),
    ("12 cm^2", "12 square cm"),
    ("12", "12 cm^2"),
    ("12", "12 cm²"),
    ("90^\\circ", "90"),
    ("90", "90^\\circ"),
    ("5\\%", "5"),
    ("50%", "0.5"),
    ("1,000,000", "1000000"),
    ("1000000", "1 million"),
    ("118000", "118 000"),
    ("$5", "5 dollars"),
    ("5", "5 dollars each day"),
    ("18 dollars", "$18 every day"),
    ("3.5", "3 1/2"),
    ("3.5", "3½"),
    ("3 \\frac{1}{2}", "3.5"),
    ("True", "yes"),
    ("yes", "Yes."),
    ("yes", "Yes, because he did."),
    ("x = 3", "3"),
    ("3", "x=3"),
    ("\\frac{3}{4}", "3/4"),
    ("-\\frac{3}{4}", "-3/4"),
    ("-\\frac{3}{4}", "\\frac{-3}{4}"),
    ("11\\sqrt2", "11\\sqrt{2}"),
    ("\\infty", "∞"),
    ("\\emptyset", "∅"),
    ("10^{-4}", "0.0001"),
    ("204_5", "204_{5}"),
    ("204_5", "204"),
    ("6 - 5i", "6-5i"),
    ("-2+7i", "7i - 2"),
    ("\\pi", "π"),
    ("\\frac{\\pi}{2}", "π/2"),
    ("3:2", "3 : 2"),
    ("10:15 am", "10:15 AM"),
    ("\\dfrac{9}{256}", "9/256"),
    ("1 \\pm \\sqrt{19}", "1+\\sqrt{19}, 1-\\sqrt{19}"),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{bmatrix}1\\\\2\\end{bmatrix}"),
    ("2k", "2k"),
    ("x \\in [-2,7]", "[-2,7]"),
    ("x \\in [-2,7]", "x \\in [-2, 7]"),
    ("7", "7 (seven)"),
    ("7", "about 7"),
    ("7", "7"),
    ("\\text{June 20}", "June 20"),
    ("4343_6", "4343_{6}"),
    ("\\$18.90", "18.90"),
    ("\\$18.90", "$18.9"),
    ("864 \\mbox{ inches}^2", "864"),
    ("864 \\mbox{ inches}^2", "864 square inches"),
    ("f(x) = x^2", "x^2"),
    ("3 dozen", "3"),
    ("5.4 \\text{ cents}", "5.4 cents"),
    ("-3", "- 3"),
    ("1/2", "1 / 2"),
    ("10,\\!080", "10080"),
    ("\\$32,\\!348", "32348"),
    ("0.065", "6.5e-2"),
    ("46 dollars", "46"),
    ("10^3", "10**3"),
    ("1000", "10^3"),
    ("even", "\\text{even}"),
    ("yook", '"yook"'),
    ("yes", "Yes, it is"),
    ("90", "90°"),
    ("C", "(C) 10^-4 eV"),
    ("C", "C) 10^-4 eV"),
    ("7 apples", "7 total"),
    ("7", "20% of 35 = 7"),
    ("72", '{"answer": 72}'),
    ("72", '{"answer": "72"}'),
    ("72", "# 72"),
    ("72", "### 72"),
    ("72", "72, since 48+24=72"),
    ("72", "72 because 48+24=72"),
    ("72", "\\approx 72"),
    ("72", "≈72"),
    ("72", "72 🎉"),
    ("72", "✅ 72"),
    ("72", "USD72"),
    ("72", "7.2 x 10^1"),
    ("72", "**72** clips"),
    ("72", "Natalia sold **72** clips."),
    ("1000", "a thousand"),
    ("1234567", "1.234.567"),
    ("2500000", "$2.5M"),
    ("0.065", "6.5 x 10^-2"),
    ("0.065", "6.5E-02"),
    ("6.02 \\times 10^{23}", "6.02x10^23"),
    ("3.5", "3 and a half"),
    ("3.5", "three and a half"),
    ("1/3", "0.\\overline{3}"),
    ("1/3", "one third"),
    ("1/3", "one-third"),
    ("1/3", "a third"),
    ("3/4", "three quarters"),
    ("3/4", "three fourths"),
    ("1/2", "half"),
    ("1/2", "a half"),
    ("1/2", "one half"),
    ("1/2", "one-half"),
    ("-3", "–3"),
    ("(0,9) \\cup (9,36)", "x \\in (0,9) \\cup (9,36)"),
    ("(0,9) \\cup (9,36)", "(0,9) U (9,36)"),
    ("1,-2", "x \\in \\{1, -2\\}"),
    ("4210_{5}", "4210 base 5"),
    ("4210_{5}", "4210_{\\text{five}}"),
    ("(-2,7)", "-2 < x < 7"),
    ("[0,\\infty)", "x \\ge 0"),
    ("(1,2)", "(x,y)=(1,2)"),
    ("(1,2)", "(x, y) = (1, 2)"),
    ("(1,2)", "x=1, y=2"),
    ("\\sqrt[3]{2}", "\\sqrt[3]2"),
    ("A", "**A.** foo"),
    ("A", "**A)** foo bar"),
    ("A", "**(A)** foo"),
    ("A", "A - foo"),
    ("A", "A, foo"),
    ("A", "[A]"),
    ("A", '{"answer": "A"}'),
    ("D", "Answer choice D"),
    ("True", "The statement is true"),
    ("True", "It is true"),
    ("Paris", "the Paris"),
    ("Eiffel Tower", "The Eiffel Tower"),
    ("10:15 am", "10:15 a.m."),
    ("10:15 am", "10:15am"),
    ("10:15 \\text{ a.m.}", "10:15 am"),
    ("10:15", "10:15 AM"),
    ("5:00 pm", "5 pm"),
    ("5:00 pm", "5 p.m."),
    ("3:2", "3 to 2"),
    ("12 m/s", "12 ms^{-1}"),
    ("12 m/s", "12 m s^-1"),
    ("12 m/s", "12 m·s⁻¹"),
    ("5 kg·m²", "5"),
    ("12 \\text{ km/h}", "12 kph"),
    ("60 mph", "60 miles per hour"),
    ("60 mph", "60 mi/h"),
    ("£5", "5 pounds"),
    ("50 cents", "$0.50"),
    ("$0.50", "50 cents"),
    ("1 hour 30 minutes", "1 hour and 30 minutes"),
    ("1 hour 30 minutes", "1 hr 30 min"),
    ("1 hour 30 minutes", "1 hour, 30 minutes"),
    ("2x+3y=6", "2x+3y-6=0"),
    ("\\frac{x}{2}", "x/2"),
    ("\\frac{x}{2}", "0.5x"),
    ("\\frac{x}{2}", "\\frac{1}{2}x"),
    ("16 \\pi", "16\\pi \\text{ square units}"),
    ("16 \\pi", "16π square inches"),
    ("10\\sqrt{5} \\text{ units}", "10\\sqrt{5}"),
    ("\\sqrt{51}", "√51"),
    ("\\theta", "θ"),
    ("\\alpha+\\beta", "α+β"),
    ("\\frac{1}{6}", "\\dfrac{1}{6} \\approx 0.1667"),
    ("3.14", "\\pi \\approx 3.14"),
    ("5x - 7y + 11z + 4 = 0", "5x-7y+11z=-4"),
    ("June 20, 2015", "20 June 2015"),
    ("2.5 hours", "2 hours 30 minutes"),
    ("2.5 hours", "150 minutes"),
    ("90 minutes", "1 hour and 30 minutes"),
    ("$5.50", "5 dollars and 50 cents"),
    ("6 feet", "2 yards"),
    ("0.1\\overline{6}", "1/6"),
    ("0.\\overline{21}", "7/33"),
    ("\\frac{7}{33}", "0.\\overline{21}"),
    ("2/3", "two-thirds"),
    ("2/3", "two thirds"),
    ("7/8", "seven eighths"),
    ("2.5", "two and a half"),
    ("2.75", "2 and three quarters"),
    ("1.25", "one and a quarter"),
    ("(A) and (C)", "A, C"),
    ("A, C", "AC"),
    ("AC", "A and C"),
    ("Paris", "The capital is Paris."),
    ("valid", "The argument is valid."),
    ("2:30 PM", "2:30 p.m."),
    ("2:30 PM", "02:30 pm"),
    ("(-2,7)", "-2 < x < 7"),
    ("(3,\\infty)", "x > 3"),
    ("(-\\infty, 5]", "x \\le 5"),
    ("the cat", "cat"),
    ("H_2O", "H2O"),
    ("H_2O", "H₂O"),
    ("CO2", "CO_2"),
    ("5 \\Omega", "5 Ω"),
    ("5 \\mu m", "5 μm"),
] + [
    ("B", form)
    for form in [
        "**B**",
        "\\boxed{B}",
        "B) 12 cm",
        "Option B",
        "The answer is B.",
        "(B)",
        "B. 12 cm",
        "So we see that it is B:\n\\[\\boxed{B}\\]",
    ]
]

DIFFERENT = [
    ("5", ".5"),
    ("50", "$.50"),
    ("3", "- 3"),
    ("5", "5i"),
    ("2", "2x"),
    ("2", "sqrt(2)"),
    ("3", "minus 3"),
    ("3", "3 million"),
    ("5", "a=4, b=5"),
    ("5", "\\neq 5"),
    ("0", "I(0)"),
    ("204_5", "204_6"),
    ("We find that x = 3 is the only solution.", "3"),
    (".5", "5"),
    ("25", ".25"),
    ("A", "(b)"),
    ("12", "1,2"),
    ("5", "x<5"),
    ("5", "5²"),
    ("7", "10:07"),
    ("2023-01-05", "2017"),
    ("10:15", "2/3"),
    ("12 cm", "12 m"),
    ("x^2", "2x"),
    ("72", "71 or 72"),
    ("5", "100; no, 5"),
    ("$5", "5%"),
    ("1 1/2", "11/2"),
    ("11/2", "1 1/2"),
    ("3", "3!"),
    ("6", "3!!"),
    ("3", "|3x|"),
    ("7", "7th root"),
    ("7", "at least 7"),
    ("7", "more than 7"),
    ("7", "7 and a half"),
    ("2", "2π"),
    ("1/2", "1/2x"),
    ("5", "5^2"),
    ("5", "0.5e1x"),
    ("100", "1e2x"),
    ("3", "√3"),
    ("3", "3√3"),
    ("7", "-7"),
    ("8", "2^4"),
    ("7", "7 million dollars"),
    ("0", "\\infty"),
    ("10", "10 or 11"),
    ("5", "5 < x"),
    ("4", "(4,5)"),
    ("4", "[4]5"),
    ("3", "3,5"),
    ("7", "7 mod 5"),
    ("(1,2)", "(2,1)"),
    ("[1,2)", "[1,2]"),
    ("B", "A"),
    ("B", "BC"),
    ("B", "Banana"),
    ("no", "none"),
    ("no", "no one knows"),
    ("yes", "no"),
    ("1000", "1.000"),
    ("0.5", "0.05"),
    ("25%", "0.5"),
    ("5 dollars", "5 cents"),
    ("7 apples", "7 oranges"),
    ("1,2", "12"),
    ("12", "1 2"),
    ("3 hours", "3 minutes"),
    ("204_5", "204_{6}"),
    ("1011_2", "1011_3"),
    ("15", "1/5"),
    ("5", "five hundred"),
    ("3", "three quarters"),
    ("7", "7:00"),
    ("3", "x \\ge 3"),
    ("-3", "3"),
    ("2", "log_2 4x"),
    ("x+1", "x-1"),
    ("\\sqrt{2}", "2"),
    ("Paris", "London"),
    ("3", "-(3)"),
    ("3", "negative 3"),
    ("2", "x2"),
    ("4", "n-4"),
    ("2", "ln 2"),
    ("47", "log 47"),
    ("1/2", "1/2 pi"),
    ("5", "$5k"),
    ("7", "not 7"),
    ("2", "AZYUK2A"),
    ("B", "B or C"),
    ("B", "The answer is C, not B"),
    ("400 nm", "400 pm"),
    ("7", "7 at least"),
    ("7", "7 or more"),
    ("7", "7 and counting"),
    ("204", "204₈"),
    ("12 cm", "12 apples"),
    ("72", "72_{8}"),
    ("72", "the reciprocal of 72"),
    ("72", "cube of 72"),
    ("72", "It cannot be 72"),
    ("72", "It isn't 72"),
    ("72", "72 is wrong"),
    ("72", "72 is not the answer"),
    ("72", "72 is incorrect"),
    ("72", "wrong: 72"),
    ("June 20", "July 20"),
    ("June 20", "20"),
    ("3R^2", "3r^2"),
    ("x=5", "y=5"),
    ("0.1", "0.1%"),
    ("0.5", "0.5%"),
    ("A", "(A) and (C)"),
    ("A", "(A) or (B)"),
    ("(A) and (C)", "A"),
    ("yes", "yes, no"),
    ("no", "no, actually yes"),
    ("12 \\text{ cm}^2", "12 cm"),
    ("12 m/s", "12 m/s^2"),
    ("2x+3y=6", "6"),
    ("2x+3y=6", "2x-3y=6"),
    ("7", "seven eighths"),
    ("7", "7 eighths"),
    ("7", "7 tenths"),
    ("7", "7 hundredths"),
    ("5", "5 i"),
    ("6", "2x+3y = 6"),
    ("6", "2x = 6"),
    ("x^2+y^2=25", "25"),
    ("5x - 7y + 11z + 4 = 0", "0"),
    ("June 20", "May 20"),
    ("Apollo 11", "Gemini 11"),
    ("A", "(A), (B)"),
    ("A", "a) and b)"),
    ("12", "12 wrong"),
    ("12", "It can't be 12"),
    ("12", "12 isn't right"),
    ("12", "12 tens"),
    ("12", "12 hundredths"),
    ("12", "12:12"),
    ("2R", "2r"),
    ("10 km", "10 km/h"),
    ("1 000", "1 0000"),
    ("x=2, y=3", "x=3, y=2"),
    ("x=2, y=3", "(3,2)"),
    ("400 nm", "400 mm"),
    ("400 nm", "400 cm"),
    ("(A) 10 cm", "(A) and (B)"),
    ("0.05", "0.05%"),
    ("A", "(A)(B)"),
    ("A", "A. B"),
    ("2", "2, 2"),
    ("4", "2 2"),
    ("6", "(2)(4)"),
]

COSTLY = [
    ("2 x+3 y-z-3=0", "y=\\frac{t}{2} \\cos 2 t-\\frac{t}{4} \\sin 2 t+3 \\cos 2 t+2 \\sin 2 t"),
    ("\\frac34", "{{{{{{{{{{{{{{{{{{{{x}}}}}}}}}}}}}}}}}}}}"),
    ("\\frac34", "1E999999999\\cdot x"),
    ("\\frac34", "{1000000 \\choose 500000}"),
    ("\\frac34", "\\Gamma(10^{10})"),
    ("\\frac34", "(x+y+z+w+v+u)^{30}"),
    ("(a+b+c+d)^{60}", "(a+b+c+e)^{60}"),
    ("2+\\sqrt3", "(1+i)^{999}"),
    ("\\frac34", "(" * 50 + "x" + ")" * 50),
    ("\\frac{1}{2}", "9^{9^{9^{9}}}"),
    ("\\frac{1}{2}", "(10^{10})!"),
]

READ = [
    ("\\boxed{\\infty} so not 0", "0", False),
    ("\\boxed{\\infty}", "\\infty", True),
    ("The answer is unknown. 7", "7", False),
    ("So we get 5. The answer is not 7", "7", False),
    ("First #### Step 1\nfoo 3\n#### Step 2\nso it is 4", "4", True),
    ("#### 72", "72", True),
    ("#### 72\n", "72", True),
    ("text\n#### 72 clips", "72", True),
    ("The answer is 5.\nNo wait. The answer is 6.", "6", True),
    ("The answer is 5.\nNo wait. The answer is 6.", "5", False),
    ("\\boxed{3} first, the answer is 4", "4", True),
    ("\\boxed{3} first, the answer is 4", "3", False),
    ("**Final Answer**\n\n\\[\n\\boxed{16}\n\\]", "16", True),
    ("Final answer:\n\n72", "72", True),
    ("### Final Answer\n\n$72$\n", "72", True),
    ("The final answer is $\\frac{3}{4}$. I hope it is correct.", "\\frac{3}{4}", True),
    ("<think>\nMaybe the answer is 5. no 6\n</think>\nIt is 7", "7", True),
    ("<think>\nMaybe the answer is 5. no 6\n</think>\nThe answer is 7.", "5", False),
    ("To find the answer: first add 3 and 4.\nThen double: 14. She has 14.", "14", True),
    ("The answer is 8 because 2 + 3 = 5", "5", False),
    ("The answer is 8 because 2 + 3 = 5", "8", True),
    ("The answer is 8, since 2 + 6 = 8.", "8", True),
    ("The answer to the question is 42 apples.", "42", True),
    ("Answer: 10 - 3 = 7", "7", True),
    ("Answer: x = 7", "7", True),
    ("ANSWER: 1,234", "1234", True),
    ("The answer is: 7", "7", True),
    ("The answer is\n7", "7", True),
    ("it costs $.50", "50", False),
    ("it costs $.50", ".5", True),
    ("The answer is $.50", "50", False),
    ("so -3", "3", False),
    ("so -3", "-3", True),
    ("so − 3", "-3", True),
    ("x - 3", "3", True),
    ("between 3-7", "7", True),
    ("The answer is 3 million.", "3", False),
    ("The answer is 3 million.", "3000000", True),
    ("the capital is **Paris**.", "Paris", True),
    ('The answer is "yook".', "yook", True),
    ("The answer is 10:15.", "10:15", True),
    ("Answer: (1, 2)", "(1,2)", True),
    ("the answers are 3 and 5", "3,5", True),
    ("Answer: \\(x = \\frac{1}{2}\\)", "1/2", True),
    ("The answer is $5.4 \\text{ cents}$.", "5.4 \\text{ cents}", True),
    ("So, the answer is 3.5.", "3.5", True),
    ("The answer is 3.", "3.5", False),
    ("the answer is 1/2.", "0.5", True),
    ("Therefore, the value is 12", "12", True),
    ("The answer is A man.", "A man", True),
    ("The solutions are x=1 and x=2. Final answer: \\boxed{1, 2}", "1,2", True),
    (
        "The final answer is \\(\\boxed{\\left(3, \\frac{\\pi}{2}\\right)}\\).",
        "\\left( 3, \\frac{\\pi}{2} \\right)",
        True,
    ),
    ("answer: 5 apples. They were 9 before.", "5", True),
    ("answer: 5 apples. They were 9 before.", "9", False),
    ("The answer is 72 since 48+24=72.", "72", True),
    ("Final answer: >12", "12", False),
    ("Final answer: 72 - 10", "72", False),
    ("Final answer: 72 - the sum of both", "72", True),
    ("### Answer\n> 72", "72", True),
    ("The total number of clips is 48 + 24 = 72.", "72", True),
    ("The answer is **no**", "no", True),
    ("The answer is yes.", "no", False),
    ("yes or no", "no", False),
    ("The answer: 5\n\nNote: 9 people", "5", True),
    ("The correct answer is (B) 12 cm.", "B", True),
    ("Answer: B) 12 cm", "B", True),
    ("The correct option is B.", "B", True),
    ("So the right choice is **B**", "B", True),
    ("\\boxed{\\text{B}}", "B", True),
    ("The answer is \\textbf{(B)}", "B", True),
    ("Option B is correct.", "B", True),
    ("(B) is the correct answer", "B", True),
    ("I would choose (B).", "B", True),
    ("**Answer: B**", "B", True),
    ("**Final Answer:** (B)", "B", True),
    ("### Answer\nB", "B", True),
    ("The answer is option B.", "B", True),
    ("So the answer must be B, because A is wrong.", "B", True),
    ("Thus, (B).", "B", True),
    ("B", "B", True),
    ("B.", "B", True),
    ("The best answer is therefore B: 12 cm", "B", True),
    ("Answer (A, B or C): B", "B", True),
    ("答案是B", "B", True),
    ("Therefore the final answer is: $\\boxed{B}$.", "B", True),
    ("The answer is (C). B", "B", False),
    ("Option A is correct", "B", False),
    ("\\boxed{C} since B", "B", False),
    ("It is Banana", "B", False),
    ("The closest answer is 85.7 percent. The answer is (C).", "C", True),
    ("We looked it up. The answer is (I). The theory says that places correspond to pitches.", "I", True),
    ("Final Answer: The final answer is $-2 + 7i.$", "-2 + 7i", True),
    ("So, the answer is no, his term did not end with it.", "no", True),
    ("Therefore, the answer (Yes or No) is No.", "no", True),
    ("Answer: **18** dollars", "18", True),
    ("The answer is therefore **18**.", "18", True),
    ('{"answer": 18}', "18", True),
    ('```json\n{"answer": "18"}\n```', "18", True),
    ('{"reasoning": "9*2", "answer": 18}', "18", True),
    ("<answer>18</answer>\nHope that helps with question 5!", "18", True),
    ("Hence, the answer is D, i.e. 12", "D", True),
    ("The answer is (A) and (C).", "A", False),
    ("The answer is 5:30 p.m.", "5:30 pm", True),
    ("The answer is x = 3 and y = 4.", "(3,4)", True),
    ("The answer is $\\frac{1}{6} \\approx 0.167$.", "1/6", True),
    ("\\boxed{\\text{Answer: } 5}", "5", True),
    ("\\boxed{5}, \\boxed{6}", "5,6", True),
    ("The statement is true.", "True", True),
    ("Therefore, it is false.", "False", True),
    ("The argument is valid.", "valid", True),
    ("The answer is –5.", "-5", True),
]


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_equal_answers_in_different_forms_are_equal(gold: str, answer: str) -> None:
    assert answers.same(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_near_misses_are_wrong(gold: str, answer: str) -> None:
    assert not answers.same(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), COSTLY)
def test_no_answer_delays_scoring(gold: str, answer: str) -> None:
    symbolic.start()
    began = time.monotonic()
    assert answers.compare(gold, answer, TimeLimit()) != "same"
    assert time.monotonic() - began < 5  # 1.8 s on an idle machine
    began = time.monotonic()
    answers.compare(gold, answer, TimeLimit())  # what was result out once is not tried again
    assert time.monotonic() - began < 0.1


def judged(text: str, gold: str, *, tagged: bool) -> score.Score:
    return score.judge(replace(EXAMPLE, answer=gold), Completion("e", text, 9, "stop"), tagged=tagged)


def test_a_too_costly_answer_counts_as_wrong_and_is_reported() -> None:
    costly = judged("<thinking>\ns\n</thinking>\n<output>(1+i)^{999}</output>", "2+\\sqrt3", tagged=True)
    assert (costly.correct, costly.too_costly) == (False, True)
    assert arm_result([costly]).too_costly == 1
    assert not judged("<thinking>\ns\n</thinking>\n<output>7</output>", "7", tagged=True).too_costly


def test_all_readings_of_an_answer_share_one_time_limit() -> None:
    text = "The answer is $(1+i)^{998}$, or (1+i)^{997} that is. \\boxed{(1+i)^{996}}"
    symbolic.start()
    began = time.monotonic()
    assert judged(text, "2+\\sqrt3", tagged=False).too_costly
    assert time.monotonic() - began < 5


def test_a_killed_comparison_does_not_affect_the_next() -> None:
    assert answers.compare("2+\\sqrt3", "(1+i)^{995}", TimeLimit(0.5)) == "too_costly"
    assert answers.compare("x^2 + 2x + 1", "(x+1)^2", TimeLimit(30)) == "same"


def test_a_program_without_a_main_guard_can_score() -> None:
    """The comparison process does not use multiprocessing, which would run the main program again."""
    code = "from cot_unsloth.core import answers\nprint(answers.same('x^2 + 2x + 1', '(x+1)^2'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "True\n"


@pytest.mark.parametrize(("text", "gold", "right"), READ)
def test_the_answer_of_a_text_is_extracted(text: str, gold: str, right: bool) -> None:
    assert judged(text, gold, tagged=False).correct is right


@pytest.mark.parametrize(
    ("output", "gold"),
    [
        ("Adding them gives 12 + 4 = 16.\n\n**Final Answer**\n\n\\[\n\\boxed{16}\n\\]", "16"),
        ("<answer>16</answer>", "16"),
        ("There are 12 at first.\nThe answer is 16.", "16"),
        ("We get \\boxed{p - q}.", "p-q"),
        ("Step 1: 3+4=7\nStep 2: 7*2=14\n\nTherefore, she has **14** apples.", "14"),
        ("Answer: **18** dollars", "18"),
        ("The answer is therefore **18**.", "18"),
        ('{"answer": 18}', "18"),
        ('```json\n{"answer": "18"}\n```', "18"),
        ('{"reasoning": "9*2", "answer": 18}', "18"),
        ("Let me think. 9*2.\n<answer>\n18\n</answer>", "18"),
        ("<answer>18</answer>\nHope that helps with question 5!", "18"),
        ("Hence, the answer is D, i.e. 12", "D"),
        ("The answer is 5:30 p.m.", "5:30 pm"),
        ("The answer is x = 3 and y = 4.", "(3,4)"),
        ("The answer is $\\frac{1}{6} \\approx 0.167$.", "1/6"),
        ("\\boxed{\\text{Answer: } 5}", "5"),
        ("\\boxed{5}, \\boxed{6}", "5,6"),
        ("The statement is true.", "True"),
        ("Therefore, it is false.", "False"),
        ("The argument is valid.", "valid"),
        ("Therefore, the total number is: **5**.", "5"),
        ("The answer is –5.", "-5"),
    ],
)
def test_a_worked_solution_is_read_the_same_inside_and_outside_an_output_section(output: str, gold: str) -> None:
    assert judged(f"<thinking>\ns\n</thinking>\n<output>{output}</output>", gold, tagged=True).correct
    assert judged(output, gold, tagged=False).correct
    assert score.is_right(replace(EXAMPLE, answer=gold), output)


def test_the_strict_arm_does_not_use_the_last_number_of_an_output() -> None:
    assert not judged("<thinking>\ns\n</thinking>\n<output>3 or 7</output>", "7", tagged=True).correct


def test_a_worked_gold_answer_is_compared_by_its_marked_answer() -> None:
    gold = "First, 3 and 4 are added, which is what the question asks for.\nSo the answer is \\boxed{7}."
    assert judged("The answer is 7.", gold, tagged=False).correct
    prose = "A long text on how one might go about it, in which x = 3 stands somewhere among many other words."
    assert answers.is_prose(prose)
    assert answers.is_prose("The answer is: " + prose)
    assert not answers.is_prose("(A) " + prose)
    assert not judged("The answer is 3.", prose, tagged=False).correct


@pytest.mark.parametrize(
    "piece",
    [
        "\n",
        " ",
        "<answer>",
        '{"a":',
        "**a ",
        " because ",
        "\\boxed{1},",
        "The answer is ",
        "1,",
        "{",
        "\\boxed{",
        "(A",
        "= ",
        "**a**",
    ],
)
def test_reading_an_answer_takes_linear_time(piece: str) -> None:
    """Texts eight times as long; quadratic time would be 64 times as long."""

    def seconds(text: str) -> float:
        best = 1e9
        for _ in range(3):
            began = time.perf_counter()
            judged(text, "7", tagged=False)
            best = min(best, time.perf_counter() - began)
        return best

    short, long = ("The answer is" + piece * n for n in (2**13, 2**16))
    assert seconds(long) < 24 * max(seconds(short), 1e-3)


@pytest.mark.slow
def test_gold_answers_of_gsm8k_in_thirty_forms_and_thirty_near_misses(published_data: Path, tmp_path: Path) -> None:
    """60 rows; bench/scorer.py scores all."""
    lines = (published_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "some.jsonl").write_text("\n".join(lines[:60]), encoding="utf-8")
    result = module(ROOT / "bench" / "scorer.py").forms(tmp_path / "some.jsonl")
    assert result["misjudged"] == 0, result["first"]
    assert result["judged"] > 16 * len(lines[:60])


def test_the_committed_results_of_forms_meet_their_targets() -> None:
    result = json.loads((ROOT / "bench" / "results" / "scorer.json").read_text())["forms"]
    assert (result["forms"], result["near_misses"], result["misjudged"]) == (30, 30, 0)
