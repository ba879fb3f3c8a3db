"""The same codes for `quire up`, as far as they have a meaning there."""

from pathlib import Path

from quire.chat import ServerRefused, ServerUnreachable
from quire.cluster.status import condition
from quire.doctor.findings import Finding, error, ok, skipped, warning
from quire.gateway_pages import GatewayPages
from quire.up.state import read_status
from quire_api import wire


def look_local(state_dir: Path | None) -> list[Finding]:
    """
    Raises:
        NoState: nothing has been started.
    """
    document, is_alive = read_status(state_dir)
    about = document.get("quire", {})
    start = f"quire up {about.get('file', 'FILE.yaml')}"
    if not is_alive:
        return [error("QD001", "`quire up` is not running", start)]
    url = str(about.get("url", "")).removesuffix("/v1")
    findings = [ok("QD001", f"`quire up` runs (process {about.get('pid')})"), *_gateway(url)]
    for item in document.get("items", []):
        name, ready = item["metadata"]["name"], condition(item, "Ready")
        if ready.get("status") == "True":
            findings.append(ok("QD012", f"Ready: {ready.get('message', '')}", name))
        else:
            message = f"not Ready, {ready.get('reason', 'New')}: {ready.get('message', '')}"
            findings.append(warning("QD012", message, f"quire logs {name}", name))
    return findings


def _gateway(url: str) -> list[Finding]:
    pages = GatewayPages(url)
    try:
        report = pages.ask(wire.GatewayReport, "/internal/v1/replicas")
    except ServerUnreachable as trouble:
        return [error("QD005", str(trouble), "See the log gateway.log beside the status of `quire up`.")]
    except ServerRefused as trouble:
        return [ok("QD005", f"{url} answers"), skipped("QD010", str(trouble))]
    finally:
        pages.close()
    guessed = [entry for entry in report.replicas if entry.index_mode != "EXACT" and entry.is_routable]
    findings = [ok("QD005", f"{url} answers")]
    for entry in guessed:
        why = entry.index_problem or "no snapshot has come yet"
        fix = "See docs/runbooks/QuireIndexNotExact.md"
        findings.append(warning("QD010", f"its cache is known as {entry.index_mode}: {why}", fix, entry.replica))
    if not guessed:
        findings.append(ok("QD010", f"EXACT for all {len(report.replicas)} replicas"))
    return findings
