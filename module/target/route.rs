// SPDX-License-Identifier: GPL-2.0-only

//! The way of a bio to the origin.
//!
//! A read or flush goes straight on. A write passes the gate, then the guard, then the test that durable
//! intent covers it; if one holds it, it goes to the worker, which routes it again when the reason is gone. Only
//! when all let it pass does it get its operation number and mark its blocks: so a write held over T0 belongs
//! after T0.

use crate::device::{add, Device, Guard};
use core::sync::atomic::{fence, Ordering};
use presnap_abi::bio::{Bio, Op, Status, STS_OK};
use presnap_abi::clock::{cpu_hint, monotonic_ns};
use presnap_engine::geometry::{area_of, areas_masked, blocks_touched, BLOCK_SECTORS};
use presnap_engine::record::{IoKind, IoRecord};
use presnap_engine::region::Layout;

/// Per-bio data: offset within the target and length in sectors, and what was done.
pub(crate) type PerBio = [u64; 4];

/// In the flags of a bio: it passed the gate.
const ENTERED: u64 = 1;
/// In the flags of a bio: it has a mirror.
const MIRRORED: u64 = 2;

/// A copy follows so many writes on average, while that is limited.
const MIRRORS_PER_COPY: u64 = 8;

/// Longest discard or write-zeroes handled at once: 4 MiB.
pub(crate) const LONGEST_SECTORS: u32 = 8192;

/// Where a bio goes.
pub(crate) enum Route {
    /// To the origin, which it is aimed at.
    Origin(Bio),
    /// The gate is closed.
    Gate(Bio),
    /// Some of its blocks have to be preserved first.
    Guard(Bio),
    /// A view is reading its blocks from the origin.
    View(Bio),
    /// Nothing durable says yet that its blocks may be written.
    Intent(Bio),
}

fn kind_of(op: Op) -> Option<IoKind> {
    match op {
        Op::Read => Some(IoKind::Read),
        Op::Write => Some(IoKind::Write),
        Op::Discard => Some(IoKind::Discard),
        Op::WriteZeroes => Some(IoKind::WriteZeroes),
        Op::Flush => Some(IoKind::Flush),
        Op::Other => None,
    }
}

impl Device {
    /// Routes a bio that starts `offset` sectors into the target.
    pub(crate) fn route(&self, mut bio: Bio, offset: u64) -> Route {
        let sectors = bio.sectors();
        bio.store::<PerBio>([offset, sectors.into(), 0, 0]);
        let Some(kind) = kind_of(bio.op()) else {
            bio.remap(&self.origin, offset);
            return Route::Origin(bio);
        };
        if kind.modifies() {
            self.route_write(bio, offset, sectors, kind)
        } else {
            let op = self.op.load(Ordering::Relaxed);
            self.ring.push(IoRecord { time_ns: monotonic_ns(), op, sector: offset, sectors, kind });
            bio.remap(&self.origin, offset);
            Route::Origin(bio)
        }
    }

    fn route_write(&self, mut bio: Bio, offset: u64, sectors: u32, kind: IoKind) -> Route {
        let cpu = cpu_hint();
        if !self.gate.enter(cpu) {
            return Route::Gate(bio);
        }
        let (first, count) = blocks_touched(offset, sectors);
        if self.must_guard(first, count) {
            self.leave_gate();
            return Route::Guard(bio);
        }
        let (area, areas) = areas_of(first, count);
        // Pairs with the fence of the views.
        fence(Ordering::SeqCst);
        if self.must_wait_for_view(area, areas) {
            self.leave_gate();
            return Route::View(bio);
        }
        if !self.intended(first, count) {
            self.leave_gate();
            return Route::Intent(bio);
        }
        // From here on the write happens, in this generation.
        let alone = self.tracker.begin(area, areas);
        let op = self.op.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.generations.dirty().set_range(first, count);
        let mut flags = ENTERED;
        // Pairs with the fence of the copier: either it sees our generation, or we its bit. And with
        // that of the cleaner: either it sees our blocks, or we that the intent is gone.
        fence(Ordering::SeqCst);
        if !self.intended(first, count) {
            // Hardly ever. The blocks stay marked; they will be written, if perhaps after T0.
            self.tracker.end(area, areas);
            self.leave_gate();
            return Route::Intent(bio);
        }
        if self.staging.load(Ordering::Relaxed) && self.generations.staged().any_set(first, count) {
            // A mirror costs as much as the write itself, a guard as much as a few. One write in so
            // many gives its copies up: those of hot blocks soon, those of others hardly ever.
            let tired = op % MIRRORS_PER_COPY == 0 && self.mirror_limited.load(Ordering::Relaxed);
            let follow = alone && kind == IoKind::Write && !tired;
            if follow && self.mirror(&mut bio, offset, first, count) {
                flags |= MIRRORED;
                add(&self.totals.mirrored_writes, 1);
            } else {
                self.make_stale(first, count);
            }
        }
        bio.store::<PerBio>([offset, sectors.into(), flags, 0]);
        self.ring.push(IoRecord { time_ns: monotonic_ns(), op, sector: offset, sectors, kind });
        bio.remap(&self.origin, offset);
        Route::Origin(bio)
    }

