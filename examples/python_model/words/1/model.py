# SPDX-License-Identifier: Apache-2.0
"""Text to token ids, as a step before a model that takes numbers: one row of 16 ids for each text, padded with 0."""

import numpy as np

from dovetail.errors import InvalidInputError

PAD, UNKNOWN, LENGTH = 0, 1, 16


class Model:
    """Looks words up in a file beside this one."""

    def load(self, context):
        """Once, when the process starts."""
        lines = (context.folder / context.parameters["vocabulary"]).read_text(encoding="utf-8").splitlines()
        self.ids = {word: number for number, word in enumerate(lines)}

    def infer(self, request):
        """For each batch: `text` has one row for each text, whoever sent it."""
        ids = np.full((request.rows, LENGTH), PAD, dtype=np.int64)
        for row, text in enumerate(request["text"][:, 0]):
            words = text.decode("utf-8").lower().split()
            if len(words) > LENGTH:
                raise InvalidInputError(f"a text has {len(words)} words; at most {LENGTH} are taken")
            ids[row, : len(words)] = [self.ids.get(word, UNKNOWN) for word in words]
        return {"ids": ids, "mask": (ids != PAD).astype(np.int64)}
