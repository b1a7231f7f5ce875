"""A small Hugging Face Hub on the loopback interface, for tests that publish and load with the real clients.

It keeps repositories, commits, tags and branches in memory and answers the HTTP calls that `huggingface_hub`,
`transformers` and `datasets` make. Where the Hub refuses (no token, missing revision, stale parent commit), this
server refuses with the same status and `X-Error-Code`, so that an error message seen in a test is the one a user
would see. Pull requests, gating, Xet and paging are not implemented; an address unknown here is answered by 501, which
no client takes for "nothing there" or retries.

    with HubServer() as hub:
        hub.add_repo("org/model", folder)
        run_python("from transformers import AutoModel; AutoModel.from_pretrained('org/model')", hub.env(tmp_path))
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.message import Message
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_test"
USER = "tester"

# What the Hub stores outside of git. A client must not be told "regular" for a Parquet file: `push_to_hub` deletes its
# temporary file as soon as an "lfs" upload is over, and commits a regular one only after that.
LFS_SUFFIXES = (".arrow", ".bin", ".jpg", ".npz", ".onnx", ".parquet", ".png", ".pt", ".pth", ".safetensors", ".tar")
LFS_BYTES = 10 * 2**20


@dataclass(frozen=True)
class StoredFile:
    """One version of one file."""

    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git itself holds for an LFS file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @property
    def size(self) -> int:
        return len(self.content)

    @cached_property
    def blob_id(self) -> str:
        return git_blob_id(self.pointer if self.lfs else self.content)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    """A complete snapshot; `parents` are the ids of all earlier commits, newest first."""

    oid: str
    files: Mapping[str, StoredFile]
    title: str
    message: str
    date: str
    parents: tuple[str, ...]


@dataclass
class Repo:
    """A repository of one kind ("models", "datasets" or "spaces", as in the addresses)."""

    kind: str
    repo_id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit_at(self, revision: str) -> Commit:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[oid]

    def add_commit(self, branch: str, files: Mapping[str, StoredFile], title: str, message: str = "") -> Commit:
        parent = self.commits[self.branches[branch]] if branch in self.branches else None
        parents = (parent.oid, *parent.parents) if parent else ()
        blobs = sorted((path, stored.blob_id) for path, stored in files.items())
        # The count keeps two commits of the same content on the same parent apart.
        identity = [self.kind, self.repo_id, branch, len(self.commits), parents, blobs]
        oid = hashlib.sha1(json.dumps(identity).encode()).hexdigest()
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        commit = Commit(oid, dict(files), title, message, date, parents)
        self.commits[oid] = commit
        self.branches[branch] = oid
        return commit


@dataclass(frozen=True)
class Request:
    """One HTTP request with its body read; `path` keeps its percent-encoding."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Message
    body: bytes

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def has_flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("1", "true")


@dataclass(frozen=True)
class Reply:
    """What goes back; to HEAD, without the body."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    missing: int = 0  # bytes at the end that are promised and not sent
    delay_s: float = 0.0  # before it begins


class Refusal(Exception):
    """An answer that is an error, with the headers from which clients make their exception."""

    def __init__(self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        extra = {"X-Error-Code": code} if code else {}
        body = json.dumps({"error": message}).encode()
        extra["X-Error-Message"] = message.encode("ascii", "replace").decode()  # a path in it may be beyond Latin-1
        self.reply = Reply(status, body, {**JSON_HEADERS, **extra, **(headers or {})})


@dataclass
class Fault:
    """An error to answer to the requests whose "METHOD path" contains `substring`, after letting `skip` pass."""

    substring: str
    status: int
    times: int
    skip: int
    reply: Reply | None = (
        None  # instead of an error; its missing bytes are those of the proper reply, if it has no body
    )


@dataclass(frozen=True)
class Exchange:
    """A line of the server's log."""

    method: str
    path: str
    status: int
    byte_range: str | None
    headers: str  # of the request, all of them


