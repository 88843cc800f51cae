"""The routes of the dashboard. Every page is made on the server and works without a script.

All of them read; the one form that writes (freezing a link) needs a token. Handlers are plain
functions, so the web framework runs them in its threads and never on the event loop.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from estimators.types import Backend, Estimator
from meters.intensity.refresh import Health
from proxy.dashboard import exports, views
from proxy.dashboard.feasible import Studies
from proxy.dashboard.frozen import FrozenSnapshots
from proxy.dashboard.links import PAGES, ROOT, View
from proxy.dashboard.numbers import LANGUAGES, Numbers, language_of
from proxy.dashboard.periods import BadPeriod, parse, this_month
from proxy.dashboard.snapshot import Snapshot, Snapshots, without_keys
from proxy.dashboard.viewers import FormTokens, Viewer
from proxy.dashboard.views import PolicyOutcome

log = logging.getLogger("joulegate.dashboard")

TEMPLATES = Path(__file__).parent / "templates"
MAX_FORM_BYTES = 16_384
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "private, no-store",
}
_MEDIA = {
    "csv": ("text/csv; charset=utf-8", "csv"),
    "json": ("application/json", "json"),
    "parquet": ("application/vnd.apache.parquet", "parquet"),
    "focus": ("text/csv; charset=utf-8", "focus.csv"),
    "esrs": ("text/csv; charset=utf-8", "esrs-e1-6.csv"),
    "pdf": ("application/pdf", "pdf"),
}
_USERS = ("text/csv; charset=utf-8", "users.csv")


# Of the process: compiling the templates takes a quarter of a second.
_environment = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Dashboard:
    """What the pages need; made once by the application.

    ``teams`` lists all team names (for an admin's menu); ``health`` the intensity sources;
    ``replay`` what policies would have done with a team's traffic; ``estimator`` and ``gpus``
    serve the planning page, and ``backends`` those that may have been metered; ``studies`` find
    savings by replaying. Each of them may be None: the page then says what is missing.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        teams: Callable[[], Sequence[str]] | None = None,
        health: Callable[[], Sequence[Health]] | None = None,
        estimator: Estimator | None = None,
        gpus: Mapping[str, Any] | None = None,
        replay: Callable[[str, float, float], Sequence[PolicyOutcome]] | None = None,
        studies: Studies | None = None,
        backends: Callable[[], Sequence[Backend]] | None = None,
        user_groups: Callable[[str], bool] | None = None,
        form_secret: bytes | None = None,
        signs_in: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.snapshots = snapshots
        self.frozen = FrozenSnapshots(snapshots.ledger)
        self.teams = teams or snapshots.ledger.teams
        self.health = health or (lambda: ())
        self.estimator = estimator
        self.gpus = dict(gpus or {})
        self.replay = replay
        self.studies = studies
        self.backends = backends or (lambda: ())
        self.user_groups = user_groups or (lambda team: False)
        self.tokens = FormTokens(form_secret or secrets.token_bytes(32))
        self.clock = clock
        self.signs_in = signs_in  # whether there is a page to sign in, and so a way out

    def warm(self) -> None:
        """Get ready what a first page would wait for: templates, numbers' locales, queries.

        It makes the first screen of nobody, and reads what divides idle energy.
        """
        for template in TEMPLATES.glob("*.html"):
            _environment.get_template(template.name)
        view = View(team="", period=this_month(self.clock(), "UTC"), language="en")
        nobody = Viewer(name="")
        try:
            snapshot = self.snapshot(view)
            self.snapshots.trailing(view.period)
            values = _common(self, view, nobody, snapshot, "overview")
            values |= views.overview(self, view, snapshot, values["n"], {}, nobody)
            self.page("overview.html", **values)
            values["n"].significant(1.5)
        except (SQLAlchemyError, OSError):
            pass  # then the first page makes them

    def page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        html = _environment.get_template(template).render(**values)
        return HTMLResponse(html, status, headers=HEADERS)

    def snapshot(self, view: View) -> Snapshot:
        return self.snapshots.of(view.team, view.period, view.simulated)


def _html_errors(dashboard: Dashboard) -> type[APIRoute]:
    """A kind of route whose refusals are pages for people, not JSON."""

    class PageRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handler(request: Request) -> Response:
                try:
                    return await handle(request)
                except HTTPException as error:
                    return _refusal(dashboard, request, error)
                except SQLAlchemyError as error:
                    log.warning("the dashboard cannot read the ledger: %s", type(error).__name__)
                    text = "The ledger cannot be read now. Serving goes on; try again shortly."
                    return _refusal(dashboard, request, HTTPException(503, text))

            return handler

    return PageRoute


def _refusal(dashboard: Dashboard, request: Request, error: HTTPException) -> Response:
    root = f"{request.scope.get('root_path', '')}{ROOT}"
    title = {400: "Not understood", 403: "Not allowed", 404: "Not found", 503: "Later"}
    return dashboard.page(
        "message.html",
        error.status_code,
        title=title.get(error.status_code, "Not possible"),
        text=str(error.detail),
        root=root,
    )


def viewed(request: Request, dashboard: Dashboard, viewer: Viewer, team: str) -> View:
    """What a request's link asks for. Refuses other teams as if they did not exist."""
    if not viewer.may_see(team):
        raise HTTPException(404, "There is no such team, or it is not yours.")
    asked = request.query_params
    zone = asked.get("tz") or viewer.time_zone
    try:
        wanted = asked.get("period")
        period = parse(wanted, zone) if wanted else this_month_or_refuse(dashboard, zone)
    except BadPeriod as error:
        raise HTTPException(400, str(error)) from None
    book = {"simulated": True, "real": False}.get(asked.get("book", ""))
    return View(
        team=team,
        period=period,
        language=language_of(asked.get("lang"), request.headers.get("accept-language")),
        language_asked=asked.get("lang") in LANGUAGES,
        time_zone_asked="tz" in asked,
        simulated=book,
        root=str(request.scope.get("root_path", "")) + ROOT,
    )


def this_month_or_refuse(dashboard: Dashboard, zone: str) -> Any:
    """The month now. Raises BadPeriod for an unknown zone."""
    parse("2026-01", zone)
    return this_month(dashboard.clock(), zone)


def router(dashboard: Dashboard, viewer: Callable[..., Any]) -> APIRouter:
    """The routes under /dashboard. ``viewer`` is a dependency that yields a Viewer or refuses."""
    routes = APIRouter(prefix=ROOT, include_in_schema=False, route_class=_html_errors(dashboard))
    signed_in = Depends(viewer)

    @routes.get("/style.css")
    def style() -> Response:
        css = (TEMPLATES / "style.css").read_text()
        headers = {**HEADERS, "cache-control": "public, max-age=3600"}
        return Response(css, media_type="text/css", headers=headers)

    @routes.get("")
    def start(request: Request, who: Viewer = signed_in) -> Response:
        mine = _teams(dashboard, who)
        if not mine:
            return dashboard.page(
                "message.html",
                title="No data yet",
                text="No request of a team of yours has been recorded. Send one through the "
                "proxy, and this page shows it within seconds.",
                root=str(request.scope.get("root_path", "")) + ROOT,
            )
        recorded = set(dashboard.snapshots.ledger.teams())
        first = next((team for team in mine if team in recorded), mine[0])
        view = viewed(request, dashboard, who, first)
        return RedirectResponse(view.link("overview"), 303, headers=HEADERS)

    @routes.get("/{team:name}/frozen/{name}")
    def frozen(request: Request, team: str, name: str, who: Viewer = signed_in) -> Response:
        if not who.may_see(team):
            raise HTTPException(404, "There is no such team, or it is not yours.")
        kept = dashboard.frozen.find(name)
        if kept is None or kept.team != team:
            raise HTTPException(404, "Nothing was frozen under this hash.")
        view = View(
            team=team,
            period=exports.period_of(kept),
            language=language_of(
                request.query_params.get("lang"), request.headers.get("accept-language")
            ),
            simulated=kept.simulated,
            root=str(request.scope.get("root_path", "")) + ROOT,
        )
        ending = request.query_params.get("format")
        if ending:
            return _file(kept, ending, view, who)
        now = dashboard.snapshots.of(team, view.period, kept.simulated)
        return dashboard.page(
            "report.html",
            **_common(dashboard, view, who, kept, "report"),
            **views.report(kept),
            frozen=kept,
            differs=now.hash != kept.hash,
            now=now,
        )

    @routes.post("/{team:name}/freeze")
    async def freeze(request: Request, team: str, who: Viewer = signed_in) -> Response:
        if not who.may_see(team):
            raise HTTPException(404, "There is no such team, or it is not yours.")
        form = await _form(request)
        if not dashboard.tokens.valid(form.get("token", ""), who):
            raise HTTPException(403, "This form is too old or not from here; go back and reload.")
        try:
            period = parse(form.get("period", ""), form.get("tz", "UTC"))
        except BadPeriod as error:
            raise HTTPException(400, str(error)) from None
        simulated = form.get("book") == "simulated"
        snapshot = await run_in_threadpool(dashboard.snapshots.of, team, period, simulated)
        await run_in_threadpool(dashboard.frozen.keep, snapshot)
        root = f"{request.scope.get('root_path', '')}{ROOT}"
        here = View(team=team, period=period, language="en", root=root).team_root
        return RedirectResponse(f"{here}/frozen/{snapshot.hash}", 303, headers=HEADERS)

    @routes.get("/{team:name}/export.{ending}")
    def export(request: Request, team: str, ending: str, who: Viewer = signed_in) -> Response:
        view = viewed(request, dashboard, who, team)
        if ending == "users":
            return _users_file(dashboard, view, who)
        return _file(dashboard.snapshot(view), ending, view, who)

    @routes.get("/{team:name}/requests/{request_id:path}")
    def receipt(request: Request, team: str, request_id: str, who: Viewer = signed_in) -> Response:
        view = viewed(request, dashboard, who, team)
        if not who.sees_keys:
            raise HTTPException(403, "Single requests are for leads of the team.")
        found = dashboard.snapshots.ledger.receipt(request_id)
        if found is None or found.record.team != team:
            raise HTTPException(404, "No such request of this team is in the ledger.")
        return dashboard.page(
            "receipt.html",
            **_common(dashboard, view, who, None, "requests"),
            **views.receipt(found, dashboard.snapshots.book, dashboard.snapshots.sites),
        )

    @routes.get("/{team:name}")
    def team_start(request: Request, team: str, who: Viewer = signed_in) -> Response:
        view = viewed(request, dashboard, who, team)
        return RedirectResponse(view.link("overview"), 303, headers=HEADERS)

    @routes.get("/{team:name}/{page}")
    def page(request: Request, team: str, page: str, who: Viewer = signed_in) -> Response:
        if page not in PAGES:
            raise HTTPException(404, f"There is no page {page!r}.")
        view = viewed(request, dashboard, who, team)
        snapshot = dashboard.snapshot(view)
        values = _common(dashboard, view, who, snapshot, page)
        make = views.PAGES[page]
        values |= make(dashboard, view, snapshot, values["n"], dict(request.query_params), who)
        return dashboard.page(f"{page}.html", **values)

    return routes


def _teams(dashboard: Dashboard, who: Viewer) -> list[str]:
    known = [team for team in dashboard.teams() if team]
    return known if who.role == "admin" else [t for t in who.teams if t in known] or list(who.teams)


def _common(
    dashboard: Dashboard, view: View, who: Viewer, snapshot: Snapshot | None, page: str
) -> dict[str, Any]:
    n = Numbers(view.language)
    values: dict[str, Any] = {
        "view": view,
        "viewer": who,
        "n": n,
        "pages": PAGES,
        "shows_users": who.sees_keys and dashboard.user_groups(view.team),
        "page": page,
        "root": view.root,
        "teams": _teams(dashboard, who),
        "languages": LANGUAGES,
        "signs_in": dashboard.signs_in,
        "s": snapshot,
        "simulated": bool(snapshot and snapshot.simulated),
        "also_simulated": False,
        "token": dashboard.tokens.make(who),
    }
    if snapshot and not snapshot.simulated:
        values["also_simulated"] = dashboard.snapshots.has_simulated(view.team, view.period)
    return values


def _file(snapshot: Snapshot, ending: str, view: View, who: Viewer) -> Response:
    if ending not in _MEDIA:
        raise HTTPException(404, f"There is no export {ending!r}; there is {', '.join(_MEDIA)}.")
    shown = snapshot if who.sees_keys else without_keys(snapshot)
    return _sent(snapshot, written(shown, ending, view.language), *_MEDIA[ending])


def _sent(snapshot: Snapshot, body: bytes, media: str, tail: str) -> Response:
    headers = {
        **HEADERS,
        "content-disposition": f'attachment; filename="{exports.file_name(snapshot, tail)}"',
        "x-joulegate-sha256": snapshot.hash,
    }
    return Response(body, media_type=media, headers=headers)


def _users_file(dashboard: Dashboard, view: View, who: Viewer) -> Response:
    """The groups of users as CSV; refuses as the page does."""
    if not (dashboard.user_groups(view.team) and who.sees_keys):
        raise HTTPException(404, "No groups of users are kept for this team, or not for you.")
    snapshot = dashboard.snapshot(view)
    groups = dashboard.snapshots.user_groups(view.team, view.period, snapshot.simulated)
    if groups is None:
        raise HTTPException(404, "No groups of users are large enough, or the month is not over.")
    return _sent(snapshot, exports.as_users(snapshot, groups), *_USERS)


def written(snapshot: Snapshot, ending: str, language: str = "en") -> bytes:
    """A snapshot as a file of one of ``exports.FORMATS``. Raises KeyError for another."""
    if ending == "pdf":
        # Its fonts take as long to import as a third of the proxy, and few ask for a PDF.
        from proxy.dashboard.report_pdf import as_pdf

        return as_pdf(snapshot, Numbers(language))
    return {
        "csv": exports.as_csv,
        "json": exports.as_json,
        "parquet": exports.as_parquet,
        "focus": exports.as_focus,
        "esrs": exports.as_esrs,
    }[ending](snapshot)


async def _form(request: Request) -> dict[str, str]:
    """The fields of a posted form. Refuses one that comes from another site."""
    origin = request.headers.get("origin")
    if origin and origin != "null" and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "This form was sent from another site.")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(403, "This form was sent from another site.")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise HTTPException(413, "The form is too long.")
    return {k: v[0] for k, v in parse_qs(body.decode("utf-8", "replace")).items()}
