// SPDX-License-Identifier: GPL-2.0-only

//! The life of one snapshot, from the request to the seal, as a state machine (design, section 2).
//!
//! The machine knows no kernel: the target reports events, and carries out the actions that come
//! back, in their order. Times are CLOCK_MONOTONIC nanoseconds.

/// How long the final copy may hold writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezeBudget {
    /// At most so many nanoseconds; 0 copies nothing in the freeze.
    Bounded(u64),
    /// Until the snapshot is complete.
    Unlimited,
}

/// Why a snapshot was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The region had no room.
    Overflow,
    /// Reading the origin or accessing the region failed.
    IoError,
    /// A write waited too long for it.
    Timeout,
    /// Somebody asked for it.
    Aborted,
    /// The device was closed before the seal.
    Closed,
}

impl DropReason {
    /// Whether a snapshot is given up for it even while its record is being written: there is nobody left to write it.
    pub const fn ends_seal(self) -> bool {
        matches!(self, Self::IoError | Self::Closed)
    }

    /// The word shown to users.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Overflow => "overflow",
            Self::IoError => "io-error",
            Self::Timeout => "timeout",
            Self::Aborted => "aborted",
            Self::Closed => "closed",
        }
    }
}

/// Where the snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is none under way.
    Idle,
    /// Asked for; T0 is known and lies ahead.
    Pending {
        /// When to begin to freeze.
        t0_ns: u64,
    },
    /// What is staged is being made durable, writes still flow.
    Committing,
    /// The gate is closed; writes in flight are waited for.
    Holding,
    /// Writes in flight have ended; stale blocks are copied within the budget.
    FinalCopy {
        /// When to stop, `None` for never.
        until_ns: Option<u64>,
    },
    /// Writers run again; guards and drain fill S(N).
    Draining,
    /// S(N) covers the delta; the manifest is being written.
    Manifest,
    /// The manifest is durable; the record is being written.
    Sealing,
    /// The snapshot is being given up.
    Dropping {
        /// Why.
        reason: DropReason,
    },
}

impl Phase {
    /// The word shown to users.
    pub const fn as_str(self) -> &'static str {
        match self {
            // Of a snapshot, the first says that its request has not been looked at.
            Self::Idle | Self::Pending { .. } => "pending",
            Self::Committing | Self::Holding | Self::FinalCopy { .. } => "freezing",
            Self::Draining => "draining",
            Self::Manifest | Self::Sealing => "sealing",
            Self::Dropping { .. } => "dropping",
        }
    }

    /// Whether the gate is closed in this phase.
    pub const fn holds_writers(self) -> bool {
        matches!(self, Self::Holding | Self::FinalCopy { .. })
    }

    /// Whether T0 lies behind.
    pub const fn after_t0(self) -> bool {
        matches!(self, Self::Draining | Self::Manifest | Self::Sealing)
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A snapshot was asked for, with T0 at the given time (now or later).
    Request {
        /// When to begin to freeze.
        t0_ns: u64,
    },
    /// Time passed.
    Tick,
    /// Everything staged is durable, data and index.
    StagedDurable,
    /// No write is in flight any more (the gate is closed).
    InFlightEnded,
    /// There is nothing left to copy in the freeze.
    FinalCopyEnded,
    /// S(N) covers the delta and is durable.
    Covered,
    /// The manifest is durable.
    ManifestDurable,
    /// The record is durable: the snapshot exists.
    RecordDurable,
    /// It cannot go on.
    Fail(DropReason),
    /// There is no place for the record.
    NoRecord,
    /// What is to be undone for a dropped snapshot has been.
    Dropped,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop staging; make everything staged durable, then report [`Event::StagedDurable`].
    CommitStaged,
    /// Close the gate, then report [`Event::InFlightEnded`] once nothing is in flight.
    CloseGate,
    /// Copy stale blocks, best value first; report [`Event::FinalCopyEnded`] when none is left.
    FinalCopy,
    /// The instant T0: take the operation number, switch the generation, put the guard up.
    Switch,
    /// Open the gate and send on the writes that were held.
    OpenGate,
    /// Copy the rest of the delta; report [`Event::Covered`].
    Drain,
    /// Write the manifest; report [`Event::ManifestDurable`].
    WriteManifest,
    /// Write the record; report [`Event::RecordDurable`].
    WriteRecord,
    /// Drop the guard of scope `delta`, tell who waits.
    Seal,
    /// Undo: give the writes back to the generation, free S(N); report [`Event::Dropped`].
    Undo,
    /// Tell who waits that it was dropped.
    ReportDropped(DropReason),
}