JSON_HEADERS = {"Content-Type": "application/json; charset=utf-8"}


class HubServer:
    """The running server. `log` lists every exchange, in order of completion."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.log: list[Exchange] = []
        self._objects: dict[str, bytes] = {}
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._http = QuietServer(("127.0.0.1", 0), handler_for(self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="hub", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def env(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """The environment of a subprocess that knows this Hub only, with its caches below `home`.

        `token=None` makes it an anonymous visitor. Settings of the Hugging Face libraries and of Python that the
        caller happens to have (offline mode, a stored token, PYTHONPATH) are left out.
        """
        home.mkdir(parents=True, exist_ok=True)
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_", "DATASETS_", "PYTHON")
        env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        env |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return env | ({"HF_TOKEN": token} if token else {})

    def add_repo(self, repo_id: str, folder: Path, repo_type: str = "model", private: bool = False) -> str:
        """The id of the commit that puts `folder` into a repository, made if it does not exist, without any client.

        A second call replaces the content of `main`, as a second upload with deletion of the old files would.
        """
        files = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name, content = path.relative_to(folder).as_posix(), path.read_bytes()
            files[name] = StoredFile(content, is_lfs(name, len(content)))
        with self._lock:
            repo = self.repos.get((f"{repo_type}s", repo_id)) or self._create(f"{repo_type}s", repo_id, private)
            attributes = repo.commit_at("main").files[".gitattributes"]
            return repo.add_commit("main", {".gitattributes": attributes, **files}, "Add a local folder").oid

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """The content of every file of a revision, by path; the Hub's own `.gitattributes` is one of them."""
        with self._lock:
            if (f"{repo_type}s", repo_id) not in self.repos:
                raise ValueError(f"no {repo_type} {repo_id!r} on this server, only {sorted(self.repos)}")
            commit = self.repos[f"{repo_type}s", repo_id].commit_at(revision)
            return {path: stored.content for path, stored in commit.files.items()}

    def fail_next(self, path_substring: str, status: int = 500, times: int = 1, skip: int = 0) -> None:
        """Answer `status` to the next `times` requests whose "METHOD path" contains `path_substring`.

        The first `skip` matching requests are still answered properly, which puts the fault in the middle of a job.
        """
        with self._lock:
            self._faults.append(Fault(path_substring, status, times, skip))

    def spoil_next(self, path_substring: str, reply: Reply, times: int = 1) -> None:
        """Answer this to the next `times` requests; without a body, the proper one, late or cut short as it says."""
        with self._lock:
            self._faults.append(Fault(path_substring, 200, times, 0, reply))

    def answer(self, request: Request) -> Reply:
        """The reply to one request, faults included."""
        with self._lock:
            try:
                spoiled = self._raise_planned_fault(request)
                reply = spoiled if spoiled is not None and spoiled.body else self._route(request)
                if spoiled is not None:
                    reply = replace(reply, missing=spoiled.missing, delay_s=spoiled.delay_s)
            except Refusal as refusal:
                reply = refusal.reply
            self.log.append(
                Exchange(
                    request.method, request.path, reply.status, request.headers.get("Range"), str(request.headers)
                )
            )
            return reply

    def _raise_planned_fault(self, request: Request) -> Reply | None:
        for fault in self._faults:
            if fault.times == 0 or fault.substring not in f"{request.method} {request.path}":
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.times -= 1
            if fault.reply is not None:
                return fault.reply
            raise Refusal(fault.status, None, "a fault planned by the test")
        return None

    def _route(self, request: Request) -> Reply:
        # Split before unquoting: a revision may contain a slash, sent as %2F.
        parts = [unquote(part) for part in request.path.strip("/").split("/")]
        if request.token not in (None, TOKEN):
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        match [request.method, *parts]:
            case ["GET", "api", "whoami-v2"]:
                require_token(request)
                auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
                return json_reply({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": auth})
            case ["GET", "api", _]:
                raise Refusal(404, None, "Not found")  # registries beside the repositories, which clients do without
            case ["POST", "api", "validate-yaml"]:
                return validate_card(request)
            case ["POST", "api", "repos", "create"]:
                return self._create_repo(request)
            case ["DELETE", "api", "repos", "delete"]:
                repo = self._repo(request, *repo_named_in(request), write=True)
                del self.repos[repo.kind, repo.repo_id]
                return json_reply({})
            case [_, "api", "models" | "datasets" | "spaces" as kind, owner, name, *rest]:
                return self._api(request, kind, f"{owner}/{name}", rest)
            case ["PUT", "lfs", oid]:
                return self._store_object(request, oid)
            case ["GET" | "HEAD", "datasets" | "spaces" as kind, owner, name, "resolve", revision, *path]:
                return self._resolve(request, kind, f"{owner}/{name}", revision, "/".join(path))
            case ["GET" | "HEAD", owner, name, "resolve", revision, *path]:
                return self._resolve(request, "models", f"{owner}/{name}", revision, "/".join(path))
            case ["POST", "datasets" | "spaces" as kind, owner, name, "info", "lfs", "objects", "batch"]:
                return self._lfs_batch(request, kind, f"{owner}/{name}".removesuffix(".git"))
            case ["POST", owner, name, "info", "lfs", "objects", "batch"]:
                return self._lfs_batch(request, "models", f"{owner}/{name}".removesuffix(".git"))
        raise Refusal(501, None, f"the test server has no endpoint for {request.method} {request.path}")

    def _api(self, request: Request, kind: str, repo_id: str, rest: list[str]) -> Reply:
        match [request.method, *rest]:
            case ["GET"]:
                return repo_info(self._repo(request, kind, repo_id), "main", request)
            case ["GET", "revision", revision]:
                return repo_info(self._repo(request, kind, repo_id), revision, request)
            case ["GET", "refs"]:
                return list_refs(self._repo(request, kind, repo_id))
            case ["GET", "commits", revision]:
                return list_commits(self._repo(request, kind, repo_id), revision)
            case ["GET", "tree", revision, *path]:
                commit = self._repo(request, kind, repo_id).commit_at(revision)
                return list_tree(commit, "/".join(path), request)
            case ["POST", "paths-info", revision]:
                return paths_info(self._repo(request, kind, repo_id).commit_at(revision), request)
            case ["POST", "preupload", revision]:
                return preupload(self._repo(request, kind, repo_id, write=True).commit_at(revision), request)
            case ["POST", "commit", branch]:
                return self._commit(request, self._repo(request, kind, repo_id, write=True), branch)
            case ["POST", "tag", revision]:
                return create_tag(self._repo(request, kind, repo_id, write=True), revision, request.json["tag"])
            case ["DELETE", "tag", tag]:
                repo = self._repo(request, kind, repo_id, write=True)
                if repo.tags.pop(tag, None) is None:
                    raise Refusal(404, "RevisionNotFound", f"Tag not found: {tag}")
                return json_reply({})
            case ["POST", "branch", branch]:
                return create_branch(self._repo(request, kind, repo_id, write=True), branch, request)
        raise Refusal(501, None, f"the test server has no endpoint for {request.method} {request.path}")

    def _repo(self, request: Request, kind: str, repo_id: str, write: bool = False) -> Repo:
        repo = self.repos.get((kind, repo_id))
        if repo is None or (repo.private and request.token is None):
            # Strangers are not told whether a private repository exists.
            if request.token is None:
                raise Refusal(401, "RepoNotFound", "Invalid username or password.")
            raise Refusal(404, "RepoNotFound", "Repository not found")
        if write:
            require_token(request)
        return repo

    def _create(self, kind: str, repo_id: str, private: bool) -> Repo:
        repo = Repo(kind, repo_id, private)
        lines = [f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES]
        repo.add_commit("main", {".gitattributes": StoredFile("".join(lines).encode(), lfs=False)}, "initial commit")
        self.repos[kind, repo_id] = repo
        return repo

    def _create_repo(self, request: Request) -> Reply:
        require_token(request)
        kind, repo_id = repo_named_in(request)
        url = f"{self.url}/{url_prefix(kind)}{repo_id}"
        reply = {"url": url, "name": repo_id, "id": repo_id}
        if (kind, repo_id) in self.repos:
            return json_reply({**reply, "error": f"You already created this {kind[:-1]} repo"}, status=409)
        private = request.json.get("private") or request.json.get("visibility") == "private"
        self._create(kind, repo_id, private=bool(private))
        return json_reply(reply)

    def _lfs_batch(self, request: Request, kind: str, repo_id: str) -> Reply:
        self._repo(request, kind, repo_id, write=True)
        objects = []
        for wanted in request.json["objects"]:
            known = wanted["oid"] in self._objects
            actions = {} if known else {"actions": {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}"}}}
            objects.append({"oid": wanted["oid"], "size": wanted["size"], "authenticated": True, **actions})
        return json_reply({"transfer": "basic", "objects": objects})

    def _store_object(self, request: Request, oid: str) -> Reply:
        found = hashlib.sha256(request.body).hexdigest()
        if found != oid:
            raise Refusal(400, None, f"the uploaded bytes have sha256 {found}, announced was {oid}")
        self._objects[oid] = request.body
        return Reply()

    def _commit(self, request: Request, repo: Repo, branch: str) -> Reply:
        if request.has_flag("create_pr"):
            raise Refusal(400, None, "the test server has no pull requests")
        if branch not in repo.branches:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        operations = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        header = next(operation["value"] for operation in operations if operation["key"] == "header")
        if header.get("parentCommit") not in (None, repo.branches[branch]):
            raise Refusal(412, None, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commit_at(branch).files)
        for operation in operations:
            self._apply(operation["key"], operation["value"], files)
        commit = repo.add_commit(branch, files, header["summary"], header.get("description", ""))
        url = f"{self.url}/{url_prefix(repo.kind)}{repo.repo_id}/commit/{commit.oid}"
        return json_reply({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def _apply(self, key: str, value: Mapping[str, Any], files: dict[str, StoredFile]) -> None:
        match key:
            case "file":
                files[value["path"]] = StoredFile(base64.b64decode(value["content"]), lfs=False)
            case "lfsFile":
                if value["oid"] not in self._objects:
                    raise Refusal(400, None, f"{value['path']}: LFS object {value['oid']} was never uploaded")
                files[value["path"]] = StoredFile(self._objects[value["oid"]], lfs=True)
            case "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refusal(404, "EntryNotFound", f"A file with this name doesn't exist: {value['path']}")
            case "deletedFolder":
                prefix = value["path"].rstrip("/") + "/"
                for path in [path for path in files if path.startswith(prefix)]:
                    del files[path]

    def _resolve(self, request: Request, kind: str, repo_id: str, revision: str, path: str) -> Reply:
        commit = self._repo(request, kind, repo_id).commit_at(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise Refusal(404, "EntryNotFound", "Entry not found", headers)
        stored = commit.files[path]
        headers |= {"ETag": f'"{stored.etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if stored.lfs:
            headers |= {"X-Linked-ETag": f'"{stored.etag}"', "X-Linked-Size": str(stored.size)}
        wanted = request.headers.get("Range")
        if wanted is None:
            return Reply(200, stored.content, headers)
        start, stop = byte_range(wanted, stored.size)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{stored.size}"
        return Reply(206, stored.content[start:stop], headers)


def run_python(code: str, env: Mapping[str, str], cwd: Path | None = None, timeout: float = 120) -> str:
    """What `code` prints when a fresh interpreter runs it; its errors are shown if it fails.

    It starts in `cwd` (default: HF_HOME of `env`), so that nothing is imported from the checkout by chance.
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(env),
        cwd=cwd or env["HF_HOME"],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"the subprocess ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def git_blob_id(content: bytes) -> str:
    """The id that git gives to a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str, size: int) -> bool:
    """Whether the Hub would keep this file outside of git; empty files never are."""
    return size > 0 and (size > LFS_BYTES or path.endswith(LFS_SUFFIXES))


def byte_range(header: str, size: int) -> tuple[int, int]:
    """First byte and one past the last byte of a Range header with a single range."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or match.groups() == ("", ""):
        raise Refusal(416, None, f"cannot read the range {header!r}", {"Content-Range": f"bytes */{size}"})
    first, last = match.groups()
    if first == "":
        return max(0, size - int(last)), size
    start, stop = int(first), min(size, int(last) + 1) if last else size
    if start >= stop:
        raise Refusal(416, None, f"{header!r} is outside of {size} bytes", {"Content-Range": f"bytes */{size}"})
    return start, stop


def url_prefix(kind: str) -> str:
    """What stands before a repository's name in a web address."""
    return "" if kind == "models" else f"{kind}/"


def json_reply(content: Any, status: int = 200) -> Reply:
    """A reply with a JSON body."""
    return Reply(status, json.dumps(content).encode(), JSON_HEADERS)


def require_token(request: Request) -> None:
    """Nothing; refuse the request if it is anonymous."""
    if request.token is None:
        raise Refusal(401, None, "Invalid username or password.")


def repo_named_in(request: Request) -> tuple[str, str]:
    """Kind and id of the repository named by the body of a create or delete request."""
    owner = request.json.get("organization") or USER
    return f"{request.json.get('type') or 'model'}s", f"{owner}/{request.json['name']}"


def validate_card(request: Request) -> Reply:
    """The verdict on a card; only its front matter's presence is looked at."""
    has_metadata = request.json["content"].lstrip().startswith("---")
    warnings = [] if has_metadata else [{"message": "empty or missing yaml metadata in repo card"}]
    return json_reply({"errors": [], "warnings": warnings})


def repo_info(repo: Repo, revision: str, request: Request) -> Reply:
    """Description of a repository at one revision; sizes only when `blobs` asks for them, as on the Hub."""
    commit = repo.commit_at(revision)
    siblings: list[dict[str, Any]] = []
    for path, stored in sorted(commit.files.items()):
        sibling: dict[str, Any] = {"rfilename": path}
        if request.has_flag("blobs"):
            sibling |= {"size": stored.size, "blobId": stored.blob_id}
            if stored.lfs:
                pointer_size = len(stored.pointer)
                sibling["lfs"] = {"sha256": stored.sha256, "size": stored.size, "pointerSize": pointer_size}
        siblings.append(sibling)
    created = repo.commits[commit.parents[-1]] if commit.parents else commit
    return json_reply(
        {
            "id": repo.repo_id,
            "author": repo.repo_id.split("/")[0],
            "sha": commit.oid,
            "createdAt": created.date,
            "lastModified": commit.date,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }
    )


def list_refs(repo: Repo) -> Reply:
    """Branches and tags."""

    def entries(refs: Mapping[str, str], where: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{where}/{name}", "targetCommit": oid} for name, oid in refs.items()]

    branches, tags = entries(repo.branches, "heads"), entries(repo.tags, "tags")
    return json_reply({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


def list_commits(repo: Repo, revision: str) -> Reply:
    """The history of a revision, newest first."""
    commit = repo.commit_at(revision)
    history = (commit, *(repo.commits[oid] for oid in commit.parents))
    authors = [{"user": USER}]
    return json_reply(
        [{"id": c.oid, "title": c.title, "message": c.message, "date": c.date, "authors": authors} for c in history]
    )


def tree_entries(commit: Commit, expand: bool) -> dict[str, dict[str, Any]]:
    """Every file and folder of a commit as the Hub describes it, by path."""
    last = {"lastCommit": {"id": commit.oid, "title": commit.title, "date": commit.date}} if expand else {}
    entries: dict[str, dict[str, Any]] = {}
    for path, stored in sorted(commit.files.items()):
        for parent in reversed(PurePosixPath(path).parents[:-1]):
            folder = str(parent)
            inside = [(p, f.blob_id) for p, f in sorted(commit.files.items()) if p.startswith(f"{folder}/")]
            oid = hashlib.sha1(json.dumps(inside).encode()).hexdigest()
            entries[folder] = {"type": "directory", "path": folder, "oid": oid, "size": 0, **last}
        entries[path] = {"type": "file", "path": path, "oid": stored.blob_id, "size": stored.size, **last}
        if stored.lfs:
            pointer_size = len(stored.pointer)
            entries[path]["lfs"] = {"oid": stored.sha256, "size": stored.size, "pointerSize": pointer_size}
    return entries


def list_tree(commit: Commit, folder: str, request: Request) -> Reply:
    """The entries below a folder, all of them or one level."""
    entries = tree_entries(commit, request.has_flag("expand"))
    if folder and entries.get(folder, {}).get("type") != "directory":
        raise Refusal(404, "EntryNotFound", f"{folder} does not exist on {commit.oid}")
    prefix = f"{folder}/" if folder else ""
    below = [entry for path, entry in entries.items() if path.startswith(prefix)]
    if not request.has_flag("recursive"):
        below = [entry for entry in below if "/" not in entry["path"].removeprefix(prefix)]
    return json_reply(below)


def paths_info(commit: Commit, request: Request) -> Reply:
    """The entries of the paths asked for; those that do not exist are left out."""
    form = request.json if "json" in request.headers.get("Content-Type", "") else parse_qs(request.body.decode())
    expand = str(form.get("expand", "")).lower().strip("[]'") == "true"
    entries = tree_entries(commit, expand)
    wanted = [path.strip("/") for path in form.get("paths", [])]
    return json_reply([entries[path] for path in wanted if path in entries])


def preupload(commit: Commit, request: Request) -> Reply:
    """How each announced file is to be uploaded, and what the repository holds in its place."""
    answers = []
    for wanted in request.json["files"]:
        lfs = is_lfs(wanted["path"], wanted["size"])
        held = commit.files.get(wanted["path"])
        oid = held.etag if held and held.lfs == lfs else None
        mode = "lfs" if lfs else "regular"
        answers.append({"path": wanted["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return json_reply({"files": answers, "commitOid": commit.oid})


def create_tag(repo: Repo, revision: str, tag: str) -> Reply:
    """Confirmation of a new tag."""
    commit = repo.commit_at(revision)
    if tag in repo.tags:
        raise Refusal(409, None, f"Tag reference exists already: {tag}")
    repo.tags[tag] = commit.oid
    return json_reply({})


def create_branch(repo: Repo, branch: str, request: Request) -> Reply:
    """Confirmation of a new branch."""
    commit = repo.commit_at(request.json.get("startingPoint", "main"))
    if branch in repo.branches:
        raise Refusal(409, None, f"Reference already exists: {branch}")
    repo.branches[branch] = commit.oid
    return json_reply({})


class QuietServer(ThreadingHTTPServer):
    """One daemon thread per connection; a client that hangs up is not worth a traceback."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def handler_for(server: HubServer) -> type[BaseHTTPRequestHandler]:
    """The class that speaks HTTP for one server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open, as the Hub does
        disable_nagle_algorithm = True  # headers and body leave in two writes: without this each reply waits 40 ms

        def handle_any(self) -> None:
            # The body is always read: what is left of it would be taken for the next request.
            body = self.read_body()
            address = urlsplit(self.path)
            query = parse_qs(address.query)
            reply = server.answer(Request(self.command, address.path, query, self.headers, body))
            time.sleep(reply.delay_s)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body[: len(reply.body) - reply.missing])
            self.close_connection |= reply.missing > 0

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
