"""The chat page at `/`, the questions it offers, and the votes it counts.

The page is three files of the package, with nothing from other hosts. The content security policy lets it load only these and
talk only to this server, so a model's text could do nothing even if it were taken for HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cot_unsloth.core import answers
from cot_unsloth.server.protection import body_of
from cot_unsloth.server.requests import VotesRequest, parse

_TYPES = {"index.html": "text/html", "app.js": "text/javascript", "style.css": "text/css"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def routes(examples: Sequence[str] = ()) -> list[Route]:
    """The addresses of the page.

    Args:
        examples: questions that it offers.
    """

    async def list_examples(request: Request) -> Response:
        return JSONResponse({"questions": list(examples)})

    return [
        Route("/", _page),
        Route("/page/{name}", _page),
        Route("/favicon.ico", _no_icon),
        Route("/examples", list_examples),
        Route("/votes", _votes, methods=["POST"]),
    ]


async def _page(request: Request) -> Response:
    name = request.path_params.get("name", "index.html")
    if name not in _TYPES:
        return Response(status_code=404)
    text = files("cot_unsloth.server").joinpath("page", name).read_text(encoding="utf-8")
    return Response(text, media_type=_TYPES[name], headers=_HEADERS)


async def _no_icon(request: Request) -> Response:
    return Response(status_code=204)


async def _votes(request: Request) -> Response:
    asked = parse(VotesRequest, await body_of(request))
    groups = await anyio.to_thread.run_sync(group, asked.answers)
    listed = [{"answer": texts[0], "members": members} for texts, members in groups]
    return JSONResponse({"groups": listed})


def group(texts: Sequence[str]) -> list[tuple[list[str], list[int]]]:
    """Equal answers together, the largest group first, empty answers last.

    Returns:
        For each group its texts, and their numbers.
    """
    groups: list[tuple[list[str], list[int]]] = []
    for number, text in enumerate(texts):
        equal = (
            same_answers
            for same_answers in groups
            if text.strip() == same_answers[0][0].strip() or answers.same(same_answers[0][0], text)
        )
        members = next(equal, None)
        if members is None:
            groups.append(([text], [number]))
        else:
            members[0].append(text)
            members[1].append(number)
    return sorted(groups, key=lambda same_answers: (not same_answers[0][0].strip(), -len(same_answers[1])))
