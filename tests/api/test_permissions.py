"""Sharing checkpoints between projects: what the other one may then do, and what it still may not."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from jobs.repositories import checkpoints
from tests.api.tenants import Tenants

CHECKPOINTS = "/v1/fine_tuning/checkpoints"


@pytest.fixture
def shared(tenants: Tenants, tmp_path: Path) -> tuple[str, str, str, str]:
    """Keys of the owner and of another project, the other project, a checkpoint."""
    other = tenants.project("other")
    owner_key, other_key = tenants.key(tenants.project("owner"))["value"], tenants.key(other)["value"]
    checkpoint_id = tenants.checkpoint(tenants.job(owner_key), tmp_path / "checkpoint")
    return owner_key, other_key, other, checkpoint_id


def test_a_shared_checkpoint_is_read_downloaded_and_a_model(
    tenants: Tenants, shared: tuple[str, str, str, str]
) -> None:
    owner_key, other_key, other, checkpoint_id = shared
    url = f"{CHECKPOINTS}/{checkpoint_id}"
    paths = [url, f"{url}/files", f"{url}/files/model.safetensors", f"{url}/content"]
    with tenants.http(owner_key) as owner, tenants.http(other_key) as http:
        name = owner.get(url).json()["fine_tuned_model_checkpoint"]
        paths.append(f"/v1/models/{name}")
        assert {http.get(path).status_code for path in paths} == {404}
        made = owner.post(f"{url}/permissions", json={"project_ids": [other, other]}).json()
        assert [each["project_id"] for each in made["data"]] == [other]
        assert made["data"][0]["object"] == "checkpoint.permission"
        again = owner.post(f"{url}/permissions", json={"project_ids": [other]}).json()
        assert again == made
        assert [http.get(path).status_code for path in paths] == [200] * 5
        assert http.get(paths[2]).content == b"weights"
        model = http.get(paths[4]).json()
        assert (model["id"], model["object"]) == (name, "model")
        for method, path, body in (
            ("PATCH", url, {"pinned": True}),
            ("DELETE", url, None),
            ("POST", f"{url}/permissions", {"project_ids": [other]}),
            ("GET", f"{url}/permissions", None),
            ("DELETE", f"{url}/permissions/{made['data'][0]['id']}", None),
        ):
            assert http.request(method, path, json=body).status_code == 404, (method, path)
        gone = owner.delete(f"{url}/permissions/{made['data'][0]['id']}").json()
        assert gone == {"id": made["data"][0]["id"], "object": "checkpoint.permission", "deleted": True}
        assert {http.get(path).status_code for path in paths} == {404}
        assert owner.delete(f"{url}/permissions/{made['data'][0]['id']}").status_code == 404


def test_a_shared_checkpoint_is_the_model_of_jobs_and_chats_and_nothing_else_is(
    tenants: Tenants, tmp_path: Path
) -> None:
    other = tenants.project("other")
    owner_key, other_key = tenants.key(tenants.project("owner"))["value"], tenants.key(other)["value"]
    claim = tenants.service.claim(tenants.job(owner_key))
    folder = tmp_path / "checkpoint"
    (folder / "trainer_state").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "trainer_state" / "state.json").write_text("{}")
    first, second = (tenants.service.checkpoint(claim, step, folder) for step in (2, 4))
    last = tenants.service.checkpoint(claim, 20, folder, final=True)
    tenants.service.finish(claim, "succeeded")
    with tenants.http(owner_key) as owner:
        tuned = owner.get(f"/v1/fine_tuning/jobs/{claim.job_id}").json()["fine_tuned_model"]
        names = [f"{tuned}:ckpt-step-{step}" for step in (2, 4, 20)]
        (permission,) = owner.post(f"{CHECKPOINTS}/{second}/permissions", json={"project_ids": [other]}).json()["data"]
    mine, theirs = [second, names[1]], [first, last, tuned, names[0], names[2]]
    file_id = tenants.upload(other_key)

    with tenants.http(other_key) as http:

        def job(model: str) -> tuple[int, str]:
            body = tenants.service.body(model=model, training_file=file_id)
            response = http.post("/v1/fine_tuning/jobs", json=body)
            return response.status_code, response.json()["error"]["code"] if response.is_error else ""

        def resumed(checkpoint: str) -> tuple[int, str]:
            rl = {"resume_from": {"checkpoint": checkpoint}}
            body = tenants.service.body(training_file=file_id, rl=rl)
            response = http.post("/v1/fine_tuning/jobs", json=body)
            return response.status_code, response.json()["error"]["code"] if response.is_error else ""

        def chat(model: str) -> tuple[int, str]:
            body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
            response = http.post("/v1/chat/completions", json=body)
            return response.status_code, response.json()["error"]["code"]

        for model in mine:
            assert job(model) == (200, "")
            assert resumed(model) == (200, "")
            assert chat(model) == (503, "no_capacity"), "no generator runs here"
        for model in theirs:
            assert job(model) == (404, "model_not_found")
            assert resumed(model) == (400, "invalid_checkpoint")
            assert chat(model) == (404, "model_not_found")
            assert http.get(f"/v1/models/{model}").status_code == 404
        assert http.get(f"/v1/fine_tuning/jobs/{claim.job_id}").status_code == 404
        started, went_on = http.get("/v1/fine_tuning/jobs", params={"limit": 2}).json()["data"][::-1]
        assert started["rl"]["base"]["checkpoint"] == second
        assert tenants.service.claim(went_on["id"]).resume_checkpoint_id == second
        with tenants.http(owner_key) as owner:
            assert owner.get(f"/v1/fine_tuning/jobs/{started['id']}").status_code == 404
            assert owner.delete(f"{CHECKPOINTS}/{second}").json()["error"]["code"] == "checkpoint_in_use"
            owner.delete(f"{CHECKPOINTS}/{second}/permissions/{permission['id']}")
        for model in mine:
            assert job(model) == (404, "model_not_found")
            assert resumed(model) == (400, "invalid_checkpoint")
            assert chat(model) == (404, "model_not_found")


def test_lists(tenants: Tenants, shared: tuple[str, str, str, str]) -> None:
    owner_key, _, other, checkpoint_id = shared
    projects = [other, *(tenants.project(str(number)) for number in range(3))]
    url = f"{CHECKPOINTS}/{checkpoint_id}/permissions"
    with tenants.http(owner_key) as http:
        for project in projects:
            http.post(url, json={"project_ids": [project]})
        newest_first = [each["project_id"] for each in http.get(url).json()["data"]]
        assert newest_first == projects[::-1]
        seen: list[str] = []
        page = http.get(url, params={"order": "ascending", "limit": 3}).json()
        seen += [each["project_id"] for each in page["data"]]
        assert page["has_more"]
        page = http.get(url, params={"order": "ascending", "limit": 3, "after": page["last_id"]}).json()
        assert seen + [each["project_id"] for each in page["data"]] == projects
        only = http.get(url, params={"project_id": projects[1]}).json()["data"]
        assert [each["project_id"] for each in only] == [projects[1]]
        for wrong in ({"project_ids": ["proj_none"]}, {"project_ids": []}, {}):
            assert http.post(url, json=wrong).status_code == 400
        tenants.admin("POST", f"projects/{other}/archive")
        assert http.post(url, json={"project_ids": [other]}).status_code == 400


def test_by_the_client_with_either_key_and_by_the_models_name(
    tenants: Tenants, shared: tuple[str, str, str, str]
) -> None:
    owner_key, _, other, checkpoint_id = shared
    with tenants.http(owner_key) as http:
        name = http.get(f"{CHECKPOINTS}/{checkpoint_id}").json()["fine_tuned_model_checkpoint"]
    url = f"{tenants.service.url}/v1"
    with openai.OpenAI(base_url=url, api_key=owner_key, admin_api_key=tenants.admin_key, max_retries=0) as client:
        permissions = client.fine_tuning.checkpoints.permissions
        (made,) = permissions.create(name, project_ids=[other])
        assert made.project_id == other
        assert [each.id for each in permissions.list(name)] == [made.id]
        with pytest.deprecated_call():
            assert [each.id for each in permissions.retrieve(name).data] == [made.id]
        assert permissions.delete(made.id, fine_tuned_model_checkpoint=name).deleted
    with tenants.http(owner_key) as http:
        body = {"project_ids": [other]}
        assert http.post(f"{CHECKPOINTS}/{name}/permissions", json=body).status_code == 200
    with tenants.http(tenants.key(other, "jobs:read")["value"]) as http:
        assert http.get(f"{CHECKPOINTS}/{checkpoint_id}/permissions").status_code == 403


def test_permissions_go_with_their_checkpoint(tenants: Tenants, shared: tuple[str, str, str, str]) -> None:
    owner_key, other_key, other, checkpoint_id = shared
    with tenants.http(owner_key) as http:
        http.post(f"{CHECKPOINTS}/{checkpoint_id}/permissions", json={"project_ids": [other]})
        job_id = http.get("/v1/fine_tuning/jobs").json()["data"][0]["id"]
        http.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
    with tenants.service.ctx.db.transaction() as session:
        checkpoints.remove(session, [checkpoint_id])
    with tenants.http(other_key) as http:
        assert http.get(f"{CHECKPOINTS}/{checkpoint_id}").status_code == 404


def test_a_shared_checkpoint_is_evaluated_and_exported_without_what_its_job_says(
    tenants: Tenants, shared: tuple[str, str, str, str]
) -> None:
    """Graders and files of the owner are the owner's."""
    owner_key, other_key, other, checkpoint_id = shared
    url = f"{CHECKPOINTS}/{checkpoint_id}"
    grader = tenants.service.body()["method"]["reinforcement"]["grader"]
    body = {"file": tenants.upload(other_key), "grader": grader}
    with tenants.http(owner_key) as owner, tenants.http(other_key) as http:
        for path in (f"{url}/evaluate", f"{url}/export"):
            assert http.post(path, json={}).status_code == 404
        owner.post(f"{url}/permissions", json={"project_ids": [other]})
        for lacking in ("file", "grader"):
            refused = http.post(f"{url}/evaluate", json={name: body[name] for name in body if name != lacking})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, lacking)
        made = http.post(f"{url}/evaluate", json=body).json()
        assert (made["checkpoint"], made["seed"]) == (checkpoint_id, 0)
        exported = http.post(f"{url}/export").json()
        for path in (f"evaluations/{made['id']}", f"exports/{exported['id']}"):
            assert http.get(f"/v1/fine_tuning/{path}").status_code == 200
            assert owner.get(f"/v1/fine_tuning/{path}").status_code == 404
        in_use = owner.delete(url).json()["error"]
        assert in_use["code"] == "checkpoint_in_use"
        assert made["id"] not in in_use["message"]
