// SPDX-License-Identifier: GPL-2.0-only

//! When to take a snapshot: on request, by the clock, or by what the writers do.
//!
//! A scheduled or requested snapshot has a T0 known in advance, which lets staging start late and copy once; the
//! rules fire when their condition is seen. Times are monotonic; the caller looks in with every tick.

use crate::fixed::div_ceil;

/// Nanoseconds of a millisecond.
const MS: u64 = 1_000_000;
/// The change rate is measured over at least this.
const RATE_WINDOW_NS: u64 = 1000 * MS;

/// When to take snapshots. Zero turns a rule off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TriggerConfig {
    /// Every so often.
    pub schedule_ms: u64,
    /// After so many operations.
    pub ops: u64,
    /// When so many blocks are dirty.
    pub dirty_blocks: u64,
    /// When so many blocks became dirty within a second.
    pub rate_blocks_per_s: u64,
    /// When there was no operation for so long, after some.
    pub idle_ms: u64,
    /// The rules and the schedule keep this distance from the last snapshot; a request does not.
    pub min_distance_ms: u64,
}

/// Why a snapshot is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It was asked for.
    Request,
    /// Its time came.
    Schedule,
    /// Enough operations.
    Ops,
    /// Enough dirty blocks.
    DirtyBlocks,
    /// Blocks become dirty fast.
    ChangeRate,
    /// The writers pause.
    Idle,
}

impl Reason {
    /// Returns its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Schedule => "schedule",
            Self::Ops => "ops",
            Self::DirtyBlocks => "dirty",
            Self::ChangeRate => "rate",
            Self::Idle => "idle",
        }
    }
}

/// A quantity as it was at a time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    time_ns: u64,
    value: u64,
}

/// Decides when to take a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Trigger {
    config: TriggerConfig,
    /// The last snapshot, `None` before the first.
    last_t0_ns: Option<u64>,
    next_schedule_ns: Option<u64>,
    request_ns: Option<u64>,
    /// Dirty blocks at the start of the rate window.
    rate: Sample,
    /// The operations seen last and since when it is they.
    activity: Sample,
}

impl Trigger {
    /// Starts the rules at `now_ns`: the first scheduled snapshot comes one interval later.
    pub fn new(config: TriggerConfig, now_ns: u64) -> Self {
        let start = Sample { time_ns: now_ns, value: 0 };
        let mut this = Self {
            config,
            last_t0_ns: None,
            next_schedule_ns: None,
            request_ns: None,
            rate: start,
            activity: start,
        };
        this.configure(config, now_ns);
        this
    }

    /// Changes the rules. The schedule starts anew only if its interval changes.
    pub fn configure(&mut self, config: TriggerConfig, now_ns: u64) {
        let same = self.config.schedule_ms == config.schedule_ms && self.next_schedule_ns.is_some();
        self.config = config;
        if config.schedule_ms == 0 {
            self.next_schedule_ns = None;
        } else if !same {
            self.next_schedule_ns = Some(now_ns.saturating_add(self.interval_ns()));
        }
        self.keep_distance();
    }

    /// Returns the rules.
    pub fn config(&self) -> &TriggerConfig {
        &self.config
    }

    fn interval_ns(&self) -> u64 {
        self.config.schedule_ms.saturating_mul(MS)
    }

    fn distance_end_ns(&self) -> u64 {
        self.last_t0_ns
            .map_or(0, |last| last.saturating_add(self.config.min_distance_ms.saturating_mul(MS)))
    }

    /// Moves the next scheduled instant along its grid until it is far enough from the last snapshot.
    fn keep_distance(&mut self) {
        self.advance_schedule(self.distance_end_ns());
    }

    fn advance_schedule(&mut self, to_ns: u64) {
        let interval = self.interval_ns();
        if let (Some(next), true) = (self.next_schedule_ns, interval != 0) {
            let steps = div_ceil(to_ns.saturating_sub(next), interval);
            self.next_schedule_ns = Some(next.saturating_add(steps.saturating_mul(interval)));
        }
    }

    /// Asks for a snapshot in `within_ns` from now; an earlier request stands.
    pub fn request(&mut self, now_ns: u64, within_ns: u64) {
        let at = now_ns.saturating_add(within_ns);
        self.request_ns = Some(self.request_ns.map_or(at, |earlier| earlier.min(at)));
    }

