# SPDX-License-Identifier: Apache-2.0
"""The response cache: equal requests to a model that allows it are answered without running it."""