    /// Whether a block among these is in the guard's scope and not preserved.
    pub(crate) fn must_guard(&self, first: u64, count: u64) -> bool {
        self.guard() != Guard::Off
            && areas_masked(first, count).any(|(area, mask)| self.to_guard(area, mask) != 0)
    }

    /// Those of an area's blocks that are in the guard's scope and not preserved.
    pub(crate) fn to_guard(&self, area: u64, mask: u16) -> u16 {
        let g = &self.generations;
        match self.guard() {
            Guard::Off => 0,
            Guard::Image => mask & g.preserved().missing(area),
            Guard::Delta => mask & g.delta().area_mask(area) & !g.preserved().area_mask(area),
        }
    }

    /// Sends a copy of the write to the region as well, if its staged copies can follow it.
    ///
    /// That is so if all of its blocks are whole, mirrored, and lie in slots next to each other. Two
    /// writes to one area at a time could reach the two devices in different orders: the caller
    /// mirrors only a write that is alone, and a second one makes the copies stale.
    fn mirror(&self, bio: &mut Bio, offset: u64, first: u64, count: u64) -> bool {
        let mirrored = &self.generations.mirrored;
        let aligned = offset % u64::from(BLOCK_SECTORS) == 0
            && bio.sectors() % BLOCK_SECTORS == 0
            && mirrored.all_set(first, count)
            && self.generations.staged().all_set(first, count);
        if !aligned {
            return false;
        }
        let snapshot = self.coming();
        let slot = {
            let slots = self.slots.lock();
            let Some(slot) = slots.lookup(snapshot, first) else { return false };
            let runs = (1..count).all(|i| {
                slots.lookup(snapshot, first.saturating_add(i)).map(u64::from)
                    == Some(u64::from(slot).saturating_add(i))
            });
            if !runs || !Layout::contiguous(slot, u32::try_from(count).unwrap_or(u32::MAX)) {
                return false;
            }
            slot
        };
        // Before the mirror is on its way: once it is, the checksum of the slot is wrong.
        self.generations.rewritten.set_range(first, count);
        let sector = self.layout().slot_block(slot).saturating_mul(BLOCK_SECTORS.into());
        self.mirrors.mirror::<PerBio>(bio, &self.region, sector)
    }

    /// The staged copies of these blocks are not what the origin holds any more.
    fn make_stale(&self, first: u64, count: u64) {
        let stale = self.generations.staged().clear_range(first, count);
        add(&self.totals.stale, stale);
    }

    /// A bio routed to the origin has ended.
    pub(crate) fn ended(&self, data: PerBio, status: Status, mirror: Option<Status>) {
        let [offset, sectors, flags, _] = data;
        if flags & ENTERED == 0 {
            return;
        }
        let (first, count) = blocks_touched(offset, sectors as u32);
        if flags & MIRRORED != 0 && (status != STS_OK || mirror != Some(STS_OK)) {
            self.make_stale(first, count);
        }
        let (area, areas) = areas_of(first, count);
        self.tracker.end(area, areas);
        self.leave_gate();
    }

    fn leave_gate(&self) {
        self.gate.leave(cpu_hint());
        if self.gate.is_closed() {
            self.wake.wake();
        }
    }

    /// Hands a held bio to the worker.
    pub(crate) fn hold(&self, bio: Bio) {
        self.held.lock().push(bio);
        self.wake.wake();
    }
}

/// The first area and the number of areas of a run of blocks.
pub(crate) fn areas_of(first: u64, count: u64) -> (u64, u64) {
    let area = area_of(first);
    let last = area_of(first.saturating_add(count.saturating_sub(1)));
    (area, last.saturating_sub(area).saturating_add(1))
}