/// At most three actions, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions([Option<Action>; 3]);

impl Actions {
    const NONE: Self = Self([None; 3]);

    const fn one(a: Action) -> Self {
        Self([Some(a), None, None])
    }

    const fn two(a: Action, b: Action) -> Self {
        Self([Some(a), Some(b), None])
    }

    const fn three(a: Action, b: Action, c: Action) -> Self {
        Self([Some(a), Some(b), Some(c)])
    }
}

impl Iterator for Actions {
    type Item = Action;

    fn next(&mut self) -> Option<Action> {
        let first = self.0.first_mut()?.take();
        self.0.rotate_left(1);
        first
    }
}

/// When what happened, for the record of the snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// The gate was closed.
    pub closed_ns: u64,
    /// The last write in flight had ended.
    pub drained_ns: u64,
    /// T0.
    pub t0_ns: u64,
    /// The gate was opened.
    pub opened_ns: u64,
    /// Sealed.
    pub sealed_ns: u64,
}

impl Times {
    /// How long writers were held.
    pub const fn freeze_ns(&self) -> u64 {
        self.opened_ns.saturating_sub(self.closed_ns)
    }

    /// How much of it was waiting for writes in flight.
    pub const fn inflight_wait_ns(&self) -> u64 {
        self.drained_ns.saturating_sub(self.closed_ns)
    }

    /// From T0 to the seal.
    pub const fn seal_ns(&self) -> u64 {
        self.sealed_ns.saturating_sub(self.t0_ns)
    }
}

/// The state machine.
#[derive(Clone, Debug)]
pub struct Snapshot {
    phase: Phase,
    budget: FreezeBudget,
    times: Times,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self::new()
    }
}

impl Snapshot {
    /// No snapshot under way.
    pub const fn new() -> Self {
        Self {
            phase: Phase::Idle,
            budget: FreezeBudget::Bounded(0),
            times: Times { closed_ns: 0, drained_ns: 0, t0_ns: 0, opened_ns: 0, sealed_ns: 0 },
        }
    }

    /// Where it is.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Its times so far.
    pub const fn times(&self) -> Times {
        self.times
    }

    /// Sets the budget of the next freeze; one under way keeps its own.
    pub fn set_budget(&mut self, budget: FreezeBudget) {
        if matches!(self.phase, Phase::Idle | Phase::Pending { .. }) {
            self.budget = budget;
        }
    }

