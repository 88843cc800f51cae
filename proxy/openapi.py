"""What Joulegate serves of OpenAI's API and beside it, as OpenAPI 3.1 says it. Pure.

``python -m proxy.openapi > docs/openapi.json`` (part of ``make docs``). schemathesis makes requests
from it: ``python -m benchmarks.openapi_fuzz``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from estimators.text import TASKS

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
TOKENS: Schema = {"type": "integer", "minimum": 1, "maximum": 4096}
TEMPERATURE: Schema = {"type": "number", "minimum": 0, "maximum": 2}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
MODEL: Schema = {"$ref": "#/components/schemas/Model"}


def thing(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties}


def many(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def either(*options: Schema) -> Schema:
    return {"anyOf": list(options)}


_PART = either(
    thing(["type", "text"], type={"const": "text"}, text=TEXT),
    thing(
        ["type", "image_url"],
        type={"const": "image_url"},
        image_url=thing(["url"], url=TEXT, detail={"enum": ["auto", "low", "high"]}),
    ),
)
_CONTENT = either(TEXT, many(_PART))
CONTENT: Schema = {"$ref": "#/components/schemas/Content"}
TOOL = thing(
    ["type", "function"],
    type={"const": "function"},
    function=thing(["name"], name=TEXT, description=TEXT, parameters={"type": "object"}),
)
MESSAGE: Schema = {"$ref": "#/components/schemas/Message"}
_MESSAGE = either(
    thing(["role", "content"], role={"enum": ["system", "developer", "user"]}, content=CONTENT),
    thing(["role"], role={"const": "assistant"}, content=either(CONTENT, {"type": "null"})),
    thing(["role", "content", "tool_call_id"], role={"const": "tool"}, content=CONTENT,
          tool_call_id=TEXT),
)  # fmt: skip
STREAM_OPTIONS = thing([], include_usage={"type": "boolean"})
SAMPLING: dict[str, Schema] = {
    "temperature": TEMPERATURE,
    "top_p": SHARE,
    "seed": {"type": "integer"},
    "stop": either(TEXT, many(TEXT, maxItems=4), {"type": "null"}),
    "user": TEXT,
    "stream": {"type": "boolean"},
}
BODIES: dict[str, Schema] = {
    "/chat/completions": thing(
        ["model", "messages"],
        model=MODEL,
        messages=many(MESSAGE, minItems=1),
        max_tokens=TOKENS,
        max_completion_tokens=TOKENS,
        n={"type": "integer", "minimum": 1, "maximum": 4},
        presence_penalty={"type": "number", "minimum": -2, "maximum": 2},
        frequency_penalty={"type": "number", "minimum": -2, "maximum": 2},
        logprobs={"type": "boolean"},
        response_format=either(
            thing(["type"], type={"enum": ["text", "json_object"]}),
            thing(
                ["type", "json_schema"],
                type={"const": "json_schema"},
                json_schema={"type": "object"},
            ),
        ),
        tools=many(TOOL),
        tool_choice=either({"enum": ["none", "auto", "required"]}, {"type": "object"}),
        parallel_tool_calls={"type": "boolean"},
        stream_options=STREAM_OPTIONS,
        reasoning_effort={"enum": ["minimal", "low", "medium", "high"]},
        logit_bias={"type": "object", "additionalProperties": {"type": "number"}},
        **SAMPLING,
    ),
    "/completions": thing(
        ["model", "prompt"],
        model=MODEL,
        prompt=either(TEXT, many(TEXT), many({"type": "integer"}), many(many({"type": "integer"}))),
        max_tokens=TOKENS,
        echo={"type": "boolean"},
        suffix=TEXT,
        stream_options=STREAM_OPTIONS,
        **SAMPLING,
    ),
    "/embeddings": thing(
        ["model", "input"],
        model=MODEL,
        input=either(TEXT, many(TEXT), many({"type": "integer"}), many(many({"type": "integer"}))),
        dimensions={"type": "integer", "minimum": 1},
        encoding_format={"enum": ["float", "base64"]},
        user=TEXT,
    ),
    "/responses": thing(
        ["model", "input"],
        model=MODEL,
        input=either(TEXT, many(MESSAGE)),
        instructions=TEXT,
        max_output_tokens=TOKENS,
        previous_response_id=TEXT,
        tools=many({"type": "object"}),
        **SAMPLING,
    ),
    "/messages": thing(
        ["model", "messages", "max_tokens"],
        model=MODEL,
        messages=many(
            thing(["role", "content"], role={"enum": ["user", "assistant"]}, content=CONTENT)
        ),
        system=CONTENT,
        max_tokens=TOKENS,
        temperature=SHARE,
        stop_sequences=many(TEXT),
        stream={"type": "boolean"},
    ),
    "/rerank": thing(
        ["model", "query", "documents"],
        model=MODEL,
        query=TEXT,
        documents=many(either(TEXT, thing(["text"], text=TEXT))),
        top_n={"type": "integer", "minimum": 1},
    ),
    "/moderations": thing(["input"], model=MODEL, input=either(TEXT, many(TEXT))),
    "/images/generations": thing(
        ["prompt"], model=MODEL, prompt=TEXT, n=TOKENS, size={"enum": ["256x256", "1024x1024"]}
    ),
    "/audio/speech": thing(["model", "input", "voice"], model=MODEL, input=TEXT, voice=TEXT),
    "/route": thing(["model"], model=MODEL, messages=many(MESSAGE), max_tokens=TOKENS),
    "/batches": thing(
        ["input_file_id", "endpoint", "completion_window"],
        input_file_id=TEXT,
        endpoint={"enum": ["/v1/chat/completions", "/v1/embeddings"]},
        completion_window={"const": "24h"},
        metadata={"type": "object", "additionalProperties": TEXT},
    ),
    "/feedback": thing(["request_id", "score"], request_id=TEXT, score=SHARE),
}
FORM = {"type": "string", "format": "binary"}
FORMS: dict[str, Schema] = {
    "/files": thing(["file", "purpose"], file=FORM, purpose={"const": "batch"}),
    "/images/edits": thing(["image", "prompt"], model=MODEL, image=FORM, prompt=TEXT),
    "/images/variations": thing(["image"], model=MODEL, image=FORM),
    "/audio/transcriptions": thing(["file", "model"], model=MODEL, file=FORM, language=TEXT),
    "/audio/translations": thing(["file", "model"], model=MODEL, file=FORM, prompt=TEXT),
}
HEADERS: dict[str, Schema] = {
    "x-joulegate-policy": {"enum": ["thrifty", "balanced", "quality-first", "pinned"]},
    "x-joulegate-min-quality": SHARE,
    "x-joulegate-max-energy-j": {"type": "number", "minimum": 0},
    "x-joulegate-max-ttft-ms": {"type": "number", "minimum": 0},
    "x-joulegate-tags": {"type": "string", "pattern": "^[a-z,]{0,30}$"},
    "x-joulegate-task": {"enum": list(TASKS)},
    "x-joulegate-quality": {"type": "string", "pattern": "^[a-z]{1,9}=0\\.[0-9]{1,3}$"},
    "x-joulegate-usage": {"enum": ["true", "false"]},
    "x-session-id": {"type": "string", "pattern": "^[a-z0-9]{0,20}$"},
    "cache-control": {"enum": ["no-cache", "no-store", "max-age=60"]},
}
READS = {
    "/v1/models": "The models, with their backends",
    "/v1/models/{model}": "One model",
    "/v1/files": "A team's files",
    "/v1/files/{file_id}": "One file",
    "/v1/files/{file_id}/content": "A file's bytes",
    "/v1/batches": "A team's batches",
    "/v1/batches/{batch_id}": "One batch, as far as it is",
    "/v1/responses/{response_id}": "A response that its backend keeps, as it stands",
    "/v1/responses/{response_id}/input_items": "What that was made from",
    "/v1/usage/{request_id}": "A request's receipt: estimated, then metered",
    "/v1/savings": "What was avoided, by lever, with ranges",
    "/v1/judging": "What was learnt by judging answers",
    "/health": "It lives",
    "/health/live": "It lives",
    "/health/ready": "It can serve; what is degraded",
    "/metrics": "Prometheus metrics",
}
ERROR: Schema = thing(
    ["error"],
    error=thing(
        ["message", "type", "param", "code"],
        message={"type": "string", "minLength": 1},
        type=TEXT,
        param={"type": ["string", "null"]},
        code={"type": ["string", "integer", "null"]},
    ),
)


def document(models: Sequence[str] = ()) -> Schema:
    """The whole description; ``models``: the only names that requests made from it use."""
    told = "A group, `group@precision`, a backend's name, or `auto`."
    model: Schema = {"type": "string", "description": told}
    if models:
        model["enum"] = list(models)
    paths: dict[str, Schema] = {}
    for path, body in (BODIES | FORMS).items():
        sort = "multipart/form-data" if path in FORMS else "application/json"
        paths[f"/v1{path}"] = {
            "post": {
                "operationId": path[1:].replace("/", "_"),
                "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in HEADERS],
                "requestBody": {"required": True, "content": {sort: {"schema": body}}},
                "responses": _responses(),
            }
        }
    told = "Nothing fits the limits: a decision that chose nobody, with each backend's reason"
    paths["/v1/route"]["post"]["responses"]["422"] = {"description": told}
    for path, about in READS.items():
        names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        paths.setdefault(path, {})["get"] = {
            "operationId": "get_" + path.strip("/").replace("/", "_").strip("{}"),
            "summary": about,
            "parameters": [
                {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "schema": {**TEXT, "minLength": 1},
                }
                for name in names
            ],
            "responses": _responses(),
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Joulegate",
            "version": "1",
            "description": "OpenAI's API as Joulegate passes it on; fields that are not named here "
            "pass unchanged. Errors have OpenAI's shape, whoever made them.",
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "parameters": {
                name: {"name": name, "in": "header", "schema": schema}
                for name, schema in HEADERS.items()
            },
            "schemas": {
                "Model": model,
                "Content": _CONTENT,
                "Message": _MESSAGE,
                "Error": ERROR,
            },
        },
    }


def _responses() -> Schema:
    wrong = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "200": {"description": "The backend's answer, with `x-joulegate-*` headers"},
        "default": {"description": "An error in OpenAI's shape", "content": wrong},
    }


if __name__ == "__main__":
    print(json.dumps(document(), indent=1, ensure_ascii=False))
