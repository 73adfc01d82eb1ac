"""The processes of one run, on one host or many: they start together, compare what must be alike, and fail together."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def start_processes(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Join a run of several processes before anything else asks for a device: as number `process`, from 0, of so many
    `processes`, at process 0's "ADDRESS:PORT"; or by "auto", where the environment of a cluster (Slurm, Open MPI,
    Kubernetes, a TPU pod) says everything. A ValueError where there is no cluster, or the others cannot be reached."""
    if jax.distributed.is_initialized():
        return
    spelled = (None, None, None) if coordinator == "auto" else (coordinator, processes, process)
    # Leave SIGTERM to our own handler: JAX's service would take it, and tell nobody.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(*spelled)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"this process cannot join the others by --coordinator {coordinator}: {str(error).splitlines()[0]}"
        ) from None


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def together(
    work: Callable[[], Any],
    sentence: str = "",
    kind: type[Exception] = ValueError,
    *,
    first_alone: bool = False,
    identity: Callable[[Any], Mapping[str, str]] | None = None,
) -> Any:
    """What `work` returns, once it has succeeded in every process; all must call it, and where one fails, all do.

    All raise an error of this `kind`, of the sentence and the first complaint in one line; without a sentence, a
    process that fails raises what `work` does, and the others the complaint alone. With `first_alone` the others do no
    work, and have None. `identity` says of a result what must be the same everywhere, by name.
    """
    result, error, complaint, same = None, None, None, dict[str, str]()
    try:
        result = work() if not first_alone or is_first() else None
        if identity is not None and jax.distributed.is_initialized():
            same = {**identity(result)}
    except Exception as caught:
        error, words = caught, str((sentence and getattr(caught, "strerror", None)) or caught).strip()
        complaint = (words or type(caught).__name__).splitlines()[0]
    complaint = agree(complaint, same)
    if error is not None and not sentence:
        raise error
    if complaint:
        raise kind(f"{sentence}: {complaint}" if sentence else complaint) from error
    return result


def agree(complaint: str | None, same: Mapping[str, str] | None = None) -> str | None:
    """The first complaint of any process, or what of `same` differs between them, or None; all must call it."""
    complaints, each = zip(*everybody([complaint, {**(same or {})}]), strict=True)
    if any(complaints):
        return next(filter(None, complaints))
    names = sorted(set().union(*each))
    differing = [name for name in names if any(own.get(name) != each[0].get(name) for own in each)]
    return f"all processes must be started alike, and they differ in {', '.join(differing)}" if differing else None


def least(number: int | None) -> int | None:
    """The smallest number of any process, None where none has one, in every process; all must call it."""
    return min((own for own in everybody(number) if own is not None), default=None)


def anywhere(holds: bool) -> bool:
    """Whether something holds in any process, in every process; all must call it."""
    if not jax.distributed.is_initialized():
        return holds
    return bool(np.any(multihost_utils.process_allgather(np.int32(holds))))  # once only, for every round asks


def as_first_says(value: Any) -> Any:
    """The value of the first process, of JSON's types, in every process; all must call it."""
    return everybody(value)[0]


def everybody(value: Any) -> list[Any]:
    """The value of every process, of JSON's types, in their order; all must call it."""
    # Ask no device how many processes there are: a process that has not joined others may have no working device.
    if not jax.distributed.is_initialized():
        return [value]
    words = json.dumps(value).encode()
    longest = int(np.max(multihost_utils.process_allgather(np.int32(len(words)))))
    # What JSON may be followed by.
    said = multihost_utils.process_allgather(np.frombuffer(words.ljust(longest), np.uint8))
    return [json.loads(row.tobytes()) for row in np.asarray(said).reshape(-1, longest)]
