# SPDX-License-Identifier: Apache-2.0
"""`dovetail report`: what is known of a model's artifacts, as HTML, Markdown and JSON.

`gather` makes one value (`data`) from what the SDK returns; `html`, `markdown` and `document` only write it down.
"""
