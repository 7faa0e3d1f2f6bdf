"""The server of `serve`: models behind the OpenAI API, on Starlette and uvicorn.

A request is checked (`protection`, `requests`), waits for a free slot (`generation`), and is answered in the API's own form
(`responses`); `app` connects them to addresses, and `run` to a socket.
"""

from cot_unsloth.server.app import Served, build_app
from cot_unsloth.server.run import access_for, bind, serve

__all__ = ["Served", "access_for", "bind", "build_app", "serve"]
