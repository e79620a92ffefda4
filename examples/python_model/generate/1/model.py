# SPDX-License-Identifier: Apache-2.0
"""A toy that generates text: each turn makes the next token of every request that is under way, and streams it.

It has counted which word follows which two words in a text; a net would stand where the table stands.
"""

import numpy as np

from dovetail.errors import InvalidInputError

END, MOST = ".", 50


class Model:
    """What belongs to a request is in its `state`; it goes away with the request."""

    def load(self, context):
        """Once, when the process starts: the text beside this file becomes a table of counts."""
        lines = (context.folder / "text.txt").read_text(encoding="utf-8").splitlines()
        self.words = sorted({word for line in lines for word in line.split()})
        self.ids = {word: number for number, word in enumerate(self.words)}
        self.counts = np.zeros((len(self.words),) * 3, np.int32)
        for line in lines:
            ids = [self.ids[word] for word in line.split()]
            np.add.at(self.counts, (ids[:-2], ids[1:-1], ids[2:]), 1)

    def infer(self, requests):
        """One turn of these requests, which are others the next time: some end, newcomers join."""
        for request in requests:
            if request.turn == 0:
                self.begin(request)
        going = [request for request in requests if request.state is not None]
        context = np.array([request.state for request in going], np.int64).reshape(-1, 2)
        following = self.counts[context[:, 0], context[:, 1]].argmax(axis=1)  # one step for the whole batch
        for request, token in zip(going, following.tolist(), strict=True):
            request.state = (request.state[1], token)
            request.reply({"token": [[self.words[token]]]})
            most = request["most"].item() if "most" in request else MOST
            if self.words[token] != END and request.turn + 1 < most:
                request.again()

    def begin(self, request):
        """The last two words of the prompt are all that this model looks at."""
        words = request["prompt"].item().decode("utf-8").split()[-2:]
        unknown = [word for word in words if word not in self.ids]
        if unknown or len(words) < 2:  # its own error: the others in the batch go on
            reason = f"the word {unknown[0]!r} is unknown" if unknown else "a prompt has two words or more"
            request.fail(InvalidInputError(reason))
        else:
            request.state = tuple(self.ids[word] for word in words)
