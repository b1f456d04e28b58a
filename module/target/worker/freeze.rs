// SPDX-License-Identifier: GPL-2.0-only

//! Carrying out what the snapshot's state machine says.

use super::copy::{NotStarted, Purpose};
use super::{Known, Worker};
use crate::device::{add, Guard, Request};
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use presnap_abi::clock::{monotonic_ns, realtime_ns};
use presnap_engine::freeze::{Action, DropReason, Event, Phase};
use presnap_engine::region::root::{SNAPSHOT_AFTER_CRASH, SNAPSHOT_SUPERSET};
use presnap_engine::region::{Scope, SnapshotRecord, SnapshotState, NO_SLOT};

/// Sleep when nothing has to happen soon.
const IDLE_SLEEP_US: u32 = 500_000;
/// Sleep between background copies.
const PACE_US: u32 = 500;

impl Worker {
    /// How long the worker may sleep if nobody wakes it.
    pub(super) fn until_due_us(&self) -> u32 {
        let tick_us = (self.dev.knobs.get(presnap_engine::knob::Knob::TickMs) as u32)
            .saturating_mul(1000)
            .min(IDLE_SLEEP_US);
        let tick_us = if self.parked.waiting() || self.busy() {
            // A transfer may have to be tried again, a writer may lose patience.
            tick_us.min(10_000)
        } else {
            tick_us
        };
        match self.snapshot.phase() {
            Phase::Idle => self.until_next_copy_us(self.stage.unfinished(), tick_us),
            Phase::Pending { t0_ns } => {
                let left = t0_ns.saturating_sub(monotonic_ns()) / 1000;
                let left = u32::try_from(left).unwrap_or(u32::MAX).max(1);
                self.until_next_copy_us(self.stage.unfinished(), tick_us.min(left))
            }
            Phase::Draining => self.until_next_copy_us(true, 10_000),
            Phase::FinalCopy { until_ns: Some(until) } => {
                let left = until.saturating_sub(monotonic_ns()) / 1000;
                u32::try_from(left).unwrap_or(u32::MAX).clamp(1, 10_000)
            }
            // Whoever it waits for wakes it; this is for what nobody foresaw.
            _ => 10_000,
        }
    }

    /// How long to sleep when background copies may be waiting for their pace.
    fn until_next_copy_us(&self, waiting: bool, longest_us: u32) -> u32 {
        if !waiting {
            return longest_us;
        }
        // Short enough that what a busy foreground earns is spent in small pieces.
        PACE_US.min(longest_us)
    }

    /// Takes what messages and rules ask for.
    pub(super) fn handle_requests(&mut self, now: u64) {
        let idle = self.snapshot.phase() == Phase::Idle;
        let wanted = if idle && self.healthy() { self.triggered(now) } else { None };
        let (request, abort, delete, growth) = {
            let mut control = self.dev.control.lock();
            let request = if idle { control.request.take().or(wanted) } else { None };
            if let Some(request) = request {
                control.begin(request);
            }
            let delete = if self.removal.pending() { None } else { control.delete };
            (request, control.abort.take(), delete, control.growth.take())
        };
        if let Some(growth) = growth {
            self.start_growth(growth);
        }
        if let Some(request) = request {
            self.begin(request);
        }
        if abort == Some(self.record.id) {
            self.report(Event::Fail(DropReason::Aborted));
        }
        if let Some(id) = delete {
            self.progress = true;
            self.start_removal(id);
        }
    }

    fn begin(&mut self, request: Request) {
        self.progress = true;
        let staged_clean_blocks = self.record.staged_clean_blocks;
        let copied_blocks_total = self.record.copied_blocks_total;
        self.record = SnapshotRecord {
            id: request.id,
            scope: request.scope,
            state: SnapshotState::Open,
            predictor: self.dev.knobs.predictor() as u8,
            manifest_head_slot: NO_SLOT,
            staged_clean_blocks,
            copied_blocks_total,
            ..SnapshotRecord::ZERO
        };
        self.dev.control.lock().active = Some((request, Phase::Idle, self.record));
        self.snapshot.set_budget(request.budget);
        if !self.healthy() {
            self.tell_dropped(DropReason::IoError);
            return;
        }
        self.report(Event::Request { t0_ns: request.t0_ns });
    }

