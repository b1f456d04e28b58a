// SPDX-License-Identifier: GPL-2.0-only

//! Bios that wait: for the gate to open, or for their blocks to be preserved.

use super::copy::{NotStarted, Purpose};
use super::room::WaitsFor;
use super::Worker;
use crate::device::{add, Guard, Health};
use crate::route::{PerBio, Route};
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use presnap_abi::bio::{Bio, BioList, STS_NOSPC};
use presnap_abi::clock::monotonic_ns;
use presnap_engine::freeze::{DropReason, Event, Phase};
use presnap_engine::geometry::{areas_masked, blocks_touched, widened};

/// Neighbours that a guard's copy takes along on either side.
const ALONG_BLOCKS: u32 = 2;

/// The waiting bios; their number is bounded by what their submitters have in flight.
pub(crate) struct Parked {
    bios: BioList,
    /// Something changed that may let some of them go.
    pub(super) retry: bool,
    /// One of them waits for an index block.
    pub(super) for_index: bool,
}

impl Parked {
    pub(crate) fn new() -> Self {
        Self { bios: BioList::new(), retry: false, for_index: false }
    }

    /// Whether a writer waits.
    pub(super) fn waiting(&self) -> bool {
        !self.bios.is_empty()
    }
}

impl Worker {
    /// Takes the bios that were held since the last pass.
    pub(super) fn take_held(&mut self) {
        if self.dev.take_view_waited_for() {
            self.parked.retry = true;
        }
        let mut fresh = self.dev.held.lock().take();
        while let Some(bio) = fresh.pop() {
            self.progress = true;
            self.send_on(bio, true);
        }
    }

    /// Tries those that wait already.
    pub(super) fn retry_parked(&mut self) {
        if !core::mem::take(&mut self.parked.retry) || self.dev.gate.is_closed() {
            return;
        }
        let mut waiting = self.parked.bios.take();
        while let Some(bio) = waiting.pop() {
            self.send_on(bio, false);
        }
    }

    fn send_on(&mut self, bio: Bio, first_time: bool) {
        let [offset, _, _, since] = bio.load::<PerBio>();
        let now = monotonic_ns();
        let since = if first_time { now } else { since };
        match self.dev.route(bio, offset) {
            Route::Origin(bio) => {
                self.progress = true;
                bio.submit();
            }
            // Neither waits for the region: its time has not begun.
            Route::Gate(bio) | Route::View(bio) => self.park(bio, now),
            Route::Intent(bio) => {
                if first_time {
                    add(&self.dev.totals.intent_waits, 1);
                }
                if let Some(bio) = self.lose_patience(bio, since, now, WaitsFor::Intent) {
                    self.want_intent(offset, bio.sectors());
                    self.park(bio, since);
                }
            }
            Route::Guard(bio) => {
                if first_time {
                    add(&self.dev.totals.guard_stalls, 1);
                    self.record.guard_stalls = self.record.guard_stalls.saturating_add(1);
                }
                if let Some(bio) = self.lose_patience(bio, since, now, WaitsFor::Guard) {
                    // It will need both.
                    self.want_intent(offset, bio.sectors());
                    self.preserve_for(bio, offset, since);
                }
            }
        }
    }

    /// Puts a bio with those that wait; it does since then.
    fn park(&mut self, mut bio: Bio, since: u64) {
        let [offset, sectors, flags, _] = bio.load::<PerBio>();
        bio.store::<PerBio>([offset, sectors, flags, since]);
        self.parked.bios.push(bio);
    }

    /// Starts the copies that a bio waits for.
    fn preserve_for(&mut self, bio: Bio, offset: u64, since: u64) {
        if self.must_not_relax() && !self.snapshot.phase().after_t0() {
            // Nobody needs its blocks, and it goes on as soon as the disk knows.
            self.park(bio, since);
            return;
        }
        let (first, count) = blocks_touched(offset, bio.sectors());
        let owner = self.dev.newest();
        for (area, mask) in areas_masked(first, count) {
            // Slots may come in pieces.
            loop {
                let mask = self.dev.to_guard(area, mask);
                // Neighbours that the delta lacks have to be copied anyway: in the same read and write
                // they cost little, and spare the next writer. The whole area would cost this one more.
                let mask = widened(mask, self.lacking(area), ALONG_BLOCKS);
                match self.start_copy(Purpose::Guard, owner, area, mask) {
                    Ok(_) => self.progress = true,
                    // All are being copied already, or all jobs are taken: the end of one lets the
                    // bio try again.
                    Err(NotStarted::Busy) => break,
                    Err(NotStarted::Full) => {
                        if !self.guard_is_full() {
                            bio.end(STS_NOSPC);
                            return;
                        }
                        self.parked.retry = true;
                        break;
                    }
                }
            }
        }
        self.park(bio, since);
    }

    /// A guard found the region full. Makes room, waits for it, or gives the snapshot up, so that the
    /// writer can go on; `false` if the writer has to fail instead.
    fn guard_is_full(&mut self) -> bool {
        if self.removal.pending() || self.drop_staged() > 0 || self.drop_oldest() {
            return true;
        }
        if self.dev.fail_writes.load(Ordering::Relaxed) {
            if self.dev.health() == Health::Good {
                self.dev.set_health(Health::Overflow);
                pr_warn!(
                    "{}: the region is full; writes that need room in it fail\n",
                    self.dev.region.number()
                );
                self.dev.raise_event();
            }
            return false;
        }
        self.overflow();
        true
    }

    /// The region has no room for what the unfinished snapshot, or else the images, need.
    pub(super) fn overflow(&mut self) {
        if self.removal.pending() || self.must_not_relax() {
            // Slots are being freed, perhaps those of a snapshot that was dropped a moment ago: who
            // needs room tries again, before anything else is given up.
            return;
        }
        if self.drop_oldest() || self.snapshot.phase() == Phase::Sealing {
            // What is being sealed will be, in a moment, and can then be taken back in order.
            return;
        }
        self.dev.set_health(Health::Overflow);
        if self.snapshot.phase().after_t0() {
            pr_warn!(
                "{}: the region is full; snapshot {} is dropped\n",
                self.dev.region.number(),
                self.record.id
            );
            self.report(Event::Fail(DropReason::Overflow));
        } else {
            self.lose_images(DropReason::Overflow);
        }
        self.dev.raise_event();
    }

    /// Works out what has to be guarded when nothing is under way.
    pub(super) fn relax_guard(&mut self) {
        if self.must_not_relax() {
            return;
        }
        let image = {
            let root = self.dev.root.lock();
            crate::region::image_is_live(&root)
        };
        self.dev.set_guard(if image { Guard::Image } else { Guard::Off });
        self.parked.retry = true;
        self.progress = true;
    }
}
