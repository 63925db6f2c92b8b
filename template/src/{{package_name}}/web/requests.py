"""What a client may ask for. What the protocol has and we do not do is refused by name, never ignored in silence."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from agents.items import TResponseInputItem
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from .problems import Problem

_THE_AGENT = "The agent decides that, in the program of this service."
FIXED: dict[str, tuple[list[Any], str]] = {
    "background": ([False], "A response is made while its client waits."),
    "context_management": ([[]], "The service decides what the model sees of a conversation."),
    "include": ([[]], "Responses contain what is stored, and nothing else."),
    "instructions": ([], _THE_AGENT),
    "max_output_tokens": ([], _THE_AGENT),
    "max_tool_calls": ([], _THE_AGENT),
    "moderation": ([], _THE_AGENT),
    "parallel_tool_calls": ([True], _THE_AGENT),
    "prompt": ([], _THE_AGENT),
    "prompt_cache_key": ([], _THE_AGENT),
    "prompt_cache_options": ([], _THE_AGENT),
    "prompt_cache_retention": ([], _THE_AGENT),
    "reasoning": ([], _THE_AGENT),
    "safety_identifier": ([], "Who is speaking is known from the request's token."),
    "service_tier": (["auto", "default"], _THE_AGENT),
    "store": ([True], "All conversations are stored; delete what is not to stay."),
    "stream_options": ([{}, {"include_obfuscation": False}], "Events are sent as they are."),
    "temperature": ([], _THE_AGENT),
    "text": ([{}, {"format": {"type": "text"}}], _THE_AGENT),
    "tool_choice": (["auto"], _THE_AGENT),
    "tools": ([[]], "Tools are those of the agent; a client that could add some would run them."),
    "top_logprobs": ([0], _THE_AGENT),
    "top_p": ([], _THE_AGENT),
    "truncation": (["disabled"], "The service decides what the model sees of a conversation."),
    "user": ([], "Who is speaking is known from the request's token."),
}
"""Fields of the protocol: which values we take since they change nothing, and why no other."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class InputText(_Body):
    type: Literal["input_text"]
    text: str


class InputImage(_Body):
    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["auto", "low", "high", "original"] = "auto"


class InputFile(_Body):
    type: Literal["input_file"]
    file_id: str | None = None
    file_url: str | None = None
    file_data: str | None = None
    filename: str | None = None


Part = Annotated[InputText | InputImage | InputFile, Field(discriminator="type")]


class UserMessage(_Body):
    """What the user says. Other roles are refused: who may write as the system or the assistant commands the agent."""

    type: Literal["message"] = "message"
    role: Literal["user"]
    content: str | list[Part]
    id: str | None = None
    status: str | None = None


class ApprovalAnswer(_Body):
    """The decision about one tool call."""

    type: Literal["mcp_approval_response"]
    approval_request_id: str
    approve: bool
    id: str | None = None
    reason: str | None = None


class ConversationRef(_Body):
    id: str


Metadata = Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)]


class CreateResponse(_Body):
    """One turn."""

    input: str | list[UserMessage | ApprovalAnswer]
    conversation: str | ConversationRef | None = None
    previous_response_id: str | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
    model: str | None = None

    @property
    def session_id(self) -> str | None:
        return self.conversation.id if isinstance(self.conversation, ConversationRef) else self.conversation

    def decisions(self) -> dict[str, bool] | None:
        """Which requests are approved or not; None if the input is a message.

        Raises:
            Problem: It is both.
        """
        answers = [item for item in self.input if isinstance(item, ApprovalAnswer)]
        if not answers:
            return None
        if len(answers) != len(self.input):
            raise Problem(400, "Decide first, then send the message: not both in one request.", param="input")
        return {item.approval_request_id: item.approve for item in answers}

    def message(self) -> str | list[TResponseInputItem]:
        """What the user says.

        Raises:
            Problem: Nothing.
        """
        if isinstance(self.input, str):
            messages: list[Any] = [{"role": "user", "content": self.input}] if self.input.strip() else []
        else:
            messages = [
                {"role": "user", **item.model_dump(include={"content"}, exclude_none=True)}
                for item in self.input
                if isinstance(item, UserMessage)
            ]
        if not messages:
            raise Problem(400, "Say something: the input is empty.", param="input")
        return self.input if isinstance(self.input, str) else _ITEMS.validate_python(messages)


_ITEMS: TypeAdapter[list[Any]] = TypeAdapter(list[Any])


class ChangeConversation(_Body):
    """New title, new metadata; what is left out stays."""

    title: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    metadata: Metadata | None = None


class NewConversation(_Body):
    metadata: Metadata | None = None


class Fork(_Body):
    before_item: str | None = None
    """The id of a message of the user: the copy holds what came before it."""


def checked(body: Any, model_name: str) -> dict[str, Any]:
    """The body without fields that say what is so anyway.

    Raises:
        Problem: It asks for something that this service does not do, which is named.
    """
    if not isinstance(body, dict):
        raise Problem(400, "The body is not a JSON object.")
    fields = {name: value for name, value in body.items() if value is not None}
    for name, (same, why) in FIXED.items():
        if name in fields and fields.pop(name) not in same:
            raise Problem(400, f"`{name}` is not supported. {why}", param=name, code="unsupported_parameter")
    if fields.get("model", model_name) != model_name:
        raise Problem(404, f"There is one model here: {model_name!r}.", param="model", code="model_not_found")
    return fields