    /// Takes requests back; whether there was one.
    pub fn cancel_request(&mut self) -> bool {
        self.request_ns.take().is_some()
    }

    /// Returns the next T0 that is known in advance, `now_ns` if it is overdue.
    pub fn next_t0_ns(&self, now_ns: u64) -> Option<u64> {
        let next = match (self.request_ns, self.next_schedule_ns) {
            (Some(request), Some(schedule)) => Some(request.min(schedule)),
            (request, schedule) => request.or(schedule),
        };
        next.map(|at| at.max(now_ns))
    }

    /// Whether, and why, a snapshot is due; if so, it counts as taken at `now_ns`.
    ///
    /// `ops_since`: operations since the last snapshot; `dirty`: blocks they made dirty.
    pub fn fire(&mut self, now_ns: u64, ops_since: u64, dirty: u64) -> Option<Reason> {
        let rate = self.sample_rate(now_ns, dirty);
        let idle_ns = self.sample_activity(now_ns, ops_since);
        let reason = self.due(now_ns, ops_since, dirty, rate, idle_ns)?;
        self.note_snapshot(now_ns);
        Some(reason)
    }

    fn due(
        &self,
        now_ns: u64,
        ops_since: u64,
        dirty: u64,
        rate: u64,
        idle_ns: u64,
    ) -> Option<Reason> {
        let c = &self.config;
        let past = |at: Option<u64>| at.is_some_and(|at| at <= now_ns);
        let reached = |limit: u64, value: u64| limit != 0 && value >= limit;
        if past(self.request_ns) {
            return Some(Reason::Request);
        }
        if now_ns < self.distance_end_ns() {
            return None;
        }
        if past(self.next_schedule_ns) {
            Some(Reason::Schedule)
        } else if reached(c.ops, ops_since) {
            Some(Reason::Ops)
        } else if reached(c.dirty_blocks, dirty) {
            Some(Reason::DirtyBlocks)
        } else if reached(c.rate_blocks_per_s, rate) {
            Some(Reason::ChangeRate)
        } else if ops_since != 0 && reached(c.idle_ms.saturating_mul(MS), idle_ns) {
            Some(Reason::Idle)
        } else {
            None
        }
    }

    /// Returns the blocks that became dirty per second, 0 until a window is over.
    fn sample_rate(&mut self, now_ns: u64, dirty: u64) -> u64 {
        let elapsed_ns = now_ns.saturating_sub(self.rate.time_ns);
        if elapsed_ns < RATE_WINDOW_NS {
            return 0;
        }
        let new = dirty.saturating_sub(self.rate.value);
        self.rate = Sample { time_ns: now_ns, value: dirty };
        // elapsed_ns / MS is at least 1000 here.
        new.saturating_mul(1000).checked_div(elapsed_ns / MS).unwrap_or(0)
    }

    /// Returns for how long there was no operation.
    fn sample_activity(&mut self, now_ns: u64, ops_since: u64) -> u64 {
        if ops_since != self.activity.value {
            self.activity = Sample { time_ns: now_ns, value: ops_since };
        }
        now_ns.saturating_sub(self.activity.time_ns)
    }

