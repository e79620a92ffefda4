# SPDX-License-Identifier: Apache-2.0
"""`dovetail demo`: a whole mesh on this machine, every process real, and what it promises put to the test."""

from dovetail.cli.demo.command import demo

__all__ = ["demo"]
