"""A Hub on this machine: the routes that huggingface_hub speaks to download and to commit, and ways to fail at each."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_secretsecretsecret"
LFS = re.compile(r".*\.(safetensors|bin)")

Files = dict[str, bytes]


@dataclass
class Repo:
    """A repository: its commits, oldest first, and the commit that each branch stands at."""

    private: bool = True
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, branch: str = "main") -> str:
        content = "".join(f"{name}{hashlib.sha1(data).hexdigest()}" for name, data in sorted(files.items()))
        sha = hashlib.sha1(f"{len(self.commits)}{content}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        return sha

    def files(self, branch: str = "main") -> Files:
        return self.commits[self.branches[branch]]


class Hub(ThreadingHTTPServer):
    """Serves `repos`; `me`, whose token is TOKEN, may write to `me/...` and `lab/...`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fault: tuple[str, Callable[[Handler], object]] | None = None
        self.stalled, self.released = threading.Event(), threading.Event()
        self.waited_for = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def at(self, request: str, fault: Callable[[Handler], object] | None) -> None:
        """Answer requests of that pattern, such as `GET .*/config.json`, with a fault; or properly again."""
        self.fault = (request, fault) if fault else None

    def add(self, name: str, folder: Path, private: bool = False) -> Repo:
        self.repos[name] = Repo(private)
        self.repos[name].commit({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
        return self.repos[name]


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def handle_request(self) -> None:
        self.path = self.path.partition("?")[0]
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.fault and re.fullmatch(self.server.fault[0], f"{self.command} {self.path}"):
            self.server.fault[1](self)
            return
        for method, pattern, route in ROUTES:
            match = re.fullmatch(pattern, self.path)
            if match and method in (self.command, "GET" if self.command == "HEAD" else None):
                route(self, **{name: unquote(value) for name, value in match.groupdict().items()})
                return
        self.refuse(404, "EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815  # the names that http.server calls

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repo(self, name: str) -> Repo | None:
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not self.known):
            self.refuse(404 if self.known else 401, "RepoNotFound")
            return None
        return repo

    def commit_of(self, name: str, revision: str) -> tuple[str, Files] | None:
        repo = self.repo(name)
        sha = repo.branches.get(revision, revision) if repo else ""
        if repo and sha not in repo.commits:
            self.refuse(404, "RevisionNotFound")
        return (sha, repo.commits[sha]) if repo and sha in repo.commits else None

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, b"", {"X-Error-Code": code})

    def answer_json(self, document: object) -> None:
        self.answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def answer(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, send: int | None = None
    ) -> None:
        """Answer; with `send`, say how long the content is and send only that much of it."""
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:send])

    def stall(self) -> None:
        """Say nothing until the server is released, or until it is clear that nobody gives it up."""
        self.server.stalled.set()
        self.server.waited_for |= not self.server.released.wait(30)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Keep stderr for bertflow."""


def whoami(handler: Handler) -> None:
    if not handler.known:
        handler.refuse(401, "Unauthorized")
        return
    handler.answer_json({"name": "me", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": "write"}}})


def auth_check(handler: Handler, name: str) -> None:
    if not handler.known:
        handler.refuse(401, "Unauthorized")
    elif handler.repo(name):
        handler.answer_json({})


def model_info(handler: Handler, name: str, revision: str | None = None) -> None:
    found = handler.commit_of(name, revision or "main")
    if found:
        siblings = [{"rfilename": path} for path in found[1]]
        private = handler.server.repos[name].private
        handler.answer_json({"id": name, "sha": found[0], "private": private, "siblings": siblings})


def download(handler: Handler, name: str, revision: str, path: str) -> None:
    found = handler.commit_of(name, revision)
    if found and path not in found[1]:
        handler.refuse(404, "EntryNotFound")
    elif found:
        content = found[1][path]
        handler.answer(200, content, {"X-Repo-Commit": found[0], "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})


def create_repo(handler: Handler) -> None:
    asked = json.loads(handler.body)
    name = f"{asked['organization'] or 'me'}/{asked['name']}"
    if not handler.known:
        handler.refuse(401, "Unauthorized")
    elif name in handler.server.repos:
        document = json.dumps({"error": "You already created this model repo", "url": f"{handler.server.url}/{name}"})
        handler.answer(409, document.encode(), {"Content-Type": "application/json"})
    else:
        handler.server.repos[name] = Repo(private=asked.get("visibility") == "private")
        handler.server.repos[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        handler.answer_json({"url": f"{handler.server.url}/{name}"})


def create_branch(handler: Handler, name: str, branch: str) -> None:
    repo = handler.repo(name)
    if repo and branch in repo.branches:
        handler.refuse(409, "Conflict")
    elif repo:
        repo.branches[branch] = repo.branches["main"]
        handler.answer_json({})


def preupload(handler: Handler, name: str, revision: str) -> None:
    if handler.commit_of(name, revision):
        paths = [file["path"] for file in json.loads(handler.body)["files"]]
        modes = {path: "lfs" if LFS.fullmatch(path) else "regular" for path in paths}
        handler.answer_json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})


def validate_yaml(handler: Handler) -> None:
    """Take any model card."""
    handler.answer_json({"errors": [], "warnings": []})


def lfs_batch(handler: Handler, name: str) -> None:
    if handler.repo(name):
        objects = json.loads(handler.body)["objects"]
        for blob in objects:
            if blob["oid"] not in handler.server.blobs:
                blob["actions"] = {"upload": {"href": f"{handler.server.url}/lfs/{blob['oid']}"}}
        handler.answer_json({"transfer": "basic", "objects": objects})


def lfs_upload(handler: Handler, oid: str) -> None:
    assert hashlib.sha256(handler.body).hexdigest() == oid
    handler.server.blobs[oid] = handler.body
    handler.answer(200, b"")


def commit(handler: Handler, name: str, revision: str) -> None:
    found = handler.commit_of(name, revision)
    if not found:
        return
    sha, files = found[0], dict(found[1])
    for line in handler.body.splitlines():
        item: Any = json.loads(line)
        key, value = item["key"], item["value"]
        if key == "header" and value.get("parentCommit", sha) != sha:
            handler.refuse(412, "Conflict")
            return
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = handler.server.blobs[value["oid"]]
        elif key == "deletedFile":
            del files[value["path"]]
    new = handler.server.repos[name].commit(files, revision)
    handler.answer_json({"commitUrl": f"{handler.server.url}/{name}/commit/{new}", "commitOid": new})


NAME = r"(?P<name>[^/]+(/[^/]+)?)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", whoami),
    ("GET", rf"/api/models/{NAME}/auth-check/write", auth_check),
    ("GET", rf"/api/models/{NAME}/revision/(?P<revision>.+)", model_info),
    ("GET", rf"/api/models/{NAME}", model_info),
    ("GET", rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", download),
    ("POST", r"/api/repos/create", create_repo),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("POST", rf"/api/models/{NAME}/branch/(?P<branch>.+)", create_branch),
    ("POST", rf"/api/models/{NAME}/preupload/(?P<revision>.+)", preupload),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", lfs_upload),
    ("POST", rf"/api/models/{NAME}/commit/(?P<revision>.+)", commit),
]
