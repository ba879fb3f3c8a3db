"""How many replicas a deployment should have: pure, on what its gateways count, with the time given from outside.

    by requests   ceil((in flight + held) / inFlightPerReplica)
    by latency    n ready replicas and s = max(TTFT / target, ITL / target), 90th percentiles:
                  s > 1: ceil(n x min(s, 2));  s <= 1: ceil(n x s / 0.8), at most n;  never more than there are requests
    demand        the larger of the two, within minReplicas .. maxReplicas
    up            to the least demand of the last seconds, so that one odd moment starts nothing
    down          to the largest demand within scaleDownDelay, so that what goes has not been needed for long
    backlog       more requests than the ready replicas are meant to have, for a while: they came while too few served.
                  It asks for replicas until it is gone, and is no demand that lasts. What lasts is what arrived:
                  arrivals a second x time at a replica (Little's law) / inFlightPerReplica / 0.7, and one more than
                  were ready when it began, for these were too few, at most what the backlog asked for: that is kept
                  for scaleDownDelay, the rest for a minute
    foresight     while there are more requests than that, those count too that will have come when what is started now
                  serves, and that the ready replicas cannot serve meanwhile: (arrivals - departures) a second x how
                  long the latest start took, or what is left of it, at most a minute
    to zero       from one replica, after idleTimeout without a request; one request brings the first replica back

Replicas on their way are part of the current number, so they are credited before more are started. Latency adds
nothing while they start, nor until a whole window has been measured with them. In a backlog, from its second look on,
and for a minute after it (scaleDownDelay, where that is shorter) it says nothing: these requests are slow however many
replicas there are now.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import TypeVar

from quire_api.v1alpha1 import AutoscalingSpec
from quire_api.v1alpha1_values import duration_seconds

STEEPEST = 2.0
"""Latency alone at most doubles the replicas at a time."""
HEADROOM = 0.8
"""Fewer replicas must be expected to stay below this share of the latency targets."""
FULLER = 0.7
"""Time at a replica is mostly measured where fewer requests than the target share one: with as many it is longer."""
LONGEST_FORESIGHT_S = 60.0
"""For so long a gateway holds a request at most, unless it is told otherwise."""
BACKLOG_FADES_S = 60.0
"""How long a backlog that is gone shows in latencies, and what it needed is kept."""
RIVALRY_WRITES = 3
RIVALRY_WINDOW_S = 600.0
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Load:
    """What all gateways together say of one deployment, and how many replicas it has now."""

    in_flight: int = 0
    """Requests at replicas."""
    held: int = 0
    """Requests that wait for a replica."""
    ready: int = 0
    starting: int = 0
    """Replicas that exist and do not serve yet: pending, loading, crashed."""
    wanted: int | None = None
    """`spec.replicas` as it stands; None: ready + starting."""
    ttft_s: float | None = None
    """90th percentile over the latest window; None: not measured."""
    itl_s: float | None = None
    arrivals_per_s: float | None = None
    """Requests, over the latest seconds; None: not every gateway tells, and no backlog is told from demand."""
    service_s: float | None = None
    """Mean time at a replica of those that ended in the latest window, at the gateway where it is longest; None: none
    did."""
    idle_s: float = 0.0
    """Time since the last request ended, or since a gateway that has had none started."""
    admitted: int = 0
    """Requests that the gateways have had since they started."""
    is_complete: bool = True
    """Every gateway has told its part."""

    @property
    def current(self) -> int:
        return self.ready + self.starting if self.wanted is None else self.wanted

    @property
    def requests(self) -> int:
        return self.in_flight + self.held


@dataclass(frozen=True)
class ScalingLaw:
    """The settings, in seconds and counts."""

    in_flight_per_replica: int = 32
    min_replicas: int = 1
    max_replicas: int = 100
    ttft_s: float | None = None
    itl_s: float | None = None
    scale_up_delay_s: float = 3.0
    scale_down_delay_s: float = 300.0
    idle_timeout_s: float = 600.0
    latency_window_s: float = 30.0
    """Over which gateways measure latencies."""

    @classmethod
    def of(cls, spec: AutoscalingSpec) -> "ScalingLaw":
        """The law that a deployment asks for."""
        targets = spec.targets
        return cls(
            in_flight_per_replica=targets.in_flight_per_replica,
            min_replicas=spec.min_replicas,
            max_replicas=spec.max_replicas,
            ttft_s=duration_seconds(targets.ttft) if targets.ttft else None,
            itl_s=duration_seconds(targets.itl) if targets.itl else None,
            scale_down_delay_s=duration_seconds(spec.scale_down_delay),
            idle_timeout_s=duration_seconds(spec.idle_timeout),
        )


Past = tuple[tuple[float, int], ...]
"""Moments and the replicas that were in demand then, oldest first."""
Rates = tuple[tuple[float, float], ...]
"""Moments and requests a second."""
_Number = TypeVar("_Number", bound=float)


@dataclass(frozen=True)
class History:
    """What the law remembers; plain data, so that it can outlive a restart. Times as given by the caller."""

    lows: Past = ()
    """Demand of the last scale-up delay; of equals and larger ones before it, the latest alone."""
    highs: Past = ()
    """Demand of the last scale-down delay, that of backlogs left out; of equals and smaller ones before it, the latest
    alone."""
    peaks: Past = ()
    """Demand of the last minute, in the same way."""
    arrivals: Rates = ()
    """Requests a second in backlogs of the last scale-down delay, in the same way."""
    asked: Past = ()
    """What backlogs of the last scale-down delay asked for, in the same way."""
    outgrown: Past = ()
    """One more than were ready when backlogs of the last scale-down delay began, in the same way."""
    relieved_at: float | None = None
    """When the ready replicas had no more than they are meant to have last."""
    relieved_ready: int = 0
    """How many they were then."""
    raised_at: float | None = None
    """When replicas were asked for that are not ready yet, while none was on its way."""
    start_s: float | None = None
    """From the latest such moment until one of them was ready."""
    backlog_at: float | None = None
    """When there was a backlog last."""
    service_s: float | None = None
    """Mean time at a replica, measured when no backlog showed in it."""
    ready: int = 0
    ready_changed_at: float | None = None
    """When the number of ready replicas changed last."""
    admitted: int = 0
    """What gateways had been asked when they told last."""
    idle_since_at: float | None = None
    """When a request ended last; a gateway that starts anew is no request."""
    wrote: int | None = None
    """What the law decided last."""
    rival_writes: tuple[float, ...] = ()
    """When somebody else had changed the number since."""

    @classmethod
    def empty(cls) -> "History":
        return cls()


@dataclass(frozen=True)
class Decision:
    """The number of replicas from now on, why, and what to remember."""

    replicas: int
    reason: str
    history: History
    is_contested: bool = False
    """Somebody else keeps writing the number, so the law stands aside."""


def desired_replicas(seen: Load, law: ScalingLaw, past: History, now: float) -> Decision:
    """How many replicas should exist, and why.

    Starting replicas count as capacity for scale-up only (they will help), never for scale-down (they do not help yet).
    Incomplete data may add replicas and takes none away. `Decision.reason` is shown to the user as it is.
    """
    current = seen.current
    history = _observed(seen, law, past, now)
    if len(history.rival_writes) >= RIVALRY_WRITES:
        kept = _within(current, law)
        reason = (
            f"stays at {kept}: somebody else changed replicas {len(history.rival_writes)} times in "
            f"{RIVALRY_WINDOW_S / 60:g} minutes; remove that autoscaler, or spec.autoscaling"
        )
        return Decision(kept, reason, replace(history, wrote=kept), is_contested=True)

    demand, why = _demand(seen, law, history, now, is_slowed=_backlog_shows(past, law, now))
    # What was not seen, before the first look or behind a silent gateway, may have needed all that there is; and who
    # sets the number by hand has a reason.
    is_blind = not seen.is_complete or not past.highs or now in history.rival_writes
    remembered = max(demand, current) if is_blind else demand
    lows = _remember(history.lows, demand, now, law.scale_up_delay_s, is_low=True)
    history = _remembered(history, remembered, seen.arrivals_per_s, law, now, is_backlog=not is_blind)
    # At zero there is nobody to bridge the delay.
    least, most = lows[0][1] if current else demand, max(_lasting(history, law), history.peaks[0][1])

    replicas = _within(min(max(current, least), most), law)
    if replicas == 1 and _is_idle(seen, law, history, now):
        replicas, why = 0, f"no request for {_time(law.idle_timeout_s)}"
    elif replicas < current and history.asked[0][1] > replicas:
        why += ", and the backlog that needed more is gone"
    elif replicas < current:
        why += f", and no more were needed for {_time(law.scale_down_delay_s)}"
    if replicas == current:
        reason = _why_it_stays(seen, law, current, demand, why)
    else:
        reason = f"{current} -> {replicas}: {why}"
    raised_at = history.raised_at
    if replicas < current:
        raised_at = None
    elif replicas > current and not seen.starting and raised_at is None:
        raised_at = now
    return Decision(replicas, reason, replace(history, lows=lows, wrote=replicas, raised_at=raised_at))


def _observed(seen: Load, law: ScalingLaw, past: History, now: float) -> History:
    rivals = tuple(at for at in past.rival_writes if now - at < RIVALRY_WINDOW_S)
    # New bounds move the number too, and are nobody's writing.
    if past.wrote is not None and seen.wanted is not None and seen.wanted != _within(past.wrote, law):
        rivals += (now,)
    is_crowded = seen.requests > law.in_flight_per_replica * seen.ready
    relieved_at = past.relieved_at if is_crowded and past.relieved_at is not None else now
    has_backlog = seen.arrivals_per_s is not None and now - relieved_at >= law.scale_up_delay_s
    is_measured = seen.service_s is not None and not _backlog_shows(past, law, now)
    has_changed = seen.ready != past.ready or past.ready_changed_at is None
    idle_since = now - seen.idle_s
    if past.idle_since_at is not None and not seen.requests and seen.admitted <= past.admitted:
        idle_since = min(idle_since, past.idle_since_at)
    has_started = past.raised_at is not None and seen.ready > past.ready
    return replace(
        past,
        admitted=seen.admitted,
        idle_since_at=idle_since,
        rival_writes=rivals,
        ready=seen.ready,
        ready_changed_at=now if has_changed else past.ready_changed_at,
        relieved_at=relieved_at,
        relieved_ready=past.relieved_ready if is_crowded else seen.ready,
        raised_at=None if has_started else past.raised_at,
        start_s=now - past.raised_at if has_started and past.raised_at is not None else past.start_s,
        backlog_at=now if has_backlog else past.backlog_at,
        service_s=seen.service_s if is_measured else past.service_s,
    )


def _demand(seen: Load, law: ScalingLaw, history: History, now: float, *, is_slowed: bool) -> tuple[int, str]:
    """Replicas that the load asks for at this moment, within the bounds, and in words why."""
    coming = _coming(seen, law, history, now)
    replicas = ceil((seen.requests + coming) / law.in_flight_per_replica)
    more = f" and {coming} to come while replicas start" if coming else ""
    if seen.held and not seen.ready:
        why = f"{_requests(seen.held)} held for the first replica{more}, {law.in_flight_per_replica} to a replica"
    elif seen.requests:
        why = f"{_requests(seen.requests)} in flight or held{more}, {law.in_flight_per_replica} to a replica"
    else:
        why = "no request in flight"
    # Not at a backlog's first look: that may be the moment in which latency asks for more already.
    for_latency, why_latency = (0, "") if is_slowed else _demand_of_latency(seen, law, history, now)
    if for_latency > replicas:
        replicas, why = for_latency, why_latency
    # Without a request the last replica stays until idleTimeout, and none is started.
    bounded = _within(max(replicas, min(seen.current, 1)), law)
    if replicas > bounded:
        why += f"; maxReplicas is {law.max_replicas}"
    elif bounded > replicas and bounded == law.min_replicas:
        why += f"; minReplicas is {law.min_replicas}"
    return bounded, why


def _coming(seen: Load, law: ScalingLaw, history: History, now: float) -> int:
    """Requests that will have piled up when what is started now serves; 0 where that is not known, or nothing does."""
    is_crowded = seen.requests > law.in_flight_per_replica * seen.ready
    if not is_crowded or not seen.arrivals_per_s or history.start_s is None:
        return 0
    if history.raised_at is not None:
        left_s = min(history.start_s, LONGEST_FORESIGHT_S) - (now - history.raised_at)
    else:
        left_s = 0.0 if seen.starting else min(history.start_s, LONGEST_FORESIGHT_S)
    if not seen.ready:
        departures_per_s = 0.0
    elif history.service_s:
        departures_per_s = law.in_flight_per_replica * seen.ready / history.service_s
    else:
        return 0
    return int(max(seen.arrivals_per_s - departures_per_s, 0.0) * max(left_s, 0.0))


def _demand_of_latency(seen: Load, law: ScalingLaw, history: History, now: float) -> tuple[int, str]:
    has_target = law.ttft_s is not None or law.itl_s is not None
    if not has_target or not seen.ready or not seen.requests:
        return 0, ""
    measured = [
        (value / target, f"{name} {_time(value)} of {_time(target)}")
        for name, value, target in (("TTFT", seen.ttft_s, law.ttft_s), ("ITL", seen.itl_s, law.itl_s))
        if value is not None and target
    ]
    if not measured:
        return min(seen.ready, seen.requests), "no latency has been measured yet"
    ratio, why = max(measured)
    if ratio <= 1.0:
        replicas = min(ceil(seen.ready * ratio / HEADROOM - _ROUNDING), seen.ready)
    else:
        assert history.ready_changed_at is not None
        is_settled = not seen.starting and now - history.ready_changed_at >= law.latency_window_s
        replicas = ceil(seen.ready * min(ratio, STEEPEST)) if is_settled else seen.ready
    # A replica more than there are requests cannot make any of them faster.
    return min(replicas, seen.requests), why


def _backlog_shows(history: History, law: ScalingLaw, now: float) -> bool:
    return history.backlog_at is not None and now - history.backlog_at < _fade_s(law)


def _fade_s(law: ScalingLaw) -> float:
    """No longer than demand is remembered: in between nothing would speak for replicas that latency needs."""
    return min(BACKLOG_FADES_S, law.scale_down_delay_s)


def _remembered(
    history: History, demand: int, rate: float | None, law: ScalingLaw, now: float, *, is_backlog: bool
) -> History:
    """`history` with the demand of this moment: as one that lasts, or, of a backlog, with what arrives meanwhile."""
    is_crowded = history.relieved_at != now or _backlog_shows(history, law, now)
    is_backlog = is_backlog and rate is not None and is_crowded
    span = law.scale_down_delay_s
    return replace(
        history,
        peaks=_remember(history.peaks, demand, now, _fade_s(law), is_low=False),
        highs=_remember(history.highs, 0 if is_backlog else demand, now, span, is_low=False),
        arrivals=_remember(history.arrivals, rate or 0.0 if is_backlog else 0.0, now, span, is_low=False),
        asked=_remember(history.asked, demand if is_backlog else 0, now, span, is_low=False),
        outgrown=_remember(
            history.outgrown, history.relieved_ready + 1 if history.backlog_at == now else 0, now, span, is_low=False
        ),
    )


def _lasting(history: History, law: ScalingLaw) -> int:
    """The largest demand within scaleDownDelay that lasts. A backlog's is all of it until times have been measured."""
    of_backlogs = history.asked[0][1]
    if history.service_s is not None:
        needed = history.arrivals[0][1] * history.service_s / law.in_flight_per_replica / FULLER
        of_backlogs = min(of_backlogs, max(ceil(needed - _ROUNDING), history.outgrown[0][1]))
    return max(history.highs[0][1], of_backlogs)


