"""The life of a request, step by step, over bytes and plain data: no framework here, no socket.

    identify -> read -> assign -> join -> label -> look for loops -> decide -> choose -> forward (reserve, send, settle, record)

Each step adds what it found to the `Call` or raises a `Refusal`. The last steps happen for each attempt, where an answer ends: in `forward`
and `relay`. What asks no model (`/v1/models`, `/v1/runs`, health) is in `listing`.
"""

import asyncio
import re
import time

import msgspec

from routing import listing
from routing.audit import Entry
from routing.batch import check_sorted
from routing.call import Call
from routing.choose import Target
from routing.detect import find
from routing.errors import BadRequest, NotFound, Refusal, RunStopped, Unauthorized, Unavailable, WrongMethod
from routing.forward import Reply, new_id
from routing.house import House, Plan
from routing.keys import Caller
from routing.labels import HEADER as DATA_CLASS
from routing.labels import check_class, class_of
from routing.loops import Finding, answer_text, find_loop
from routing.offers import risky_tools_in
from routing.oidc import is_token
from routing.policy import About, permitted
from routing.relay import Relay, stopped
from routing.request import ENDPOINTS, Asked, read_asked
from serving.catalog import nearest

_RUN = b"inhouse-run"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_NOT_PLAIN = re.compile(r"[^\x20-\x7e]")
_PATIENCE = 3  # repeats more that each raise by a person gives a run
_LOOKED_AT_HERE = 32 << 10  # bytes; larger bodies are searched in a thread, as the slowest take a second a MiB


class Request(msgspec.Struct, frozen=True, gc=False):
    """What came in, whole. Header names are lower case; of a header sent twice the last counts."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes
    at: float
    started: float

    @property
    def request_id(self) -> str:
        """The caller's `x-request-id` where it is one, else a new one."""
        given = self.headers.get(b"x-request-id", b"")
        return given.decode() if given and is_request_id(given) else new_id()


async def answer(house: House, request: Request) -> Reply:
    """Any request to its reply. Raises `Refusal`."""
    endpoint = ENDPOINTS.get(request.path)
    if endpoint is None:
        return await _other(house, request)
    if request.method != "POST":
        raise WrongMethod(f"{request.path} takes POST, not {request.method}")
    plan = house.plan
    caller = await identify(house, request)
    call = Call(endpoint=endpoint, request_id=request.request_id, caller=caller, headers=request.headers, at=request.at,
                started=request.started, policy_hash=plan.policy.hash, config_version=plan.version)  # fmt: skip
    try:
        call.asked = asked = _read(plan, call, request)
        assign(plan, call, asked)
        if _RUN in request.headers:
            await join(house, call, request.headers[_RUN])
        await classify(house, call, asked)
        await look_for_loops(house, call, asked)
        targets = choose(plan, call, asked)
        house.audit.append(_entry(call, "decision", "allow"))
        return await _forward(house, call, targets)
    except Refusal as refusal:
        house.audit.append(_entry(call, "refusal", refusal.code))  # before its row: no row is ever there without its entry
        if not call.was_recorded:
            house.ledger.append(call.refused(refusal.status, refusal.code))
        raise


async def identify(house: House, request: Request) -> Caller:
    """Whose request this is, by bearer token or Anthropic's `x-api-key`. Raises `Unauthorized`."""
    value = request.headers.get(b"authorization", b"")
    if value[:7].lower() != b"bearer ":
        return await _by_key(house, request.headers.get(b"x-api-key", b""))
    value = value[7:].strip()
    tokens = house.plan.tokens
    if tokens is not None and is_token(value):
        return await tokens.identify(value)
    return await _by_key(house, value)


async def _by_key(house: House, key: bytes) -> Caller:
    try:
        return house.keys.identify(key)
    except Unauthorized:
        if not key or not await house.keys.look_again():  # a key made this second
            raise
        return house.keys.identify(key)


