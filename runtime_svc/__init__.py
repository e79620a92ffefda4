# SPDX-License-Identifier: Apache-2.0
"""The serving core (repository, batching, engine instances, protocol, metrics) and the acquire layer that feeds it."""