def _remember(
    past: tuple[tuple[float, _Number], ...], demand: _Number, now: float, span_s: float, *, is_low: bool
) -> tuple[tuple[float, _Number], ...]:
    """`past` and the newest demand, without what is older than `span_s` or can never be the extreme again."""
    kept = [(at, was) for at, was in past if now - at <= span_s and (was < demand if is_low else was > demand)]
    return (*kept, (now, demand))


def _is_idle(seen: Load, law: ScalingLaw, history: History, now: float) -> bool:
    """Whether the last replica may go. One that never served may still be loading for somebody."""
    if law.min_replicas > 0 or seen.requests or not seen.is_complete or not seen.ready:
        return False
    assert history.ready_changed_at is not None
    assert history.idle_since_at is not None
    return now - max(history.idle_since_at, history.ready_changed_at) >= law.idle_timeout_s


def _why_it_stays(seen: Load, law: ScalingLaw, current: int, demand: int, why: str) -> str:
    if not seen.is_complete and demand <= current:
        return f"stays at {current}: not every gateway tells its load, so nothing is taken away"
    if demand < current:
        return f"stays at {current}: {demand} would do now ({why}); fewer follow after {_time(law.scale_down_delay_s)}"
    if demand > current:
        return f"stays at {current}: {demand} are in demand ({why}); more follow after {_time(law.scale_up_delay_s)}"
    if current == 0:
        return "stays at 0: no request"
    starting = f"; {seen.starting} on the way" if seen.starting else ""
    return f"stays at {current}: {why}{starting}"


def _within(replicas: int, law: ScalingLaw) -> int:
    return min(max(replicas, law.min_replicas), law.max_replicas)


def _requests(count: int) -> str:
    return f"{count} request" if count == 1 else f"{count} requests"


def _time(seconds: float) -> str:
    if seconds < 1.0:
        return f"{seconds * 1000:.3g}ms"
    minutes, rest = divmod(seconds, 60.0)
    if minutes and not rest:
        return f"{minutes:g}m"
    return f"{seconds:.3g}s"
