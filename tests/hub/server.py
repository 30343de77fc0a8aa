"""A small Hub on loopback: keeps what huggingface_hub's client pushes to it, in memory, and serves it again."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub import ModelCard

WRITE_TOKEN, READ_TOKEN, WRONG_TOKEN = "hf_write", "hf_read", "hf_wrong"
ROLES = {WRITE_TOKEN: "write", READ_TOKEN: "read"}
USER = "me"


@dataclass(frozen=True)
class Commit:
    """A revision: its name, a hash of its content and history, and all its files."""

    sha: str
    files: dict[str, bytes]


class Refusal(Exception):
    """An answer that is an error: the status, the code and the sentence that the client reads, and further headers."""

    def __init__(self, status: int, code: str, message: str, **headers: str):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, **headers}


class Hub(ThreadingHTTPServer):
    """The server and what it stores; `with Hub() as hub` runs it in a thread.

    `repos`: the commits of each repository, the oldest first; `objects`: large files by SHA256; `break_off`: "put" ends
    the connection in the middle of each upload of a large file, "commit" before each commit; `unknown`: requests that
    it has no answer for.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url, self.storage_url = (f"http://{host}:{self.server_port}" for host in ("127.0.0.1", "localhost"))
        self.repos: dict[str, list[Commit]] = {}
        self.objects: dict[str, bytes] = {}
        self.break_off: str | None = None
        self.unknown: list[str] = []
        self.lock = threading.Lock()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)

    def commits(self, repo: str) -> list[Commit]:
        if repo not in self.repos:
            raise Refusal(404, "RepoNotFound", "Repository not found")
        return self.repos[repo]

    def revision(self, repo: str, name: str | None) -> Commit:
        commits = self.commits(repo)
        for commit in commits:
            if commit.sha == name:
                return commit
        if name in (None, "main"):
            return commits[-1]
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {name}")

    def add(self, repo: str, files: dict[str, bytes]) -> Commit:
        commits = self.repos.setdefault(repo, [])
        old = commits[-1] if commits else Commit("", {})
        new = {**old.files, **files}
        digest = hashlib.sha1(old.sha.encode())
        for path in sorted(new):
            digest.update(path.encode() + hashlib.sha1(new[path]).digest())
        commits.append(Commit(digest.hexdigest(), new))
        return commits[-1]


def is_large(start: bytes) -> bool:
    """Whether a file of this beginning goes to the large-file storage: binary ones do, by git's rule."""
    return b"\0" in start[:512]


