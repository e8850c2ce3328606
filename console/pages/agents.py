"""Agents: a persona, a model and its parameters under one id, in versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import FormData
from starlette.responses import Response

from console.client import ApiError
from console.forms import FieldError, read_form
from console.render import Given, page, pretty, redirect
from console.security import Acting, Reading, Writing

router = APIRouter(prefix="/agents")

# The fields of a definition that are text, and those that the form takes as JSON.
_TEXTS = ("name", "description", "system_prompt", "model")
_DOCUMENTS = ("parameters", "messages", "metadata")


@router.get("")
async def show_agents(request: Request, api: Reading) -> Response:
    """List the account's agents."""
    agents = await api.get("/agents", limit=50, after=request.query_params.get("after"))
    return page(request, "agents.html", agents=agents)


@router.get("/new")
async def show_form(request: Request, api: Reading) -> Response:
    """Show the form for a new agent."""
    return _form(request, {}, models=await api.model_names())


@router.post("")
async def create_agent(request: Request, session: Acting, api: Writing) -> Response:
    """Create an agent."""
    form = await read_form(request)
    try:
        agent = await api.post("/agents", {name: value for name, value in _read(form).items() if value is not None})
    except (ApiError, FieldError) as error:
        return _form(request, _values(form), models=await api.model_names(), error=error)
    session.say("The agent is created.")
    return redirect(f"/agents/{agent['id']}")


@router.get("/{agent_id}")
async def show_agent(request: Request, api: Reading, agent_id: str) -> Response:
    """Show an agent in its newest version, or in the one that the query names, and its newest jobs."""
    agent = await api.get(f"/agents/{agent_id}", version=request.query_params.get("version"))
    versions = await api.get(f"/agents/{agent_id}/versions", limit=50)
    jobs = await api.get("/jobs", agent_id=agent_id, limit=10)
    return page(request, "agent.html", agent=agent, versions=versions["data"], jobs=jobs["data"])


@router.get("/{agent_id}/edit")
async def show_edit(request: Request, api: Reading, agent_id: str) -> Response:
    """Show the form of an agent."""
    agent = await api.get(f"/agents/{agent_id}")
    bio = agent["bio"]
    known = {name: agent[name] or "" for name in _TEXTS}
    known |= {name: "" if agent[name] is None else pretty(agent[name]) for name in _DOCUMENTS}
    known["bio"] = bio if isinstance(bio, str) else "\n".join(bio or ())
    return _form(request, known, models=await api.model_names(), agent_id=agent_id)


@router.post("/{agent_id}")
async def update_agent(request: Request, session: Acting, api: Writing, agent_id: str) -> Response:
    """Change an agent, which makes a new version."""
    form = await read_form(request)
    try:
        await api.post(f"/agents/{agent_id}", _read(form))
    except (ApiError, FieldError) as error:
        return _form(request, _values(form), models=await api.model_names(), agent_id=agent_id, error=error)
    session.say("The agent is changed.")
    return redirect(f"/agents/{agent_id}")


@router.post("/{agent_id}/delete")
async def delete_agent(session: Acting, api: Writing, agent_id: str) -> Response:
    """Delete an agent."""
    await api.delete(f"/agents/{agent_id}")
    session.say("The agent is deleted. Its jobs keep running.")
    return redirect("/agents")


def _form(
    request: Request,
    values: Mapping[str, Any],
    *,
    models: list[str],
    agent_id: str | None = None,
    error: ApiError | FieldError | None = None,
) -> Response:
    wrong = "" if error is None or error.param is None else error.param.partition(".")[0].partition("[")[0]
    return page(
        request,
        "agent_form.html",
        status=200 if error is None else 422,
        values=Given(values),
        models=models,
        agent_id=agent_id,
        error=error,
        wrong=wrong,
    )


def _values(form: FormData) -> dict[str, str]:
    return {name: str(value) for name, value in form.items()}


def _read(form: FormData) -> dict[str, Any]:
    """Return the definition that a form describes; an empty field is null.

    Raises:
        FieldError: A field is not JSON.
    """
    definition: dict[str, Any] = {name: str(form.get(name, "")).strip() or None for name in _TEXTS}
    definition["bio"] = [line.strip() for line in str(form.get("bio", "")).splitlines() if line.strip()] or None
    for name in _DOCUMENTS:
        text = str(form.get(name, "")).strip()
        try:
            definition[name] = json.loads(text) if text else None
        except ValueError as error:
            raise FieldError(name, f"This is not JSON: {error}.") from error
    return definition