    /// Notes a snapshot taken at `now_ns`, for whatever reason: requests are met, the schedule goes on.
    pub fn note_snapshot(&mut self, now_ns: u64) {
        self.last_t0_ns = Some(now_ns);
        self.request_ns = None;
        self.rate = Sample { time_ns: now_ns, value: 0 };
        self.activity = Sample { time_ns: now_ns, value: 0 };
        // A scheduled instant that has come is used up, however late it is; missed ones are not made up for.
        self.advance_schedule(now_ns.saturating_add(1));
        self.keep_distance();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1000 * MS;

    fn with(change: fn(&mut TriggerConfig)) -> Trigger {
        let mut config = TriggerConfig::default();
        change(&mut config);
        Trigger::new(config, 100 * S)
    }

    #[test]
    fn off_by_default() {
        let mut t = with(|_| ());
        assert_eq!(t.next_t0_ns(0), None);
        assert_eq!(t.fire(u64::MAX, u64::MAX, u64::MAX), None);
    }

    #[test]
    fn schedule_keeps_its_grid_and_skips_what_it_missed() {
        let mut t = with(|c| c.schedule_ms = 10_000);
        assert_eq!(t.next_t0_ns(100 * S), Some(110 * S));
        assert_eq!(t.fire(110 * S - 1, 5, 5), None);
        assert_eq!(t.fire(110 * S + 7, 5, 5), Some(Reason::Schedule));
        assert_eq!(t.next_t0_ns(111 * S), Some(120 * S));
        assert_eq!(t.next_t0_ns(125 * S), Some(125 * S));
        assert_eq!(t.fire(155 * S, 0, 0), Some(Reason::Schedule));
        assert_eq!(t.fire(156 * S, 0, 0), None);
        assert_eq!(t.next_t0_ns(156 * S), Some(160 * S));
        // Exactly on the grid.
        assert_eq!(t.fire(160 * S, 0, 0), Some(Reason::Schedule));
        assert_eq!(t.next_t0_ns(160 * S), Some(170 * S));
        t.configure(TriggerConfig { ops: 1, ..*t.config() }, 165 * S);
        assert_eq!(t.next_t0_ns(165 * S), Some(170 * S));
        t.configure(TriggerConfig { schedule_ms: 3000, ..*t.config() }, 165 * S);
        assert_eq!(t.next_t0_ns(165 * S), Some(168 * S));
        t.configure(TriggerConfig::default(), 165 * S);
        assert_eq!(t.next_t0_ns(165 * S), None);
    }

    #[test]
    fn distance_holds_for_rules_and_schedule_not_for_requests() {
        let mut t = with(|c| (c.ops, c.schedule_ms, c.min_distance_ms) = (10, 10_000, 5000));
        assert_eq!(t.fire(107 * S, 10, 1), Some(Reason::Ops));
        // 110 is too near, 120 is the next of the grid.
        assert_eq!(t.next_t0_ns(107 * S), Some(120 * S));
        assert_eq!(t.fire(111 * S, 10, 1), None);
        assert_eq!(t.fire(112 * S, 10, 1), Some(Reason::Ops));
        t.request(112 * S, S);
        t.request(112 * S, 9 * S);
        assert_eq!(t.next_t0_ns(112 * S), Some(113 * S));
        assert_eq!(t.fire(113 * S - 1, 0, 0), None);
        assert_eq!(t.fire(113 * S, 0, 0), Some(Reason::Request));
        assert!(!t.cancel_request());
        t.request(113 * S, S);
        assert!(t.cancel_request());
        assert_eq!(t.fire(115 * S, 0, 0), None);
    }

    #[test]
    fn rules() {
        let mut t = with(|c| c.dirty_blocks = 100);
        assert_eq!(t.fire(101 * S, 99, 99), None);
        assert_eq!(t.fire(101 * S, 99, 100), Some(Reason::DirtyBlocks));

        let mut t = with(|c| c.idle_ms = 2000);
        assert_eq!(t.fire(110 * S, 0, 0), None);
        assert_eq!(t.fire(111 * S, 1, 1), None);
        assert_eq!(t.fire(112 * S, 2, 1), None);
        assert_eq!(t.fire(113 * S, 2, 1), None);
        assert_eq!(t.fire(114 * S, 2, 1), Some(Reason::Idle));
        assert_eq!(t.fire(120 * S, 0, 0), None);

        let mut t = with(|c| c.rate_blocks_per_s = 50);
        assert_eq!(t.fire(100 * S + S / 2, 1, 1000), None);
        assert_eq!(t.fire(104 * S, 1, 199), None);
        assert_eq!(t.fire(104 * S + S / 2, 1, 900), None);
        assert_eq!(t.fire(106 * S, 1, 299), Some(Reason::ChangeRate));
    }

    #[test]
    fn extreme_numbers() {
        let mut t = Trigger::new(
            TriggerConfig {
                schedule_ms: u64::MAX,
                ops: u64::MAX,
                dirty_blocks: u64::MAX,
                rate_blocks_per_s: u64::MAX,
                idle_ms: u64::MAX,
                min_distance_ms: u64::MAX,
            },
            u64::MAX,
        );
        for now in [0, u64::MAX, 5] {
            t.request(now, u64::MAX);
            t.next_t0_ns(now);
            t.fire(now, u64::MAX, u64::MAX);
            t.note_snapshot(now);
        }
    }
}
