# SPDX-License-Identifier: Apache-2.0
"""A text letter by letter: any number of replies to one request, with a pause before each if that is asked for."""

import time


class Model:
    """Keeps nothing between requests, so it needs no load."""

    def infer(self, request):
        """A generator: each yield is a reply, which leaves before the next one is made."""
        pause_s = request["pause_ms"].item() / 1000 if "pause_ms" in request else 0
        for letter in request["text"].item().decode("utf-8"):
            time.sleep(pause_s)
            if request.cancelled:  # nobody waits any more: no reason to go on
                return
            yield {"letter": [letter]}