def _read(plan: Plan, call: Call, request: Request) -> Asked:
    if request.headers.get(b"content-encoding", b"identity") != b"identity":
        raise BadRequest("compressed request bodies are not taken; send it without `Content-Encoding`")
    routes = plan.site.routes
    return read_asked(call.endpoint, request.body, json_depth=routes.limits.json_depth, media_domains=routes.media_domains)


def assign(plan: Plan, call: Call, asked: Asked) -> None:
    """The task: named by `task/<name>`, told by the classifier for `auto`, none where a model is named. Raises `NotFound`."""
    name, site = asked.model, plan.site
    if name == "auto":
        if not plan.classifier.may_serve:
            raise Unavailable("`auto` is off: the tasks can't be told apart well enough on held-out examples (see /readyz); "
                              "name the task as `task/<name>`", code="auto_unavailable")  # fmt: skip
        call.task, call.why = plan.classifier.task_of(asked.text())
    elif name.startswith(listing.TASK):
        task = name[len(listing.TASK) :]
        if task not in site.tasks:
            raise NotFound(f"no task `{task[:80]}`{nearest(task[:80], site.tasks)}; GET /v1/models lists them", param="model")
        call.task, call.why = task, "task named"
    elif site.serves(name):
        call.model, call.why = name, "model named"
    else:
        raise NotFound(f"no model `{name[:80]}`{nearest(name[:80], site.names())}; GET /v1/models lists them", param="model")


async def join(house: House, call: Call, given: bytes) -> None:
    """The run that the call belongs to. Raises `NotFound` for another's, `RunStopped` where it is over."""
    await house.runs.look()  # what another worker learnt of its data a moment ago must be known here
    run_id = given.decode("latin-1").strip()
    call.run = house.runs.known(run_id, call.caller.name) or await house.runs.find(run_id, call.caller.name)


async def classify(house: House, call: Call, asked: Asked) -> None:
    """The data class: declared, found, or the run's so far; it only rises. Raises `BadRequest` and `Denied`."""
    plan, caller, run = house.plan, call.caller, call.run
    body, form = asked.body, call.endpoint.form
    if len(body) <= _LOOKED_AT_HERE:
        found = find(body, form=form, others=plan.detectors)
    else:
        found = await asyncio.to_thread(find, body, form=form, others=plan.detectors)
    ladder = plan.policy.ladder
    before = "" if run is None else house.runs.class_of(run)
    call.data_class = class_of(ladder, declared=call.headers.get(DATA_CLASS, b""), default=caller.default_class, found=found, run=before)
    check_class(ladder, call.data_class, max_class=caller.max_class)
    if run is not None and call.data_class != before:
        label = call.data_class
        await house.runs.raise_class(run, lambda so_far: ladder.higher(label, so_far or label))  # known to all before a byte goes out


async def look_for_loops(house: House, call: Call, asked: Asked) -> None:
    """Stops a run whose agent goes in circles; without a run the agent is told, and where it goes on, refused. Raises `RunStopped`."""
    task = house.plan.site.tasks.get(call.task)
    finding = find_loop(asked.body, task.polling if task is not None else (), patience=_PATIENCE * call.run.raised if call.run else 0)
    if finding is None and call.run is not None and not call.run.raised:  # a person who let it go on knows what it spends
        finding = house.hasty.get(call.run.id)
    if finding is None:
        return
    house.metrics.found(finding, call.task)
    if finding.severity == "stop":
        await _stop(house, call, finding)
    call.warning = _words(finding)


def _words(finding: Finding) -> str:
    """A finding for headers, terminals and messages: tools are named as their caller named them, but for signs that could do harm."""
    return _NOT_PLAIN.sub("?", f"{finding.kind}: {finding.detail}")[:300]


async def _stop(house: House, call: Call, finding: Finding) -> None:
    reason = _words(finding)
    if call.run is None:
        raise RunStopped(f"the agent goes in circles ({reason}); change what it does, or declare the tool as `polling` for its task",
                         code="loop")  # fmt: skip
    await house.runs.stop_for(call.run, reason)
    raise stopped(call, reason, code="loop")


