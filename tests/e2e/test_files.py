from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from headrace.files.tables import CHUNK_BYTES
from tests.e2e.jobs import refused
from tests.fakes.provider import Json

SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 17]


async def upload(client: httpx.AsyncClient, data: bytes, name: str = "in.jsonl", **fields: str) -> Json:
    """Upload a file and return its object."""
    response = await client.post("/files", data={"purpose": "batch", **fields}, files={"file": (name, data)})
    assert response.status_code == 200, response.text
    file: Json = response.json()
    return file


@pytest.mark.parametrize("size", SIZES)
async def test_a_file_comes_back_as_it_went_in(client: httpx.AsyncClient, size: int) -> None:
    data = secrets.token_bytes(size)
    file = await upload(client, data)
    assert file["id"].startswith("file-")
    assert (file["object"], file["bytes"], file["purpose"], file["status"]) == ("file", size, "batch", "processed")
    assert (await client.get(f"/files/{file['id']}")).json() == file
    content = await client.get(f"/files/{file['id']}/content")
    assert content.content == data
    assert content.headers["content-length"] == str(size)


async def test_the_openai_client_uploads_lists_reads_and_deletes(openai_client: openai.AsyncOpenAI) -> None:
    file = await openai_client.files.create(file=("q.jsonl", b"{}\n"), purpose="batch")
    assert file.filename == "q.jsonl"
    assert file.id in [found.id async for found in await openai_client.files.list(purpose="batch")]
    assert await openai_client.files.retrieve(file.id) == file
    assert (await openai_client.files.content(file.id)).content == b"{}\n"
    assert (await openai_client.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await openai_client.files.retrieve(file.id)


async def test_the_openai_client_sets_an_expiry(openai_client: openai.AsyncOpenAI) -> None:
    file = await openai_client.files.create(
        file=("q.jsonl", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at is not None
    assert file.expires_at - file.created_at in (3600, 3601)


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, None),
        ("bytes=5-9", 5, 10),
        (f"bytes={CHUNK_BYTES - 1}-{CHUNK_BYTES}", CHUNK_BYTES - 1, CHUNK_BYTES + 1),
        (f"bytes={2 * CHUNK_BYTES}-", 2 * CHUNK_BYTES, None),
        ("bytes=10-999999999", 10, None),
        ("bytes=-7", -7, None),
    ],
)
async def test_a_range_is_that_part(client: httpx.AsyncClient, asked: str, start: int, end: int | None) -> None:
    data = secrets.token_bytes(2 * CHUNK_BYTES + 100)
    file = await upload(client, data)
    part = await client.get(f"/files/{file['id']}/content", headers={"range": asked})
    assert part.status_code == 206
    assert part.content == data[start:end]
    first = start % len(data)
    assert part.headers["content-range"] == f"bytes {first}-{first + len(part.content) - 1}/{len(data)}"


async def test_a_range_behind_the_end_is_told_the_size(client: httpx.AsyncClient) -> None:
    file = await upload(client, b"abc")
    part = await client.get(f"/files/{file['id']}/content", headers={"range": "bytes=3-"})
    assert part.status_code == 416
    assert part.headers["content-range"] == "bytes */3"
    assert part.json()["error"] == {
        "message": "The file has 3 bytes.",
        "type": "invalid_request_error",
        "param": "Range",
        "code": "invalid_range",
    }


@pytest.mark.parametrize("asked", ["bytes=2-1", "bytes=-", "lines=0-1", "bytes=0-1,2-3"])
async def test_a_range_that_makes_no_sense_is_the_whole_file(client: httpx.AsyncClient, asked: str) -> None:
    file = await upload(client, b"abc")
    part = await client.get(f"/files/{file['id']}/content", headers={"range": asked})
    assert (part.status_code, part.content) == (200, b"abc")


async def test_another_validator_than_the_files_gets_all_of_it(client: httpx.AsyncClient) -> None:
    path = f"/files/{(await upload(client, b'abc'))['id']}/content"
    tag = (await client.head(path)).headers["etag"]
    for validator, status in ((tag, 206), ('"another"', 200)):
        part = await client.get(path, headers={"range": "bytes=0-0", "if-range": validator})
        assert (part.status_code, part.headers["etag"]) == (status, tag)


async def test_a_client_that_has_the_file_is_not_sent_it_again(client: httpx.AsyncClient) -> None:
    path = f"/files/{(await upload(client, b'abc'))['id']}/content"
    tag = (await client.head(path)).headers["etag"]
    for known, status in ((tag, 304), (f'"other", W/{tag}', 304), ("*", 304), ('"other"', 200)):
        answer = await client.get(path, headers={"if-none-match": known})
        assert (answer.status_code, answer.content) == (status, b"abc" if status == 200 else b"")


async def test_head_of_a_file_says_its_length_and_sends_nothing(client: httpx.AsyncClient) -> None:
    file = await upload(client, b"abc")
    answer = await client.head(f"/files/{file['id']}/content")
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "3", b"")


async def test_a_list_goes_on_after_a_file_that_was_deleted(client: httpx.AsyncClient) -> None:
    ids = [(await upload(client, b"x"))["id"] for _ in range(3)]
    page = (await client.get("/files", params={"limit": 2})).json()
    for file in page["data"]:
        assert (await client.delete(f"/files/{file['id']}")).status_code == 200
    rest = (await client.get("/files", params={"limit": 1, "after": page["last_id"]})).json()
    assert [file["id"] for file in rest["data"]] == ids[:1]
    refused(await client.get("/files", params={"after": "nonsense"}), 400, param="after")


