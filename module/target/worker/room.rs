// SPDX-License-Identifier: GPL-2.0-only

//! Running out of room, and of patience: the low-water mark, deleting the oldest snapshot, and what a writer that has
//! waited too long for the region does to it.

use super::Worker;
use crate::device::add;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use presnap_abi::bio::{Bio, STS_TIMEOUT};
use presnap_abi::clock::monotonic_ns;
use presnap_engine::freeze::{DropReason, Event};
use presnap_engine::knob::Knob;

/// How often the low-water mark is looked at.
const LOOK_NS: u64 = 1_000_000;

/// What a writer waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitsFor {
    /// Its blocks to be preserved.
    Guard,
    /// Intent to be durable.
    Intent,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Room {
    next_look_ns: u64,
    next_patience_ns: u64,
    /// When snapshots were given up because writers waited too long; they still do.
    gave_up_ns: Option<u64>,
    /// Blocks copied in the freeze under way, and since when it is so many.
    final_copy: (u64, u64),
}

impl Worker {
    /// Raises an event when the free slots fall below the mark: once, until the device is resumed.
    pub(super) fn watch_room(&mut self, now: u64) {
        if now < self.room.next_look_ns {
            return;
        }
        self.room.next_look_ns = now.saturating_add(LOOK_NS);
        self.dev.totals.io_retries.store(self.client.retries(), Ordering::Relaxed);
        let permille = self.dev.knobs.get(Knob::LowWaterPermille);
        let (used, total) = {
            let slots = self.dev.slots.lock();
            (u64::from(slots.used()), u64::from(slots.total()))
        };
        // What is staged yields to whatever needs room.
        let free = total.saturating_sub(used).saturating_add(self.dev.generations.staged().count());
        let low = free.saturating_mul(1000) < total.saturating_mul(permille);
        self.dev.low_water.store(low, Ordering::Relaxed);
        if low && self.dev.low_water_armed.swap(false, Ordering::Relaxed) {
            pr_warn!(
                "{}: low water: {free} of {total} slots of the region are free\n",
                self.dev.region.number()
            );
            self.dev.raise_event();
        }
    }

    /// Deletes the oldest snapshot to make room, if that is wanted; whether one is being deleted.
    ///
    /// Not one that is held: it is being sent or read. Nobody misses what the oldest preserves, and the base of the next
    /// delta is known without it.
    pub(super) fn drop_oldest(&mut self) -> bool {
        if self.dev.knobs.get(Knob::DropOldest) == 0 {
            return false;
        }
        let unfinished = self.record.id;
        let under_way = self.snapshot.phase().after_t0();
        let oldest = {
            let root = self.dev.root.lock();
            root.oldest().map(|r| r.id).filter(|&id| !under_way || id != unfinished)
        };
        let Some(id) = oldest else { return false };
        {
            let mut control = self.dev.control.lock();
            if control.delete.is_some() {
                return true;
            }
            if control.held(id) {
                return false;
            }
            control.delete = Some(id);
        }
        pr_warn!(
            "{}: the region is full; snapshot {id}, the oldest, is deleted\n",
            self.dev.region.number()
        );
        add(&self.dev.totals.snapshots_dropped, 1);
        self.start_removal(id);
        self.dev.control.lock().note_dropped(id, DropReason::Overflow);
        self.dev.raise_event();
        true
    }

    /// Lets writers that wait be looked at from time to time: some may have waited too long.
    pub(super) fn watch_patience(&mut self, now: u64) {
        let timeout_ns = self.dev.knobs.ms_as_ns(Knob::GuardTimeoutMs);
        if !self.parked.waiting() {
            self.room.gave_up_ns = None;
            return;
        }
        if timeout_ns == 0 || now < self.room.next_patience_ns {
            return;
        }
        self.room.next_patience_ns = now.saturating_add(timeout_ns / 8);
        self.parked.retry = true;
    }

    /// A final copy may take as long as its budget allows, but not while the region does not answer: writers are held.
    pub(super) fn watch_final_copy(&mut self) {
        let now = monotonic_ns();
        let copied = self.record.final_copy_blocks;
        let (before, since) = self.room.final_copy;
        // That of an earlier freeze may have come as far.
        let since = since.max(self.snapshot.times().closed_ns);
        self.room.final_copy = if copied == before { (copied, since) } else { (copied, now) };
        let timeout_ns = self.dev.knobs.ms_as_ns(Knob::GuardTimeoutMs);
        let waited = now.saturating_sub(self.room.final_copy.1);
        if timeout_ns == 0 || waited < timeout_ns {
            return;
        }
        add(&self.dev.totals.timeouts, 1);
        pr_warn!(
            "{}: the freeze has waited {} ms for the region\n",
            self.dev.region.number(),
            waited / 1_000_000
        );
        self.report(Event::Fail(DropReason::Timeout));
    }

    /// A writer still waits. If it has done so for too long, what it waits for is given up: the snapshots that need the
    /// guard, or the write itself, as `on_error` says; and the whole region, if that does not help. Gives back the write
    /// if it goes on waiting.
    pub(super) fn lose_patience(
        &mut self,
        bio: Bio,
        since: u64,
        now: u64,
        what: WaitsFor,
    ) -> Option<Bio> {
        let timeout_ns = self.dev.knobs.ms_as_ns(Knob::GuardTimeoutMs);
        let waited = now.saturating_sub(since);
        if timeout_ns == 0 || waited < timeout_ns || !self.healthy() {
            return Some(bio);
        }
        if self.dev.fail_writes.load(Ordering::Relaxed) {
            pr_warn!(
                "{}: a write failed, it had waited {} ms for the region\n",
                self.dev.region.number(),
                waited / 1_000_000
            );
            add(&self.dev.totals.timeouts, 1);
            bio.end(STS_TIMEOUT);
            return None;
        }
        let guard = what == WaitsFor::Guard;
        let gave_up = self.room.gave_up_ns;
        if guard && gave_up.is_none_or(|then| now.saturating_sub(then) < timeout_ns) {
            self.room.gave_up_ns = gave_up.or(Some(now));
            self.drop_for_patience();
        } else {
            add(&self.dev.totals.timeouts, 1);
            pr_err!("{}: the region does not answer\n", self.dev.region.number());
            self.region_failed();
            // Its last word may not be answered either.
            self.give_intent_up();
        }
        Some(bio)
    }

    /// Gives up what needs the guard; once, however many writers wait.
    fn drop_for_patience(&mut self) {
        let under_way = self.snapshot.phase().after_t0();
        let live = {
            let root = self.dev.root.lock();
            crate::region::image_is_live(&root)
        };
        if self.removal.pending() || self.must_not_relax() || !(under_way || live) {
            return;
        }
        add(&self.dev.totals.timeouts, 1);
        pr_warn!("{}: a write has waited too long for the region\n", self.dev.region.number());
        if under_way {
            self.report(Event::Fail(DropReason::Timeout));
        }
        if live {
            self.lose_images(DropReason::Timeout);
        }
        self.dev.raise_event();
    }
}
