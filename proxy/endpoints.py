"""What is served: OpenAI's POST routes, and what comes back on each."""

from __future__ import annotations


class Endpoint:
    """One of OpenAI's POST routes.

    ``answers`` is false where nothing is generated (embeddings); ``text`` where what is generated
    is no text, or nobody knows what it is: then nothing is estimated, and nothing chosen either.
    ``model`` is what OpenAI takes where a request names none. What is not ``listed`` is a path that
    only a backend knows.
    """

    def __init__(
        self,
        name: str,
        path: str,
        *,
        chat: bool = False,
        streams: bool = True,
        answers: bool = True,
        text: bool = True,
        model: str | None = None,
        listed: bool = True,
    ) -> None:
        self.name = name
        self.path = path
        self.chat = chat
        self.streams = streams
        self.answers = answers
        self.text = text
        self.model = model
        self.listed = listed
