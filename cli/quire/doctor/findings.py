"""Findings and their codes. A code keeps its meaning for ever; a new check gets a new one."""

from dataclasses import dataclass
from enum import StrEnum

TITLES = {
    "QD001": "connection",
    "QD002": "CRD",
    "QD003": "operator",
    "QD004": "leader",
    "QD005": "gateway",
    "QD006": "rights",
    "QD007": "selectors",
    "QD008": "Secrets",
    "QD009": "endpoints",
    "QD010": "prefix index",
    "QD011": "network policies",
    "QD012": "LLMDeployment",
    "QD013": "versions",
}


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    SKIPPED = "skipped"
    """It could not be looked at; the message says why."""


@dataclass(frozen=True)
class Finding:
    code: str
    level: Level
    message: str
    subject: str = ""
    """The object that it is about, as NAMESPACE/NAME or KIND NAME."""
    fix: str = ""
    """What to do, for warnings and errors."""


def ok(code: str, message: str, subject: str = "") -> Finding:
    return Finding(code, Level.OK, message, subject)


def warning(code: str, message: str, fix: str, subject: str = "") -> Finding:
    return Finding(code, Level.WARNING, message, subject, fix)


def error(code: str, message: str, fix: str, subject: str = "") -> Finding:
    return Finding(code, Level.ERROR, message, subject, fix)


def skipped(code: str, message: str, subject: str = "") -> Finding:
    return Finding(code, Level.SKIPPED, message, subject)
