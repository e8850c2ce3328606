"""The request, with the types of what it finds in its state."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from fastapi import Request

if TYPE_CHECKING:
    from api.state import ApiState

    ApiRequest: TypeAlias = Request[ApiState]
else:
    ApiRequest = Request  # FastAPI passes a request to a parameter with this very class as its type
