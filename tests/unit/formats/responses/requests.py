"""Requests of the Responses API with every field, item and tool that OpenAI documents."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"}

# Each is a whole item of its kind, in an order that makes sense.
ITEMS: list[Json] = [
    {"role": "developer", "content": "Be brief."},
    {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be kind."}]},
    {
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [
            {"type": "input_text", "text": "Look:", "prompt_cache_breakpoint": {"mode": "explicit"}},
            IMAGE,
            {"type": "input_image", "file_id": "file-1", "detail": "original"},
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"},
            {"type": "input_file", "file_url": "https://example.invalid/a.pdf", "detail": "low"},
            {"type": "input_file", "file_id": "file-2"},
        ],
    },
    {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "Hm."}],
        "content": [{"type": "reasoning_text", "text": "Hm."}],
        "encrypted_content": "gAAAA",
        "status": "completed",
    },
    {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "phase": "commentary",
        "content": [
            {
                "type": "output_text",
                "text": "Let me see.",
                "annotations": [
                    {
                        "type": "url_citation",
                        "url": "https://example.invalid",
                        "title": "t",
                        "start_index": 0,
                        "end_index": 1,
                    }
                ],
                "logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}],
            },
            {"type": "refusal", "refusal": "No."},
        ],
    },
    {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "find",
        "namespace": "crm",
        "arguments": "{}",
        "caller": {"type": "direct"},
        "status": "completed",
    },
    {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_2", "name": "count", "input": "one"},
    {
        "type": "function_call_output",
        "call_id": "call_1",
        "output": [{"type": "input_text", "text": "Found."}, IMAGE],
        "status": "completed",
    },
    {"type": "custom_tool_call_output", "call_id": "call_2", "output": "1"},
    {"role": "assistant", "content": "There.", "phase": "final_answer"},
    {"role": "user", "content": "Thanks."},
]  # fmt: skip

OTHERS: list[Json] = [
    {"type": "item_reference", "id": "msg_1"},
    {"type": "compaction", "encrypted_content": "gAAAA"},
    {"type": "compaction_trigger"},
    {"type": "additional_tools", "role": "developer", "tools": [{"type": "local_shell"}]},
    {
        "type": "file_search_call",
        "id": "fs_1",
        "status": "completed",
        "queries": ["q"],
        "results": [{"file_id": "file-1", "text": "x", "filename": "a", "score": 0.5, "attributes": {}}],
    },
    {
        "type": "computer_call",
        "id": "cu_1",
        "call_id": "call_3",
        "action": {"type": "screenshot"},
        "pending_safety_checks": [],
        "status": "completed",
    },
    {
        "type": "computer_call_output",
        "call_id": "call_3",
        "output": {"type": "computer_screenshot", "image_url": "data:image/png;base64,AAAA"},
    },
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}},
    {"type": "tool_search_call", "call_id": "call_4", "execution": "client", "arguments": {}},
    {"type": "tool_search_output", "call_id": "call_4", "execution": "client", "tools": []},
    {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": None},
    {
        "type": "code_interpreter_call",
        "id": "ci_1",
        "status": "completed",
        "container_id": "cntr_1",
        "code": "1",
        "outputs": [{"type": "logs", "logs": "1"}],
    },
    {
        "type": "local_shell_call",
        "id": "lsh_1",
        "call_id": "call_5",
        "action": {"type": "exec", "command": ["ls"], "env": {}},
        "status": "completed",
    },
    {"type": "local_shell_call_output", "id": "lsh_2", "call_id": "call_5", "output": "a"},
    {"type": "shell_call", "call_id": "call_6", "action": {"commands": ["ls"]}},
    {
        "type": "shell_call_output",
        "call_id": "call_6",
        "output": [{"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
    },
    {
        "type": "apply_patch_call",
        "call_id": "call_7",
        "status": "completed",
        "operation": {"type": "delete_file", "path": "a"},
    },
    {"type": "apply_patch_call_output", "call_id": "call_7", "status": "completed", "output": None},
    {
        "type": "mcp_list_tools",
        "id": "mcpl_1",
        "server_label": "s",
        "tools": [{"name": "t", "input_schema": {}}],
    },
    {"type": "mcp_approval_request", "id": "mcpr_1", "server_label": "s", "name": "t", "arguments": "{}"},
    {"type": "mcp_approval_response", "request_id": "r", "approval_request_id": "mcpr_1", "approve": True},
    {"type": "mcp_call", "id": "mcp_1", "server_label": "s", "name": "t", "arguments": "{}", "output": "x"},
    {"type": "program", "id": "p_1", "call_id": "call_8", "code": "1", "fingerprint": "f"},
    {"type": "program_output", "id": "p_2", "call_id": "call_8", "result": "1", "status": "completed"},
]
"""Items that only a provider of the Responses API takes."""

FUNCTION: Json = {
    "type": "function",
    "name": "find",
    "description": "Finds.",
    "parameters": {"type": "object", "properties": {}},
    "strict": False,
    "output_schema": None,
    "allowed_callers": ["direct"],
}
CUSTOM: Json = {
    "type": "custom",
    "name": "count",
    "description": "Counts.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /[0-9]+/"},
}
NAMESPACE: Json = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [FUNCTION, CUSTOM]}
TOOLS: list[Json] = [FUNCTION, CUSTOM, NAMESPACE, {"type": "custom", "name": "say", "format": {"type": "text"}}]
HOSTED_TOOLS: list[Json] = [
    {"type": "file_search", "vector_store_ids": ["vs_1"], "max_num_results": 3},
    {"type": "computer"},
    {"type": "computer_use_preview", "environment": "linux", "display_width": 1, "display_height": 1},
    {"type": "web_search", "filters": {"allowed_domains": ["example.invalid"]}, "search_context_size": "low"},
    {"type": "mcp", "server_label": "s", "server_url": "https://example.invalid", "require_approval": "never"},
    {"type": "code_interpreter", "container": {"type": "auto", "file_ids": []}},
    {"type": "programmatic_tool_calling"},
    {"type": "image_generation", "quality": "low", "partial_images": 1},
    {"type": "local_shell"},
    {"type": "shell"},
    {"type": "tool_search", "execution": "server"},
    {"type": "web_search_preview", "user_location": {"type": "approximate", "city": "Ulm"}},
    {"type": "apply_patch"},
]
CHOICES: list[Any] = [
    "none",
    "auto",
    "required",
    {"type": "function", "name": "find"},
    {"type": "custom", "name": "count"},
    {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "find"}, {"type": "custom", "name": "count"}],
    },
]
HOSTED_CHOICES: list[Json] = [
    {"type": "file_search"},
    {"type": "mcp", "server_label": "s", "name": "t"},
    {"type": "apply_patch"},
    {"type": "shell"},
    {"type": "allowed_tools", "mode": "required", "tools": [{"type": "mcp", "server_label": "s"}]},
]

WHOLE: Json = {
    "model": "demo",
    "input": ITEMS,
    "instructions": "Answer.",
    "previous_response_id": "resp_1",
    "prompt": None,
    "temperature": 0.5,
    "top_p": 0.5,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "max_output_tokens": 100,
    "top_logprobs": 2,
    "tools": TOOLS,
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "find"}]},
    "parallel_tool_calls": True,
    "max_tool_calls": 3,
    "text": {
        "format": {
            "type": "json_schema",
            "name": "s",
            "description": "d",
            "schema": {"type": "object"},
            "strict": True,
        },
        "verbosity": "low",
    },
    "reasoning": {
        "effort": "low",
        "summary": "auto",
        "generate_summary": "auto",
        "context": "auto",
        "mode": "standard",
    },
    "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
    "truncation": "auto",
    "context_management": [{"type": "compaction", "compact_threshold": 1000}],
    "moderation": {"model": "omni", "policy": {"input": {"mode": "score"}}},
    "stream": True,
    "stream_options": {"include_obfuscation": False},
    "store": True,
    "metadata": {"a": "b"},
    "service_tier": "auto",
    "user": "u",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"ttl": "30m", "mode": "explicit"},
    "background": False,
    "webhook": "https://example.invalid/hook",
    "timeout": 60,
    "fallbacks": ["other"],
    "strict_params": False,
    "thinking": {"type": "adaptive"},
}
"""A request with every parameter but those that exclude another."""
