"""Titles as text and nothing else, whatever stands in them.

A tokenizer finds its control tokens (`<|im_start|>`, `</s>`, `<think>`) in any text. A title comes
from strangers: there, they are letters like others. The template around it is ours, and keeps its
control tokens.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

PLACE = "{title}"


class TitleText:
    """One tokenizer, and the same one without control tokens."""

    def __init__(self, tokenizer: Any) -> None:
        """Control tokens are those called special, and those that were added to the vocabulary
        behind the model's own; runs of spaces, which some vocabularies add, are none.
        """
        self._tokenizer = tokenizer
        backend: Tokenizer = tokenizer.backend_tokenizer
        own = backend.get_vocab(with_added_tokens=False)
        control = {
            token.content
            for token in backend.get_added_tokens_decoder().values()
            if token.special or not (token.content in own or token.content.isspace())
        }
        longest_first = sorted(control, key=len, reverse=True)
        # no token: a pattern that nothing matches
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        content = json.loads(backend.to_str())
        for token in content["added_tokens"]:
            token["special"] |= token["content"] in control
        # A tokenizer of its own: the flag is state, and the model's tokenizer is others' too.
        self._plain: Tokenizer = Tokenizer.from_str(json.dumps(content))
        self._plain.encode_special_tokens = True
        self._plain.no_padding()
        self._plain.no_truncation()

    def template(self, text: str) -> list[int]:
        """Tokens of our own text, its control tokens among them."""
        return self._tokenizer([text], add_special_tokens=False)["input_ids"][0]

    def inside(self, template: str, titles: Sequence[str]) -> list[list[int]]:
        """Tokens of the template with each title in the place of `{title}`."""
        texts = [template.replace(PLACE, title) for title in titles]
        wanted = len(self._control.findall(template))
        if not wanted:
            return self._letters(texts)
        found: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        begin, _, end = template.partition(PLACE)
        for at, text in enumerate(texts):
            if len(self._control.findall(text)) != wanted:
                found[at] = self._between(begin, titles[at], end)
        return found

    def _between(self, begin: str, title: str, end: str) -> list[int]:
        """Up to the last control token before the title, and from the first after it, as ever;
        what lies between them is letters.
        """
        first = max((match.end() for match in self._control.finditer(begin)), default=0)
        after = self._control.search(end)
        last = len(end) if after is None else after.start()
        middle = self._letters([begin[first:] + title + end[:last]])[0]
        return [*self.template(begin[:first]), *middle, *self.template(end[last:])]

    def _letters(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._plain.encode_batch(list(texts), add_special_tokens=False)
        return [one.ids for one in encoded]
