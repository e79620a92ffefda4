# SPDX-License-Identifier: Apache-2.0
"""The whole mesh on one machine: a private Redis and every process, started, watched and stopped together."""

from dovetail.mesh.mesh import Mesh, MeshOptions
from dovetail.mesh.parts import FREE_PORTS, Ports

__all__ = ["FREE_PORTS", "Mesh", "MeshOptions", "Ports"]
