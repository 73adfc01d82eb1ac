"""The processes of one run, on one host or many: they start together, compare what must be alike, and fail together."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

Result = TypeVar("Result")
# Bytes of a complaint, and of a digest, that processes tell each other, and how many digests they compare.
COMPLAINT, DIGEST, MOST_COMPARED = 1000, 8, 128


def start_processes(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Join a run of several processes, on one host or many, before anything else asks for a device.

    Args:
        coordinator: "ADDRESS:PORT" of process 0, the same for all; or "auto", where the environment of a cluster
            (Slurm, Open MPI, Kubernetes, a TPU pod) says everything.
        processes: how many there are.
        process: which of them this one is, from 0.

    Raises:
        ValueError: JAX knows no cluster of this environment, or the other processes cannot be reached.
    """
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


def in_every_process(
    work: Callable[[], Result], identity: Callable[[Result], Mapping[str, str]] | None = None
) -> Result:
    """What `work` returns, once it has succeeded in every process; all must call it.

    Args:
        work: done by each process by itself.
        identity: of a result, what must be the same everywhere: names and values.

    Raises:
        ValueError: the first complaint of any other process, or what the processes differ in; whatever `work` raises,
            in the process where it does. No process is left waiting.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as raised:
        error = raised
    compare = error is None and jax.distributed.is_initialized()
    same = identity(cast(Result, result)) if identity and compare else {}
    complaint = agree(None if error is None else str(error) or type(error).__name__, same)
    if error is not None:
        raise error
    if complaint:
        raise ValueError(complaint)
    return cast(Result, result)


def agree(complaint: str | None, same: Mapping[str, str] | None = None) -> str | None:
    """The first complaint of any process, or what of `same` differs between them, or None: in every process the same.

    All must call it. Names and values of `same` are compared by what they hash to.
    """
    # Ask no device how many processes there are: a process that has not joined others may have no working device.
    if not jax.distributed.is_initialized():
        return complaint
    said = np.zeros(COMPLAINT + DIGEST * MOST_COMPARED, np.uint8)
    words = (complaint or "").encode()[:COMPLAINT]
    said[: len(words)] = np.frombuffer(words, np.uint8)
    names = sorted(same or {})
    for place, name in enumerate(names[:MOST_COMPARED]):
        digest = hashlib.blake2b(f"{name}={(same or {})[name]}".encode(), digest_size=DIGEST).digest()
        said[COMPLAINT + place * DIGEST :][:DIGEST] = np.frombuffer(digest, np.uint8)
    everybody = np.asarray(multihost_utils.process_allgather(said)).reshape(-1, said.size)
    complaints = [row[row != 0].tobytes().decode(errors="ignore") for row in everybody[:, :COMPLAINT]]
    if any(complaints):
        return next(filter(None, complaints))
    different = (everybody != everybody[0])[:, COMPLAINT:].reshape(len(everybody), -1, DIGEST).any((0, 2))
    if not different.any():
        return None
    listed = ", ".join(name for name, differs in zip(names, different, strict=False) if differs)
    return f"all processes must be started alike, and they differ in {listed or 'what they compare'}"


def least(number: int | None) -> int | None:
    """The smallest number of any process, None where none has one, in every process; all must call it."""
    if not jax.distributed.is_initialized():
        return number
    # In units of a thousand, for JAX gathers whole numbers of 32 bits.
    thousands = np.int32(-1 if number is None else min(number // 1000, 2**31 - 1))
    said = np.asarray(multihost_utils.process_allgather(thousands)).reshape(-1)
    return 1000 * int(said[said >= 0].min()) if (said >= 0).any() else None


def anywhere(holds: bool) -> bool:
    """Whether something holds in any process, in every process; all must call it."""
    if not jax.distributed.is_initialized():
        return holds
    return bool(np.asarray(multihost_utils.process_allgather(np.int32(holds))).any())


def together(action: Callable[[], Any], kind: type[Exception], sentence: str, *, first_alone: bool = False) -> Any:
    """What `action` returns; all processes must call it, and where one of them fails, all do.

    Args:
        action: done in every process; what it raises is the reason, in its first line.
        kind: the kind of exception that all raise then.
        sentence: what it says before the reason.
        first_alone: only the first process acts; None is returned in the others.
    """
    result, error, complaint = None, None, None
    try:
        if is_first() or not first_alone:
            result = action()
    except Exception as caught:
        words = str((isinstance(caught, OSError) and caught.strerror) or caught).strip() or type(caught).__name__
        error, complaint = caught, words.splitlines()[0]
    if complaint := agree(complaint):
        raise kind(f"{sentence}: {complaint}") from error
    return result


def as_first_says(value: Any) -> Any:
    """The value of the first process, of JSON's types, in every process; all must call it."""
    if not jax.distributed.is_initialized():
        return value
    words = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(words.size)))
    return json.loads(multihost_utils.broadcast_one_to_all(np.resize(words, length)).tobytes())
