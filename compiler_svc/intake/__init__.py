# SPDX-License-Identifier: Apache-2.0
"""Intake: from a pushed file to a model and samples that everything else may trust; runs in the child process."""
