# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol over the serving core: what a message means here, and which text an error has."""