    /// Moves the snapshot on, as far as that depends on the state of copies and writes.
    pub(super) fn advance_snapshot(&mut self) {
        loop {
            let before = self.snapshot.phase();
            match before {
                Phase::Idle => return,
                Phase::Pending { .. } => self.report(Event::Tick),
                Phase::Committing => {
                    self.index.flush = true;
                    let idle = self.jobs.staging == 0 && !self.intent.page_busy();
                    if idle && self.index.clean() {
                        self.index.flush = false;
                        self.report(Event::StagedDurable);
                    }
                }
                Phase::Holding => {
                    if self.dev.gate.in_flight() == 0 {
                        self.report(Event::InFlightEnded);
                    }
                }
                Phase::FinalCopy { .. } => {
                    self.report(Event::Tick);
                    if self.snapshot.phase() == before {
                        self.watch_final_copy();
                    }
                    if self.snapshot.phase() == before {
                        self.final_copy();
                    }
                }
                // These are moved on by drain, manifest and root.
                Phase::Draining | Phase::Manifest | Phase::Sealing | Phase::Dropping { .. } => {
                    return;
                }
            }
            if self.snapshot.phase() == before {
                return;
            }
        }
    }

    /// Carries out an action.
    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::CommitStaged => {
                self.stage.pause();
                self.pacer.hurry(None);
            }
            Action::CloseGate => self.dev.gate.close(),
            Action::FinalCopy => self.drain.restart(),
            Action::Switch => self.switch(),
            Action::OpenGate => self.open_gate(),
            Action::Drain => self.drain.restart(),
            Action::WriteManifest => self.manifest.restart(),
            Action::WriteRecord => self.add_record(),
            Action::Seal => self.seal(),
            Action::Undo => self.undo(),
            Action::ReportDropped(reason) => self.dropped(reason),
        }
    }

    /// Copies dirty blocks without a fresh copy while the gate is closed.
    fn final_copy(&mut self) {
        let id = self.coming_id();
        let g = &self.dev.generations;
        let mut area = self.drain.cursor;
        let mut found = None;
        while let Some(next) = g.dirty().next_area(area) {
            let mask = g.dirty().area_mask(next) & !g.staged().area_mask(next);
            if mask != 0 {
                found = Some((next, mask));
                break;
            }
            area = next.saturating_add(1);
        }
        self.drain.cursor = area;
        let Some((area, mask)) = found else {
            if !self.copies_of(id) {
                self.report(Event::FinalCopyEnded);
            }
            return;
        };
        match self.start_copy(Purpose::Final, id, area, mask) {
            Ok(started) => {
                self.progress = true;
                if started == mask && self.jobs.room() {
                    self.drain.cursor = area.saturating_add(1);
                }
            }
            // The end of a copy brings us here again.
            Err(NotStarted::Busy) => {}
            Err(NotStarted::Full) => {
                // The rest is for the drain, which knows what to do when it is full too.
                if !self.copies_of(id) {
                    self.report(Event::FinalCopyEnded);
                }
            }
        }
    }

    /// The instant T0: the gate is closed and nothing is in flight. O(1).
    fn switch(&mut self) {
        let id = self.coming_id();
        let op = self.dev.op.load(Ordering::Relaxed);
        let totals = &self.dev.totals;
        let mirrored = totals.mirrored_writes.load(Ordering::Relaxed);
        let stale = totals.stale.load(Ordering::Relaxed);
        self.unsealed = self.known();
        self.dev.full_needed.store(false, Ordering::Relaxed);
        self.dev.after_crash.store(false, Ordering::Relaxed);
        self.dev.superset_blocks.store(0, Ordering::Relaxed);
        self.record.base_id = if self.unsealed.full_needed { 0 } else { self.base_id };
        self.record.flags = 0;
        if self.unsealed.after_crash {
            self.record.flags |= SNAPSHOT_AFTER_CRASH;
        }
        if self.unsealed.superset_blocks > 0 {
            self.record.flags |= SNAPSHOT_SUPERSET;
        }
        self.record.op_first = self.op_first;
        self.record.op_last = op;
        self.record.origin_sectors = self.dev.origin_sectors;
        self.record.t0_realtime_ns = realtime_ns();
        self.record.mirrored_writes = mirrored.wrapping_sub(self.mirrored_before);
        self.record.stale_blocks = stale.wrapping_sub(self.stale_before);
        self.mirrored_before = mirrored;
        self.stale_before = stale;
        self.op_first = op.wrapping_add(1);

        let image = self.record.scope == Scope::Image || self.dev.guard() == Guard::Image;
        self.dev.generations.switch();
        self.dev.set_newest(id);
        self.dev.set_coming(id.wrapping_add(1));
        self.dev.root.lock().header.next_snapshot = id.wrapping_add(1);
        self.dev.set_guard(if image { Guard::Image } else { Guard::Delta });
        self.dev.staging.store(false, Ordering::Relaxed);
        self.origin_flush.want(self.dev.origin_cached);
        self.drain.guarded_in_delta = 0;
        self.stage.begin_generation();
    }

    fn open_gate(&mut self) {
        self.dev.gate.open();
        self.snapshot.note_opened(monotonic_ns());
        self.record.delta_blocks = self.dev.generations.delta().count();
        self.parked.retry = true;
    }

    /// The manifest is durable: the record goes into the root.
    fn add_record(&mut self) {
        let times = self.snapshot.times();
        let r = &mut self.record;
        r.freeze_ns = times.freeze_ns();
        r.inflight_wait_ns = times.inflight_wait_ns();
        r.seal_ns = times.seal_ns();
        r.state = SnapshotState::Sealed;
        r.staged_valid_blocks = r
            .delta_blocks
            .saturating_sub(r.final_copy_blocks)
            .saturating_sub(r.drained_blocks)
            .saturating_sub(self.drain.guarded_in_delta);
        r.hits = r.staged_valid_blocks;
        r.misses = r.delta_blocks.saturating_sub(r.staged_valid_blocks);
        r.wasted = r.stale_blocks;
        let record = *r;
        if self.dev.root.lock().insert(record).is_err() {
            pr_warn!("{}: the snapshot table is full\n", self.dev.region.number());
            self.report(Event::NoRecord);
            return;
        }
        self.write_record();
    }

    /// The snapshot exists.
    fn seal(&mut self) {
        let totals = &self.dev.totals;
        add(&totals.snapshots, 1);
        add(&totals.staged_valid_blocks, self.record.staged_valid_blocks);
        add(&totals.hits, self.record.hits);
        add(&totals.misses, self.record.misses);
        add(&totals.wasted, self.record.wasted);
        self.base_id = self.record.id;
        self.unsealed = Known::default();
        self.dev.opened_dirty.store(false, Ordering::Relaxed);
        self.intent.begin_generation();
        self.stage.note_snapshot(self.snapshot.times().t0_ns);
        self.record = SnapshotRecord::ZERO;
        // The bitmaps of the snapshot before, and the delta, are not needed any more.
        self.dev.generations.former().clear_all();
        self.dev.generations.delta().clear_all();
        self.relax_guard();
        self.dev.control.lock().active = None;
        self.stage.resume();
        self.dev.raise_event();
    }

    /// A snapshot was given up; what there was of it is undone.
    fn dropped(&mut self, reason: DropReason) {
        pr_warn!(
            "{}: snapshot {} was dropped: {}\n",
            self.dev.region.number(),
            self.record.id,
            reason.as_str()
        );
        if self.dev.coming() == self.record.id {
            // Before T0. Its number is not used again, so what was staged for it has no owner.
            let id = self.dev.coming();
            self.forget_staged();
            self.dev.set_coming(id.wrapping_add(1));
            self.dev.root.lock().header.next_snapshot = id.wrapping_add(1);
        }
        // From here on another one can be asked for, and is given the number that is the coming one now.
        self.tell_dropped(reason);
        // For the rules it was an attempt: what failed for want of room would fail again at once.
        self.ops_from = self.dev.op.load(Ordering::Relaxed);
        self.stage.note_snapshot(monotonic_ns());
        self.record = SnapshotRecord::ZERO;
        self.index.flush = false;
        self.stage.resume();
        self.parked.retry = true;
    }

    fn tell_dropped(&mut self, reason: DropReason) {
        add(&self.dev.totals.snapshots_dropped, 1);
        {
            let mut control = self.dev.control.lock();
            control.note_dropped(self.record.id, reason);
            control.active = None;
        }
        self.dev.raise_event();
    }

    /// Lets messages see where the snapshot is.
    pub(super) fn publish(&mut self) {
        if self.snapshot.phase() == Phase::Idle {
            return;
        }
        let times = self.snapshot.times();
        let mut record = self.record;
        record.freeze_ns = times.freeze_ns();
        record.inflight_wait_ns = times.inflight_wait_ns();
        let mut control = self.dev.control.lock();
        if let Some(active) = control.active.as_mut() {
            active.1 = self.snapshot.phase();
            active.2 = record;
        }
    }
}