def choose(plan: Plan, call: Call, asked: Asked) -> list[Target]:
    """The targets in the order to try, and only those that policy, zone and dialect allow. Raises `Denied` and `NotFound`."""
    caller = call.caller
    if caller.is_batch:
        check_sorted(call.endpoint)
    call.about = About(caller.name, caller.team, caller.tasks, caller.models, call.task, call.data_class, call.endpoint.path,
                       asked.stream, risky_tools_in(asked.body, plan.policy.risky_tools))  # fmt: skip
    targets = plan.fleet.for_model(call.model) if call.model else plan.fleet.for_task(plan.site.tasks[call.task])
    allowed, verdict = permitted(plan.policy, call.about, targets)
    if not allowed:
        raise verdict.refusal()
    speaking = [target for target in allowed if call.endpoint.dialect in target.dialects]
    if not speaking:
        raise NotFound(f"`{allowed[0].model}` does not serve {call.endpoint.path}; ask a model or task that does "
                       "(GET /v1/models says what each is)", code="endpoint_not_supported")  # fmt: skip
    return speaking


async def _forward(house: House, call: Call, targets: list[Target]) -> Reply:
    """The reply of the first target that gives one. A run that is stopped ends it at once: then `RunStopped`."""
    if house.tracing is not None and b"traceparent" in call.headers:
        house.tracing.remember(call.request_id, call.headers[b"traceparent"])
    accounts = house.accounts_of(call.caller, call.task, call.run)
    if call.run is None:
        reply = await house.plan.door.forward(call, targets, accounts)
        task = house.plan.site.tasks.get(call.task)
        if task is not None and task.sample is not None and reply.status == 200 and isinstance(reply.body, bytes):
            house.samples.offer(task.sample, call, reply.head, reply.body, ladder=house.plan.policy.ladder, detectors=house.plan.detectors)
        return reply
    try:
        with house.underway.waiting(call):
            reply = await house.plan.door.forward(call, targets, accounts)
    except asyncio.CancelledError:
        if not call.is_stopped:
            raise
        raise stopped(call, "while this was under way") from None
    if isinstance(reply.body, Relay):
        house.underway.streaming(reply.body)
    elif said := answer_text(reply.body):
        await _note_answer(house, call, said)
    return reply


async def _note_answer(house: House, call: Call, said: bytes) -> None:
    """Stops the run of an agent that sends no history and gets the same answers again and again."""
    assert call.run is not None and call.asked is not None, "only answers of runs are noted"
    finding = house.answers.add(call.run.id, call.asked.body, said)
    if finding is not None:
        house.metrics.found(finding, call.task)
        if finding.severity == "stop":
            house.answers.forget(call.run.id)
            await house.runs.stop_for(call.run, _words(finding))


async def _other(house: House, request: Request) -> Reply:
    """The paths that ask no model."""
    if request.path in ("/healthz", "/readyz"):
        return listing.health(house, request.path)
    known = request.path in ("/v1/models", "/v1/runs") or request.path.startswith(("/v1/models/", "/v1/runs/"))
    if not known:
        raise NotFound(f"nothing is served at {request.path[:80]}; callers have {', '.join(sorted(ENDPOINTS)[:4])} and others under /v1",
                       code="not_found")  # fmt: skip
    caller = await identify(house, request)
    if request.path.startswith("/v1/runs"):
        return await listing.runs(house, caller, request.method, request.path, request.body)
    return listing.models(house, caller, request.method, request.path)


def _entry(call: Call, kind: str, outcome: str) -> Entry:
    """The audit log's line for a request."""
    return Entry(call.at, kind, call.caller.name, call.endpoint.path, outcome, call.request_id, call.run.id if call.run else "",  # type: ignore[arg-type]
                 call.caller.team, call.task, call.model, call.data_class, "", call.why, call.policy_hash, call.config_version)  # fmt: skip


def is_request_id(given: bytes) -> bool:
    """Whether a caller's `x-request-id` is one that may go into headers and the ledger."""
    return _REQUEST_ID.fullmatch(given) is not None


def now() -> tuple[float, float]:
    """Unix time and monotonic time, both in seconds."""
    return time.time(), time.monotonic()