async def test_a_name_beyond_ascii_goes_before_its_plain_form(client: httpx.AsyncClient) -> None:
    form = (
        b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
        b'content-disposition: form-data; name="file"; filename="x.jsonl"; '
        b"filename*=UTF-8''na%C3%AFve.jsonl\r\n\r\nabc\r\n--x--\r\n"
    )
    headers = {"content-type": "multipart/form-data; boundary=x"}
    file = (await client.post("/files", content=form, headers=headers)).json()
    assert file["filename"] == "naïve.jsonl"
    download = await client.get(f"/files/{file['id']}/content")
    assert download.headers["content-disposition"].endswith("filename*=UTF-8''na%C3%AFve.jsonl")


async def test_files_are_listed_page_by_page(client: httpx.AsyncClient) -> None:
    ids = [(await upload(client, b"x"))["id"] for _ in range(3)]
    newest = (await client.get("/files", params={"limit": 2})).json()
    assert [file["id"] for file in newest["data"]] == ids[:0:-1]
    assert newest["has_more"]
    rest = (await client.get("/files", params={"limit": 1, "after": newest["last_id"]})).json()
    assert [file["id"] for file in rest["data"]] == ids[:1]
    oldest = (await client.get("/files", params={"order": "asc", "after": ids[1]})).json()
    assert [file["id"] for file in oldest["data"]] == ids[2:]
    assert (await client.get("/files", params={"purpose": "fine-tune"})).json()["data"] == []


async def test_another_accounts_file_is_not_there(client: httpx.AsyncClient, other: httpx.AsyncClient) -> None:
    file = (await upload(client, b"secret"))["id"]
    for request in (
        other.get(f"/files/{file}"),
        other.get(f"/files/{file}/content"),
        other.delete(f"/files/{file}"),
    ):
        refused(await request, 404)
    assert file not in (await other.get("/files")).text
    assert (await client.get(f"/files/{file}")).status_code == 200


@pytest.mark.parametrize(
    ("fields", "files", "param"),
    [
        ({}, {"file": ("a", b"x")}, "purpose"),
        ({"purpose": "vision"}, {"file": ("a", b"x")}, "purpose"),
        ({"purpose": "batch"}, {"other": ("a", b"x")}, "file"),
        ({"purpose": "x" * 2000}, {"file": ("a", b"x")}, "purpose"),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, {"file": ("a", b"x")}, "expires_after[anchor]"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "1"},
            {"file": ("a", b"x")},
            "expires_after[seconds]",
        ),
    ],
)
async def test_a_form_that_is_wrong_is_refused_and_nothing_is_kept(
    client: httpx.AsyncClient, fields: dict[str, str], files: dict[str, Any], param: str
) -> None:
    before = (await client.get("/files", params={"limit": 1})).json()["first_id"]
    refused(await client.post("/files", data=fields, files=files), 400, param=param)
    assert (await client.get("/files", params={"limit": 1})).json()["first_id"] == before


@pytest.mark.parametrize("what", ["fields", "headers", "a name", "a preamble"])
async def test_a_form_that_does_not_come_to_its_file_is_refused(client: httpx.AsyncClient, what: str) -> None:
    pieces = {
        "fields": b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n' + b"v" * 900 + b"\r\n",
        "headers": b"x: " + b"v" * 900 + b"\r\n",
        "a name": b"v" * 1000,
        "a preamble": b"\r\n" * 500,
    }
    openings = {"headers": b"--b\r\n", "a name": b'--b\r\nContent-Disposition: form-data; name="'}

    async def form() -> AsyncIterator[bytes]:
        yield openings.get(what, b"")
        for _ in range(200):
            yield pieces[what]

    kind = {"content-type": "multipart/form-data; boundary=b"}
    refused(await client.post("/files", content=form(), headers=kind), 400, code="invalid_form")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (
            (
                b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
                b'--b\r\nContent-Disposition: form-data; name="file"; filename="a\0b"\r\n\r\nx\r\n--b--\r\n'
            ),
            "multipart/form-data; boundary=b",
        ),
        (b"", "multipart/form-data"),
        (b"", "multipart/form-data; boundary=b"),
        (b"garbage", "multipart/form-data; boundary=b"),
        (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhalf',
            "multipart/form-data; boundary=b",
        ),
        (b"{}", "application/json"),
    ],
)
async def test_what_is_no_form_is_refused(client: httpx.AsyncClient, body: bytes, kind: str) -> None:
    refused(await client.post("/files", content=body, headers={"content-type": kind}), 400)


async def test_a_names_odd_characters_do_no_harm(client: httpx.AsyncClient) -> None:
    file = await upload(client, b"x", name='Füße "1"\r\nX-Evil: 1.jsonl')
    content = await client.get(f"/files/{file['id']}/content")
    assert content.status_code == 200
    assert "x-evil" not in content.headers


@pytest.mark.parametrize("file", ["file-0", "batch_1", "file-" + "0" * 32, "file-" + "0" * 31 + "%00"])
async def test_what_is_no_file_is_not_there(client: httpx.AsyncClient, file: str) -> None:
    refused(await client.get(f"/files/{file}"), 404)
    refused(await client.get(f"/files/{file}/content"), 404)
    refused(await client.delete(f"/files/{file}"), 404)
