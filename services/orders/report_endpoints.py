"""HTTP only, of what staff looks at: order summaries and reports. `routes` says which path each of these answers."""

import hashlib
from typing import Final

from fastapi import Request, Response

from services.common import clock, cursors, ids
from services.common.auth import Claims
from services.common.http_request import parameters
from services.common.http_response import JsonResponse
from services.orders import report_schemas, reports, summaries
from services.orders.endpoints import context
from services.orders.summaries import Filters

REPORTS: Final = "reports:read"


async def list_summaries(request: Request, _: Claims) -> Response:
    """GET /v1/order-summaries."""
    at = context(request)
    query = parameters(report_schemas.SummariesQuery, request)
    question = hashlib.sha256(repr(query.model_dump(exclude={"limit", "cursor"}, mode="json")).encode()).digest()
    page = await summaries.list_summaries(
        at.database,
        Filters(
            query.status,
            query.payment_status,
            query.currency,
            from_at=query.created_from or clock.EPOCH,
            to_at=query.created_to or at.now() + ids.CLOCK_SKEW,
        ),
        before=None if query.cursor is None else cursors.opened(query.cursor, question),
        limit=query.limit,
    )
    next_cursor = None if page.next_id is None else cursors.sealed(page.next_id, question)
    return JsonResponse(report_schemas.render_summaries(page.rows, next_cursor, page.as_of))


async def get_sales(request: Request, _: Claims) -> Response:
    """GET /v1/reports/sales."""
    at = context(request)
    query = parameters(report_schemas.SalesQuery, request)
    report = await reports.get_sales(
        at.replica, query.by, query.first_on, query.end_on, query.currency, lag_max_seconds=at.reports_lag_max_seconds
    )
    return JsonResponse(report_schemas.render_report(query.by, report))
