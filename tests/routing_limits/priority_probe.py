"""Asks vLLM's own code what it reads of batch bodies (JSON by path on stdin), and whom its queue serves first; one JSON line on stdout.

A process of its own, as importing vLLM costs memory and prints.
"""

import json
import sys
from types import SimpleNamespace

from vllm.entrypoints.generate.base.serving import PRIORITY_HEADER, GenerateBaseServing
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue

from routing.batch import PRIORITY
from serving.engine import Spec, options

KINDS = {"/v1/chat/completions": ChatCompletionRequest, "/v1/completions": CompletionRequest, "/v1/responses": ResponsesRequest,
         "/v1/embeddings": EmbeddingCompletionRequest}  # fmt: skip


class Waiting:
    """A request as the queue compares it."""

    def __init__(self, name: str, priority: int, arrival_time: float) -> None:
        self.name, self.priority, self.arrival_time = name, priority, arrival_time

    def __lt__(self, other: "Waiting") -> bool:
        return (self.priority, self.arrival_time) < (other.priority, other.arrival_time)


policy = options(Spec(name="m", folder="m", engine={}, adapters={}, gpus=0, cpus=1, cache="", release=""))["scheduling_policy"]
queue = create_request_queue(SchedulingPolicy(policy))
for one in (Waiting("batch", PRIORITY, 0.0), Waiting("interactive", 0, 1.0), Waiting("late interactive", 0, 2.0)):
    queue.add_request(one)
sent = SimpleNamespace(headers={PRIORITY_HEADER: str(PRIORITY)})
print(json.dumps({"read": {path: KINDS[path](**body).priority for path, body in json.load(sys.stdin).items()},
                  "header": GenerateBaseServing._get_priority(SimpleNamespace(priority=0), sent), "policy": policy,
                  "order": [queue.pop_request().name for _ in range(3)]}))
