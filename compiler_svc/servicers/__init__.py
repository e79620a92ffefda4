# SPDX-License-Identifier: Apache-2.0
"""Thin gRPC servicers: one call into the logic each; errors are translated by the interceptor."""