    /// Takes an event that happened at `now_ns`, returns what to do.
    ///
    /// An event that does not fit the phase changes nothing: late reports are normal.
    pub fn step(&mut self, event: Event, now_ns: u64) -> Actions {
        use {Action as A, Event as E, Phase as P};
        match (self.phase, event) {
            (P::Idle, E::Request { t0_ns }) => {
                self.times = Times::default();
                self.phase = P::Pending { t0_ns };
                self.step(E::Tick, now_ns)
            }
            (P::Pending { t0_ns }, E::Tick) if now_ns >= t0_ns => {
                self.phase = P::Committing;
                Actions::one(A::CommitStaged)
            }
            (P::Committing, E::StagedDurable) => {
                self.phase = P::Holding;
                self.times.closed_ns = now_ns;
                Actions::one(A::CloseGate)
            }
            (P::Holding, E::InFlightEnded) => {
                self.times.drained_ns = now_ns;
                match self.budget {
                    FreezeBudget::Bounded(0) => self.switch(now_ns),
                    FreezeBudget::Bounded(ns) => {
                        self.phase = P::FinalCopy {
                            until_ns: Some(self.times.closed_ns.saturating_add(ns)),
                        };
                        Actions::one(A::FinalCopy)
                    }
                    FreezeBudget::Unlimited => {
                        self.phase = P::FinalCopy { until_ns: None };
                        Actions::one(A::FinalCopy)
                    }
                }
            }
            (P::FinalCopy { .. }, E::FinalCopyEnded) => self.switch(now_ns),
            (P::FinalCopy { until_ns: Some(t) }, E::Tick) if now_ns >= t => self.switch(now_ns),
            (P::Draining, E::Covered) => {
                self.phase = P::Manifest;
                Actions::one(A::WriteManifest)
            }
            (P::Manifest, E::ManifestDurable) => {
                self.phase = P::Sealing;
                self.times.sealed_ns = now_ns;
                Actions::one(A::WriteRecord)
            }
            (P::Sealing, E::RecordDurable) => {
                self.phase = P::Idle;
                Actions::one(A::Seal)
            }
            (P::Idle | P::Dropping { .. }, E::Fail(_)) => Actions::NONE,
            // Its record may be durable already, and whoever relies on it is let down only in the order of a deletion.
            (P::Sealing, E::Fail(reason)) if !reason.ends_seal() => Actions::NONE,
            // Before T0 nothing is lost but the attempt: what is staged stays for the next one.
            (P::Pending { .. } | P::Committing, E::Fail(reason)) => {
                self.phase = P::Idle;
                Actions::one(A::ReportDropped(reason))
            }
            (P::Holding | P::FinalCopy { .. }, E::Fail(reason)) => {
                self.phase = P::Idle;
                self.times.opened_ns = now_ns;
                Actions::two(A::OpenGate, A::ReportDropped(reason))
            }
            (P::Sealing, E::NoRecord) => {
                self.phase = P::Dropping { reason: DropReason::Overflow };
                Actions::one(A::Undo)
            }
            (P::Draining | P::Manifest | P::Sealing, E::Fail(reason)) => {
                self.phase = P::Dropping { reason };
                Actions::one(A::Undo)
            }
            (P::Dropping { reason }, E::Dropped) => {
                self.phase = P::Idle;
                Actions::one(A::ReportDropped(reason))
            }
            _ => Actions::NONE,
        }
    }

    /// Notes when the gate really opened.
    pub fn note_opened(&mut self, now_ns: u64) {
        self.times.opened_ns = now_ns;
    }

