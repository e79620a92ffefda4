# SPDX-License-Identifier: Apache-2.0
"""Pipelines: graphs of models that answer as one model."""
