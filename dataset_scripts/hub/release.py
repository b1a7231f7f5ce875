"""Bringing folders to repositories of the Hugging Face Hub, whole and verified: what data sets and models share.

What is missing goes up in one commit of huggingface_hub, so a repository holds all of a release or nothing of it. The
same call can be repeated: what the Hub has already, by size and hash, is not sent again. By hand is what the library
does not do: hashes are compared after the upload and with tags, tags come last and are never moved, the work of others
is refused, and messages say what to do.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, ModelCard, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session, validate_repo_id

from ..build.engines import Unfinished
from ..files import file_sha256

TRIES = 5
PAUSE_S = 2.0  # before the second try; each further pause is twice as long
# No further try is begun after so long. One try may take as long: the client itself asks six times for a listing.
LONGEST_S = 60.0
# An answer that begins no sooner does not come; writing a commit may take the Hub longer.
SILENCE_S, SILENCE_OF_COMMITS_S = 10.0, 300.0
CARD_NAME = "README.md"
PLACEHOLDERS = ("[More Information Needed]", "TAKEDOWN-CONTACT")
_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write to this repository."
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
# huggingface_hub 1 and 2 are built on different HTTP libraries, whose errors share this name.
_TransportError: type[Exception] = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
# A RuntimeError is how hf_xet says that a transfer failed.
_PASSING = (_TransportError, ConnectionError, TimeoutError, LocalEntryNotFoundError, RuntimeError)

T = TypeVar("T")


def check_repo_name(*repo_ids: str) -> None:
    """Raises ValueError for a name that the Hub would refuse, or would not load from."""
    for repo_id in repo_ids:
        if repo_id.count("/") != 1:
            raise ValueError(f"--repo is {repo_id!r}, expected ORG/NAME: the Hub loads no other names.")
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ValueError(f"--repo is {repo_id!r}: the Hub takes no repository of this name. {error}") from None


@dataclass(frozen=True)
class LocalFile:
    """A file to be released. It is hashed once."""

    path: Path

    @cached_property
    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size

    @cached_property
    def _sha256(self) -> str:
        return file_sha256(self.path)

    def is_same(self, remote: Any) -> bool:
        """Whether a `RepoFile` of the Hub has this content."""
        if remote.lfs is not None:  # outside git: LFS or Xet
            return bool(remote.lfs.size == self.size and remote.lfs.sha256 == self._sha256)
        content = b"blob %d\0" % self.size + self.path.read_bytes()
        return bool(remote.size == self.size and remote.blob_id == hashlib.sha1(content).hexdigest())


@dataclass(frozen=True)
class Snapshot:
    """What a repository holds at its latest commit, each file as the Hub's `RepoFile`."""

    repository: Repository
    commit: str
    is_private: bool
    files: dict[str, Any]

    def read(self, path: str) -> str:
        """The text of a small file."""
        repository = self.repository
        stored = repository.ask(repository.api.hf_hub_download, filename=path, revision=self.commit)
        return Path(stored).read_text(encoding="utf-8")

    def refuse_unowned(self, owner_file: str, cure: str) -> bool:
        """Whether the file is there that says whose repository this is.

        Raises:
            ValueError: It is not, and there are other files, which somebody else put there.
        """
        others = sorted(set(self.files) - {".gitattributes", CARD_NAME})
        if owner_file not in self.files and others:
            raise ValueError(
                f"{self.repository.repo_id} holds {len(others)} files, such as {others[0]}, but no {owner_file}: this "
                f"program did not make it. {cure}"
            )
        return owner_file in self.files


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub, there or not yet. The token is the one that huggingface_hub finds."""

    repo_id: str
    repo_type: str
    api: HfApi

    def ask(self, method: Callable[..., T], silence_s: float | None = None, **options: Any) -> T:
        """What a method of the API gives for this repository."""
        return reached(lambda: method(repo_id=self.repo_id, repo_type=self.repo_type, **options), silence_s)

    def latest(self) -> Snapshot | None:
        """What it holds, or None if there is none that this token may see."""
        try:
            info: Any = self.ask(self.api.repo_info, timeout=SILENCE_S)
        except RepositoryNotFoundError:
            return None
        return Snapshot(self, info.sha, bool(info.private), self.files(info.sha))

    def files(self, revision: str) -> dict[str, Any]:
        """The `RepoFile` of every path at a revision."""
        tree = self.ask(lambda **where: list(self.api.list_repo_tree(recursive=True, revision=revision, **where)))
        return {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}

    def tagged_files(self, tag: str) -> dict[str, Any] | None:
        """The files of a tag, or None if there is no such tag."""
        return self.files(tag) if tag in {ref.name for ref in self.ask(self.api.list_repo_refs).tags} else None


@dataclass(frozen=True)
class Upload:
    """Files, by path in the repository that is to hold them."""

    repository: Repository  # made if it does not exist
    files: Mapping[str, LocalFile]
    refuse_foreign: Callable[[Snapshot], object]  # raises if it holds somebody else's work
    find_stale: Callable[[Snapshot], Collection[str]]  # paths of it that are to be removed; those of `files` stay

    def changed(self, held: Mapping[str, Any]) -> list[str]:
        """Paths that a repository with these files lacks, or has with another content."""
        return [path for path, local in self.files.items() if path not in held or not local.is_same(held[path])]

    def stale(self, held: Snapshot) -> list[str]:
        """Paths to be removed."""
        return sorted(set(self.find_stale(held)) - set(self.files))


def publish_all(
    uploads: Sequence[Upload], private: bool = False, tag: str | None = None, dry_run: bool = False
) -> dict[str, str]:
    """The commit of each repository, by its name, that holds the files, verified by hash; none after a dry run.

    Every repository is looked at before one is changed, and all are whole before one is tagged. A dry run goes without
    the Hub where HF_HUB_OFFLINE is set or it does not answer.

    Raises:
        ValueError: One is to be private and exists as a public one, or the tag exists with other files.
    """
    silent = "the Hub was not asked" if dry_run and constants.HF_HUB_OFFLINE else ""
    try:
        pairs = [(upload, None if silent else upload.repository.latest()) for upload in uploads]
    except Unfinished:
        if not dry_run:
            raise
        silent, pairs = "the Hub did not answer", [(upload, None) for upload in uploads]
    for upload, held in pairs:
        if held is not None:
            _refuse_unfit(upload, held, private, tag)
    for upload, held in pairs:
        _show(upload, held, private, silent, with_files=dry_run)
    if dry_run:
        print("Nothing was changed: this was a dry run.")
        return {}
    commits = {upload.repository.repo_id: _send(upload, held, private) for upload, held in pairs}
    for upload, (repo_id, commit) in zip(uploads, commits.items(), strict=True):
        repository = upload.repository
        if tag is not None and repository.tagged_files(tag) is None:
            repository.ask(repository.api.create_tag, tag=tag, revision=commit)
        print(f"{repo_id}: {len(upload.files)} files, verified by hash, at commit {commit}.")
    return commits


def _refuse_unfit(upload: Upload, held: Snapshot, private: bool, tag: str | None) -> None:
    repository = upload.repository
    if private and not held.is_private:
        raise ValueError(
            f"{repository.repo_id} exists and is public; --private is for a new one. Change it on the Hub first."
        )
    upload.refuse_foreign(held)
    # Tags are cited, so they are never moved.
    tagged = None if tag is None else repository.tagged_files(tag)
    if tagged is not None and (wrong := upload.changed(tagged)):
        raise ValueError(
            f"{repository.repo_id} has a tag {tag} with other files ({wrong[0]} differs), and tags are not moved: "
            "choose another --revision_tag."
        )


def _show(upload: Upload, held: Snapshot | None, private: bool, silent: str, with_files: bool) -> None:
    """What would be done with each file, and how much that is."""
    files, repo_id = upload.files, upload.repository.repo_id
    changed = set(upload.changed(held.files if held else {}))
    if with_files:
        print(f"\n{repo_id}/")
        for path in sorted(files):
            print(f"  {'upload' if path in changed else 'there '} {files[path].size:>14,}  {path}")
        for path in upload.stale(held) if held else []:
            print(f"  remove {'':>14}  {path}")
    visible = "private" if (held.is_private if held else private) else "public"
    state = visible if held else silent or f"a new repository, {visible}"
    megabytes = sum(files[path].size for path in changed) / 1e6
    print(f"{repo_id} ({state}): {len(changed)} of {len(files)} files to upload, {megabytes:,.1f} MB")


def _send(upload: Upload, held: Snapshot | None, private: bool) -> str:
    """The id of a commit that holds the files, one more only where something is missing or stale."""
    r = upload.repository
    if held is None:
        r.ask(r.api.create_repo, private=private, exist_ok=True)
        held = r.latest()
        assert held is not None  # just made
    changed, stale = upload.changed(held.files), upload.stale(held)
    if named := changed or stale:
        message = f"Publish {named[0]}" + (f" and {len(named) - 1} more" if named[1:] else "")

        def commit(**where: Any) -> Any:  # what was sent before a failure is known to the Hub by its hash
            operations: list[Any] = [CommitOperationAdd(path, str(upload.files[path].path)) for path in changed]
            operations += [CommitOperationDelete(path) for path in stale]
            return r.api.create_commit(operations=operations, commit_message=message, **where)

        r.ask(commit, silence_s=SILENCE_OF_COMMITS_S)
        held = r.latest()
        assert held is not None
    if wrong := upload.changed(held.files):
        raise ValueError(
            f"{r.repo_id}: {len(wrong)} files differ from the local ones after the upload, the first is {wrong[0]}. "
            "Somebody else may write to the repository; run the same command again."
        )
    return held.commit


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """How long the client waits for a sign of the Hub; of its own accord it would wait for ever."""
    session = get_session()
    before, session.timeout = session.timeout, seconds
    try:
        yield
    finally:
        session.timeout = before


def reached(call: Callable[[], T], silence_s: float | None = None) -> T:
    """What a call to the Hub gives; trouble that may pass is waited for and told, the rest is said in a line.

    Raises:
        ValueError: The Hub refuses, or may not be asked.
        Unfinished: The Hub does not answer as it should; the same command goes on later.
        RepositoryNotFoundError, RevisionNotFoundError: There is no such thing.
    """
    trouble, tries, started = "", 0, time.monotonic()
    for attempt in range(TRIES):
        if attempt:
            if time.monotonic() - started > LONGEST_S:
                break
            pause = PAUSE_S * 2 ** (attempt - 1)
            print(f"The Hub does not answer as it should ({trouble}): again in {pause:.0f} s.", file=sys.stderr)
            time.sleep(pause)
        tries += 1
        try:
            with _patience(SILENCE_S if silence_s is None else silence_s):
                return call()
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except Exception as error:
            # The client wraps what befell a large file.
            cause = (error.__cause__ or error) if type(error) is RuntimeError else error
            if refusal := _refusal(cause):
                raise ValueError(refusal) from error
            if not isinstance(cause, _PASSING):
                raise
            status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
            trouble = f"{type(cause).__name__}: {_one_line(cause)}" if status is None else f"HTTP {status}"
    raise Unfinished(
        f"The Hub does not answer as it should ({trouble}), after {tries} tries in "
        f"{time.monotonic() - started:.0f} s. What was uploaded stays there: run the same command again later."
    )


def _refusal(error: BaseException) -> str:
    """What to tell somebody whose request was understood and declined; empty if it was not declined."""
    match error:
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set: unset it to reach the Hub."
        case HFValidationError():
            return str(error)
        case json.JSONDecodeError():
            return (
                f"What answers at {constants.ENDPOINT} is not the Hub: it sent something else than JSON, as the page "
                "of a proxy or a sign-in does. Look at HF_ENDPOINT and at the proxy settings."
            )
        case LocalTokenNotFoundError():
            return f"There is no token. {_LOG_IN}"
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"The Hub refuses (HTTP {error.response.status_code}). {_LOG_IN}"
        case HfHubHTTPError() if error.response.status_code not in _PASSING_STATUS:
            return f"The Hub refuses: {_one_line(error)}"
    return ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def card_problems(text: str, kind: type[DatasetCard] | type[ModelCard] = DatasetCard) -> list[str]:
    """Why a card is not fit to be published; empty if it is."""
    header = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    trouble = _header_trouble(header[1], text, kind) if header else "it has no YAML header between two lines of ---"
    lines = enumerate(text.splitlines(), start=1)
    marks = [f"line {number} still says {word}" for number, line in lines for word in PLACEHOLDERS if word in line]
    return [trouble, *marks] if trouble else marks


def _header_trouble(header: str, text: str, kind: type[DatasetCard] | type[ModelCard]) -> str:
    """How the header, read and written as the Hub's library does, would become another one; empty if it does not."""
    try:
        written, again = yaml.safe_load(header), yaml.safe_load(kind(text).data.to_yaml())
    except Exception as error:  # yaml's, and whatever the library makes of a value it does not expect
        return f"its YAML header cannot be read ({_one_line(error)})"
    if not isinstance(written, dict) or not written:
        return "its YAML header has no `key: value`"
    if again != written:
        names = [str(key) for key in {**written, **again} if written.get(key) != again.get(key)]
        return f"its YAML header does not come back as it was written: {', '.join(names)}"
    return ""
