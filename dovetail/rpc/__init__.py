# SPDX-License-Identifier: Apache-2.0
"""gRPC plumbing shared by every service and client: status table, interceptor, server, channel, life cycle."""
