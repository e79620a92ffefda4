# SPDX-License-Identifier: Apache-2.0
"""Does what Dovetail promises hold on this machine? Builds, gates, measures, serves and refuses here, and reports."""

from dovetail.selftest.report import SelfTestReport, SubjectReport
from dovetail.selftest.run import SelfTest
from dovetail.selftest.subjects import SUBJECTS, Subject, chosen_subjects, what_is_missing

__all__ = [
    "SUBJECTS",
    "SelfTest",
    "SelfTestReport",
    "Subject",
    "SubjectReport",
    "chosen_subjects",
    "what_is_missing",
]