def object_id(content: bytes) -> str:
    """What the client compares with, in order not to send a file again: SHA256 of a large file, else git's hash."""
    if is_large(content):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers a request by the first method of `ROUTES` whose pattern fits, with the named groups as its arguments."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Hub

    def answer(self) -> None:
        url, length = unquote(urlsplit(self.path).path), int(self.headers.get("Content-Length", 0))
        if self.command == "PUT" and self.server.break_off == "put":
            self.rfile.read(length // 2)
            return self.hang_up()
        self.body = self.rfile.read(length)
        try:
            for method, pattern, route in ROUTES:
                found = re.fullmatch(pattern, url)
                if found and self.command in method.split():
                    return route(self, **found.groupdict())
            self.server.unknown.append(f"{self.command} {self.path}")
            raise Refusal(404, "NotFound", f"This Hub has no {url}")
        except Refusal as refusal:
            self.send_json({"error": str(refusal)}, refusal.status, **refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def log_message(self, *args) -> None:
        pass

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, value, status: int = 200, **headers: str) -> None:
        self.send(json.dumps(value).encode(), status, Content_Type="application/json", **headers)

    def hang_up(self) -> None:
        """Ends the connection without an answer."""
        self.close_connection = True

    def require(self, *roles: str) -> None:
        """Refuses a token that is unknown or may do none of `roles`; without a token, public repositories are read."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in ROLES:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        if roles and ROLES.get(token) not in roles:
            raise Refusal(403 if token else 401, "", f"You need the right to {roles[-1]}")

    def whoami(self) -> None:
        self.require("write", "read")
        self.send_json({"type": "user", "name": USER, "orgs": []})

    def callers(self) -> None:
        """Programs that the client looks for among those that may have started it: none."""
        self.send_json({"standardEnvVars": [], "harnesses": {}})

    def create(self) -> None:
        self.require("write")
        asked = json.loads(self.body)
        repo = f"{asked['organization'] or USER}/{asked['name']}"
        url = f"{self.server.url}/{repo}"
        with self.server.lock:
            if repo in self.server.repos:
                return self.send_json({"error": "You already created this model repo", "url": url}, 409)
            self.server.add(repo, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.send_json({"name": repo, "url": url})

    def validate_card(self) -> None:
        """Refuses metadata that is no YAML mapping, and results without their task, data set or metric."""
        try:
            ModelCard(json.loads(self.body)["content"], ignore_metadata_errors=False)
        except (ValueError, yaml.YAMLError) as error:
            return self.send_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        self.send_json({"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        self.require("write")
        old = self.server.revision(repo, revision).files
        modes = []
        for file in json.loads(self.body)["files"]:
            path, mode = file["path"], "lfs" if is_large(base64.b64decode(file["sample"])) else "regular"
            known = {"oid": object_id(old[path])} if path in old else {}
            modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        self.send_json({"files": modes})

    def batch(self, repo: str) -> None:
        self.require("write")
        self.server.commits(repo)
        objects = json.loads(self.body)["objects"]
        for asked in objects:
            if asked["oid"] not in self.server.objects:
                upload, verify = f"{self.server.storage_url}/storage/{asked['oid']}", f"{self.server.url}/verify"
                asked["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        self.send_json({"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "", "The content has another SHA256")
        self.server.objects[oid] = self.body
        self.send(b"")

    def verify(self) -> None:
        self.require("write")
        asked = json.loads(self.body)
        if len(self.server.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(404, "", "The object is not there in full")
        self.send(b"")

    def commit(self, repo: str, revision: str) -> None:
        self.require("write")
        if self.server.break_off == "commit":
            return self.hang_up()
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = {}
        for line in lines[1:]:
            path = line["value"]["path"]
            if line["key"] == "file":
                files[path] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile" and line["value"]["oid"] in self.server.objects:
                files[path] = self.server.objects[line["value"]["oid"]]
            else:
                raise Refusal(400, "", f"No {line['key']} {path} can be committed")
        with self.server.lock:
            self.server.revision(repo, revision)
            sha = self.server.add(repo, files).sha
        self.send_json({"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{repo}/commit/{sha}"})

    def info(self, repo: str, revision: str | None) -> None:
        self.require()
        commit = self.server.revision(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        self.send_json({"id": repo, "sha": commit.sha, "private": False, "tags": [], "siblings": siblings})

    def tree(self, repo: str, revision: str, folder: str | None) -> None:
        self.require()
        commit = self.server.revision(repo, revision)
        prefix = f"{folder}/" if folder else ""
        found = {path: content for path, content in commit.files.items() if path.startswith(prefix)}
        if not found:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist", X_Repo_Commit=commit.sha)
        self.send_json(
            [{"type": "file", "path": path, "size": len(found[path]), "oid": object_id(found[path])} for path in found]
        )

    def resolve(self, repo: str, revision: str, path: str) -> None:
        self.require()
        commit = self.server.revision(repo, revision)
        if path not in commit.files:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist", X_Repo_Commit=commit.sha)
        content = commit.files[path]
        oid = object_id(content)
        if not is_large(content):
            return self.send(content, ETag=f'"{oid}"', X_Repo_Commit=commit.sha)
        self.send(
            b"",
            302,
            Location=f"{self.server.storage_url}/storage/{oid}",
            X_Repo_Commit=commit.sha,
            X_Linked_ETag=f'"{oid}"',
            X_Linked_Size=str(len(content)),
        )

    def get(self, oid: str) -> None:
        if "Authorization" in self.headers:
            raise Refusal(400, "", "The token belongs to the Hub, not to its storage")
        self.send(self.server.objects[oid], ETag=f'"{oid}"')


REPO, REVISION = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("GET", "/api/agent-harnesses", Handler.callers),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_card),
    ("POST", f"/api/models/{REPO}/preupload/{REVISION}", Handler.preupload),
    ("POST", f"/api/models/{REPO}/commit/{REVISION}", Handler.commit),
    ("GET", f"/api/models/{REPO}(/revision/{REVISION})?", Handler.info),
    ("GET", f"/api/models/{REPO}/tree/{REVISION}(/(?P<folder>.+))?", Handler.tree),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/storage/(?P<oid>[0-9a-f]+)", Handler.put),
    ("GET", "/storage/(?P<oid>[0-9a-f]+)", Handler.get),
    ("POST", "/verify", Handler.verify),
    ("GET HEAD", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]