    fn switch(&mut self, now_ns: u64) -> Actions {
        self.times.t0_ns = now_ns;
        self.times.opened_ns = now_ns;
        self.phase = Phase::Draining;
        Actions::three(Action::Switch, Action::OpenGate, Action::Drain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(s: &mut Snapshot, events: &[(Event, u64)]) -> Vec<Action> {
        events.iter().flat_map(|&(e, t)| s.step(e, t)).collect()
    }

    #[test]
    fn the_whole_life() {
        let mut s = Snapshot::new();
        s.set_budget(FreezeBudget::Bounded(100));
        let actions = run(
            &mut s,
            &[
                (Event::Request { t0_ns: 10 }, 5),
                (Event::Tick, 9),
                (Event::Tick, 10),
                (Event::StagedDurable, 20),
                (Event::InFlightEnded, 25),
                (Event::Tick, 119),
                (Event::Tick, 120),
                (Event::Covered, 200),
                (Event::ManifestDurable, 210),
                (Event::RecordDurable, 220),
            ],
        );
        assert_eq!(
            actions,
            [
                Action::CommitStaged,
                Action::CloseGate,
                Action::FinalCopy,
                Action::Switch,
                Action::OpenGate,
                Action::Drain,
                Action::WriteManifest,
                Action::WriteRecord,
                Action::Seal
            ]
        );
        assert_eq!(s.phase(), Phase::Idle);
        let t = s.times();
        assert_eq!((t.freeze_ns(), t.inflight_wait_ns(), t.seal_ns()), (100, 5, 90));
    }

    #[test]
    fn zero_budget_copies_nothing_in_the_freeze() {
        let mut s = Snapshot::new();
        let actions = run(
            &mut s,
            &[
                (Event::Request { t0_ns: 0 }, 1),
                (Event::StagedDurable, 2),
                (Event::InFlightEnded, 3),
            ],
        );
        assert!(!actions.contains(&Action::FinalCopy));
        assert_eq!(s.phase(), Phase::Draining);
    }

    #[test]
    fn unlimited_waits_for_the_end() {
        let mut s = Snapshot::new();
        s.set_budget(FreezeBudget::Unlimited);
        run(
            &mut s,
            &[
                (Event::Request { t0_ns: 0 }, 1),
                (Event::StagedDurable, 2),
                (Event::InFlightEnded, 3),
                (Event::Tick, u64::MAX - 1),
            ],
        );
        assert_eq!(s.phase(), Phase::FinalCopy { until_ns: None });
        run(&mut s, &[(Event::FinalCopyEnded, u64::MAX)]);
        assert_eq!(s.phase(), Phase::Draining);
    }

    #[test]
    fn a_record_on_its_way_is_not_taken_back() {
        let sealing = Snapshot { phase: Phase::Sealing, ..Snapshot::new() };
        for reason in [DropReason::Overflow, DropReason::Timeout, DropReason::Aborted] {
            let mut s = sealing.clone();
            assert_eq!(s.step(Event::Fail(reason), 1), Actions::NONE);
            assert_eq!(s.phase(), Phase::Sealing);
        }
        for event in
            [Event::Fail(DropReason::IoError), Event::Fail(DropReason::Closed), Event::NoRecord]
        {
            let mut s = sealing.clone();
            assert_eq!(s.step(event, 1), Actions::one(Action::Undo));
        }
    }

    #[test]
    fn a_second_request_waits_its_turn() {
        let mut s = Snapshot::new();
        run(&mut s, &[(Event::Request { t0_ns: 9 }, 1)]);
        assert_eq!(s.step(Event::Request { t0_ns: 2 }, 2), Actions::NONE);
        assert_eq!(s.phase(), Phase::Pending { t0_ns: 9 });
    }

    /// Whatever the order of events: the gate is closed exactly between its actions, writers are
    /// never left held, a switch happens only with the gate closed, and a failure always ends.
    #[test]
    fn any_order_of_events_keeps_the_gate_right() {
        let events = [
            Event::Request { t0_ns: 3 },
            Event::Tick,
            Event::StagedDurable,
            Event::InFlightEnded,
            Event::FinalCopyEnded,
            Event::Covered,
            Event::ManifestDurable,
            Event::RecordDurable,
            Event::Fail(DropReason::IoError),
            Event::Fail(DropReason::Aborted),
            Event::NoRecord,
            Event::Dropped,
        ];
        let budgets = [FreezeBudget::Bounded(0), FreezeBudget::Bounded(5), FreezeBudget::Unlimited];
        let mut seed = 1u64;
        for round in 0..20_000u64 {
            let mut s = Snapshot::new();
            s.set_budget(budgets[(round % 3) as usize]);
            let (mut closed, mut switched, mut waiting) = (false, false, false);
            for now in 0..40 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let event = events[(seed >> 33) as usize % events.len()];
                waiting |= matches!(event, Event::Request { .. }) && s.phase() == Phase::Idle;
                for action in s.step(event, now) {
                    match action {
                        Action::CloseGate => {
                            assert!(!closed);
                            closed = true;
                        }
                        Action::OpenGate => {
                            assert!(closed);
                            closed = false;
                        }
                        Action::Switch => {
                            assert!(closed && !switched);
                            switched = true;
                        }
                        Action::Seal => {
                            assert!(switched && waiting);
                            (switched, waiting) = (false, false);
                        }
                        Action::Undo => assert!(switched),
                        Action::ReportDropped(_) => {
                            assert!(waiting);
                            (switched, waiting) = (false, false);
                        }
                        _ => {}
                    }
                }
                assert_eq!(closed, s.phase().holds_writers());
                assert_eq!(waiting, s.phase() != Phase::Idle);
            }
        }
    }
}
