# SPDX-License-Identifier: Apache-2.0
"""How a model is served: the values, and reading them from Triton's form of a model configuration."""
