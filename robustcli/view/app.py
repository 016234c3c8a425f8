"""The pages of `robustcli view`: a list of runs, the report of one, two compared.

Only GET and HEAD are answered, nothing is written, and no file but ``report.html`` of a run or sweep is sent as it is.
"""

from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from robustcli.report.html import render
from robustcli.report.tables import Grid
from robustcli.utils.errors import UserError
from robustcli.view.listing import SWEEP, find, holds_links, inside

# A report of another's stands in a frame without origin: its script can sort tables and ask this server for nothing.
_OF_REPORTS = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
_OF_PAGES = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_ALWAYS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
_READ = (
    "DONE",
    "FAILED",
    "config.yaml",
    "overrides.yaml",
    "manifest.json",
    "metrics.csv",
    "diagnostics.csv",
    "records.parquet",
)


def create(root: Path) -> Starlette:
    """The application over the runs below ``root``."""
    root = root.resolve()

    async def index(request: Request) -> Response:
        asked = {name: request.query_params.get(name, "") for name in ("q", "kind", "status")}
        every = await run_in_threadpool(find, root)
        shown = [each for each in every if each.matches(asked["q"], asked["kind"], asked["status"])]
        kinds, statuses = (sorted({getattr(each, name) for each in every}) for name in ("kind", "status"))
        return _page(
            "view.html.j2",
            "Runs",
            root=str(root),
            runs=shown,
            total=len(every),
            kinds=kinds,
            statuses=statuses,
            asked=asked,
        )

    async def report(request: Request) -> Response:
        path = request.path_params["path"]
        place = inside(root, f"{path}/report.html")
        if place is None or not place.is_file():
            return _missing(f"there is no report of {path!r} here")
        return HTMLResponse(place.read_bytes(), headers=_ALWAYS | {"Content-Security-Policy": _OF_REPORTS})

    async def compare(request: Request) -> Response:
        paths, models = request.query_params.getlist("run"), request.query_params.getlist("model")
        if len(paths) not in (1, 2):
            return _page("compare.html.j2", "Compare", sides=[], grid=None, sentence="Choose two runs in the list.")
        places = [inside(root, path) for path in paths]
        for path, place in zip(paths, places, strict=True):
            if place is None or not place.is_dir() or holds_links(place, _READ):
                return _missing(f"there is no run {path!r} here")
        first, last = places[0], places[-1]
        assert first is not None and last is not None
        return await run_in_threadpool(_compared, first, last, (paths[0], paths[-1]), models)

    routes = [
        Route("/", index),
        Route("/run/{path:path}/report.html", report),
        Route("/compare", compare),
    ]
    # A page of the web whose name is made to point here would be of another origin, but could read what it gets.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return Starlette(routes=routes, middleware=[hosts])


def _compared(first: Path, last: Path, names: tuple[str, str], models: list[str]) -> Response:
    from robustcli.report.compare import compare
    from robustcli.report.runs import read_run

    grid: Grid | None = None
    sentence, sides = "", []
    try:
        known = [list(dict.fromkeys(map(str, read_run(place).figures["model"]))) for place in (first, last)]
        default = [known[0][0] if first == last else known[0][-1], known[1][-1]]
        chosen = [*models[:2], *default[len(models[:2]) :]]
        sides = list(zip(names, known, chosen, strict=True))
        grid = compare(first, chosen[0], last, chosen[1])
    except UserError as error:
        sentence = str(error)
    return _page("compare.html.j2", "Compare", sides=sides, grid=grid, sentence=sentence)


def _page(template: str, title: str, *, status: int = 200, **parts: object) -> Response:
    page = render(template, title, sweep=SWEEP, **parts)
    return HTMLResponse(page, status, headers=_ALWAYS | {"Content-Security-Policy": _OF_PAGES})


def _missing(sentence: str) -> Response:
    return _page("compare.html.j2", "Not found", status=404, sides=[], grid=None, sentence=sentence)
