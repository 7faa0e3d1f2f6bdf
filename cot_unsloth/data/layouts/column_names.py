"""The names that data sets give to their columns, by role.

Collected from public data sets. A name that is missing here can be added, or named in the settings (`--answer-column`).
"""

from __future__ import annotations

QUESTION = (
    "prompt", "question", "instruction", "problem", "query", "input", "user", "human", "userprompt", "userquery",
    "questiontext", "problemstatement", "questionstem", "exercise", "goal", "ask", "inputs",
    "sentence", "qtext", "ctx", "sent1", "q",
)  # fmt: skip
"""Columns that ask, in order of preference, normalized by `normalize_name`; so are all tables here."""
REASONING = (
    "reasoningchains", "reasoning", "thinkingtrajectories", "deepseekthinkingtrajectory", "thinkingtrajectory",
    "reasoningcontent", "thinking", "thinkingcontent", "think", "thinkcontent", "complexcot", "longcot", "cot",
    "cotcontent", "chainofthought", "chainofthoughts", "chainsofthought", "thought", "thoughts", "thoughtprocess",
    "rationale", "rationales", "explanation", "explanation1", "explanations", "exp", "steps", "reasoningsteps", "solutionsteps",
    "stepbystep", "stepbystepsolution", "stepbystepreasoning", "reasoningtrace", "reasoningtraces", "scratchpad",
    "reason", "analysis", "justification", "derivation", "trace", "deliberation", "facts", "decomposition",
    "workings", "working", "longanswer", "taskb",
)  # fmt: skip
REASONING_ENDINGS = (
    "reasoning", "thinking", "cot", "rationale", "explanation", "chainofthought", "thought", "thoughts",
    "trajectory", "trajectories", "reasoningtrace", "reasoningcontent", "thinkingtrace", "thinkingcontent",
)  # fmt: skip
RESPONSE = (
    "response", "completion", "output", "assistant", "generatedsolution", "attempt", "deepseekattempt",
    "modelresponse", "modeloutput", "modelanswer", "generation", "generatedtext", "genans", "assistantresponse",
    "fullresponse", "reply", "chosen", "solution", "r1solution", "deepseeksolution", "outputs",
    "answercontent", "content", "finalresponse", "response1", "completion1", "generation1", "output1", "r1solution1",
    "generatedsolution1", "final",
)  # fmt: skip
GOLD = (
    "finalanswer", "groundtruth", "groundtruthanswer", "groundtrueanswer", "expectedanswer", "referenceanswer",
    "goldanswer", "goldenanswer", "correctanswer", "answer", "gold", "target", "answers", "targets", "answerkey",
    "numericanswer", "answervalue", "rewardmodel", "reference", "solution", "groundtruthsolution",
    "solutions", "lsolutions", "finaldecision", "finalans", "answersspans", "answerspans", "goldstandardsolution",
    "qans", "a",
)  # fmt: skip
OPTIONS = (
    "options", "choices", "choice", "answerchoices", "answeroptions", "alternatives", "multiplechoices", "mcoptions",
    "optionlist", "candidates", "endings",
)  # fmt: skip
"""Columns that hold all options of a multiple-choice question."""
RESPONSE_ENDINGS = ("response", "completion", "output", "reply")
GOLD_ENDINGS = ("answer", "groundtruth")
TAGGED_ENDINGS = (*RESPONSE_ENDINGS, "generation", "content", "solution", "prediction", "answer", "text")
NOT_AN_ANSWER = ("incorrect", "wrong", "bad", "rejected", "has", "is", "no", "num", "distractor", "system")
"""How names begin that end like an answer and hold none, such as `incorrect_answer` and `has_answer`."""
GOLD_WITHOUT_RESPONSE = ("correct", "label", "result")
"""Columns that hold the gold answer if no other column answers; beside a response they grade it."""
SYSTEM = ("system", "systemprompt", "sys", "systemmessage", "systeminstruction")
INSTRUCTION_INPUT = ("input", "context")
"""What an instruction is applied to, as in Alpaca."""
CONTEXT = (
    "body", "context", "contexts", "passage", "paragraph", "article", "story", "theory", "premises", "premise", "text",
)  # fmt: skip
"""Text that the question is about; it is put before the question."""
CLAIMS = ("hypothesis", "conclusion", "statement", "claim")
"""A claim to verify, which is the question if a column of CONTEXT is there (as in NLI data sets)."""
VERDICTS = (
    "iscorrect", "correct", "correctness", "answercorrect", "answeriscorrect", "r1correctness", "isright", "verified",
    "passed", "label",
)  # fmt: skip
"""Columns with a verdict on the row's own response."""
SWITCHES = frozenset(
    [
        "on",
        "off",
        "true",
        "false",
        "yes",
        "no",
        "none",
        "n/a",
        "na",
        "low",
        "medium",
        "high",
        "auto",
        "default",
        "0",
        "1",
    ]
)
"""Values of a model setting (`reasoning: on`), in a column named as if it held the reasoning."""
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
