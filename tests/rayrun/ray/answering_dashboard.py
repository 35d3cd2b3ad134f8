"""A dashboard whose answers a test chooses."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Any]


class Dashboard:
    """A server whose answers a test chooses, by path."""

    def __init__(self) -> None:
        self.answers: dict[str, Handler] = {}
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        threading.Thread(target=self._serve, args=(started,), daemon=True).start()
        started.wait(10)
        self.answers["/api/version"] = says({"version": "4", "ray_version": "2.60.0"})

    def _serve(self, started: threading.Event) -> None:
        async def start() -> None:
            app = web.Application()
            app.router.add_route("*", "/{tail:.*}", self._answer)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            started.set()

        self._loop.run_until_complete(start())
        self._loop.run_forever()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        self.tokens.add(request.headers.get("Authorization", ""))
        handler = self.answers.get(request.path)
        return web.Response(status=404) if handler is None else await handler(request)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


def says(content: object, status: int = 200) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        text = content if isinstance(content, str) else json.dumps(content)
        return web.Response(text=text, status=status, content_type="application/json")

    return answer
