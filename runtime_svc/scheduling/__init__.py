# SPDX-License-Identifier: Apache-2.0
"""When a request runs, and with whom: queues, batches, engine instances, and the other ways to serve a model."""
