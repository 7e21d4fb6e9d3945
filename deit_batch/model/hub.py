"""Models on the Hugging Face Hub: one commit of one, in the cache, and whether the Hub answers at all."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from deit_batch.errors import CheckpointAccessError, CheckpointError
from deit_batch.system.progress import is_watched

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_TIMEOUT = 5.0  # seconds; without a bound, a machine without network would wait for a minute


def snapshot(name: str, revision: str | None, patterns: list[str], fetch: bool) -> Path:
    """The folder of one commit in the Hub's cache; its name is the commit. Without `fetch` the Hub is not asked.

    Raises CheckpointAccessError if it can't be had now, CheckpointError if there is none (or, of a name without an
    owner, none here: no image classifier on the Hub has such a name, a folder that has gone does)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    problem = why_not_the_hub(name, revision) if fetch else "it is not asked"
    if not is_watched():
        disable_progress_bars()
    try:
        # By the revision as given, not by its commit: the cache remembers which commit a revision meant, for the
        # day when the Hub is out of reach.
        folder = snapshot_download(
            name, revision=revision, allow_patterns=patterns, local_files_only=problem is not None
        )
        return Path(folder)
    except LocalEntryNotFoundError:
        if "/" not in name:
            raise CheckpointError(
                f"no folder {name} is here, and no model on the Hub has a name without an owner: OWNER/NAME; check the "
                "path and the working folder"
            ) from None
        raise CheckpointAccessError(
            f"no folder {name} is here; the model {name} is not on this machine and the Hub can't be reached "
            f"({problem}); where there is a network, fetch it with 'deit-batch pull {name} --out DIR', and copy DIR "
            "here as --model DIR (or the cache, HF_HOME); to try the tool without any download use --model demo"
        ) from None
    except Exception as error:  # the client raises whatever the network, its HTTP library and the disk raise
        raise CheckpointAccessError(f"{name} can't be fetched from the Hub: {error}") from error


def why_not_the_hub(name: str, revision: str | None) -> str | None:
    """Why the Hub can't be asked for the model, or None if it answers. Raises CheckpointError if it answers no.

    Asked in a thread, because looking up a host's name has no time limit of its own."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if revision and _COMMIT.fullmatch(revision):
        from huggingface_hub import try_to_load_from_cache

        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return "not asked: the commit is cached"
    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT)
            answer.append(None)
        except Exception as error:  # handed to the caller, in its own thread
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(1.5 * _HUB_TIMEOUT)
    match answer:
        case [None]:
            return None
        case [RevisionNotFoundError()]:
            raise CheckpointError(f"{name} has no revision {revision} on the Hub")
        case [RepositoryNotFoundError()]:
            raise CheckpointError(
                f"there is no folder {name} here and no such model on the Hub, or it is private (then set HF_TOKEN)"
            )
        case [HfHubHTTPError() as error] if _is_final(error.response.status_code):
            raise CheckpointError(f"the Hub refuses {name}: {error}")
        case [Exception() as error]:
            return str(error).splitlines()[0] if str(error) else type(error).__name__
        case _:
            return f"no answer within {1.5 * _HUB_TIMEOUT:g} s"


def _is_final(status: int) -> bool:
    """Whether another try would have the same answer of the Hub: not if it was too slow or had too many requests."""
    return status < 500 and status not in (408, 429)
