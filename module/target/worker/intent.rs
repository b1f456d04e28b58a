// SPDX-License-Identifier: GPL-2.0-only

//! Durable intent: before a write to an extent is issued, the region says that the extent may be written.
//!
//! Extents are added by a record of the log: one write for all that wait. They are taken away when they have not
//! been written for a while: first their dirty blocks go into pages of the dirty map, which lie in slots; when
//! those are durable, the next intent map is without the extents. So after a crash only the extents that were
//! written lately pass for changed as a whole, and after an orderly close none.

use super::Worker;
use crate::device::{add, block_map, BlockMap};
use core::sync::atomic::{fence, Ordering};
use kernel::prelude::*;
use kernel::sync::Arc;
use presnap_abi::clock::crc32c;
use presnap_abi::io::{Client, Durability, Transfer};
use presnap_abi::thread::Wake;
use presnap_engine::freeze::Phase;
use presnap_engine::geometry::{blocks_touched, AREA_BLOCKS_SHIFT, BLOCK_BYTES, BLOCK_SECTORS};
use presnap_engine::intent::{IntentOrder, MapWrite};
use presnap_engine::knob::Knob;
use presnap_engine::region::index::DIRTY_PAGE_BLOCKS;
use presnap_engine::region::intent::{
    ExtentRun, LogRecord, INTENT_MAP_BYTES, LOG_RECORD_BYTES, LOG_RUNS,
};
use presnap_engine::region::{region_tag, IntentMap, Layout, SlotKind, NO_SLOT};

/// Extents that a first write takes along behind it, if they follow on one that is written already.
const AHEAD: u64 = 4;
/// Slots looked at in one pass for pages of generations that are over.
const STEP: u32 = 512;

/// How far the taking away has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clean {
    /// Until its time has come.
    Resting,
    /// The units from this one on are looked at.
    Unit(u64),
    /// The extents of a unit are on their way out; its pages from this one on are to be written.
    Pages { unit: u64, page: u64 },
    /// A page with this checksum is being written to a slot.
    Writing { unit: u64, page: u64, slot: u32, crc: u32 },
    /// A page is written, its index entry not.
    Indexing { unit: u64, page: u64, slot: u32, wait: Option<(u32, u64)> },
    /// The one before it, in this slot, still counts: the index on disk has it.
    Retiring { unit: u64, page: u64, slot: u32, wait: Option<(u32, u64)> },
}

/// See the module.
pub(crate) struct IntentWriter {
    order: IntentOrder,
    /// Extents to be added.
    wanted: BlockMap,
    /// Extents added before anybody asked.
    premarked: BlockMap,
    /// Extents that were added for the predictor and left again without a write: not a second time, before one was asked for.
    in_vain: BlockMap,
    /// Extents of the record that is being written.
    runs: KVec<ExtentRun>,
    log: KBox<Transfer>,
    logging: bool,
    map: KBox<Transfer>,
    mapping: bool,
    clean: Clean,
    /// When that began the last time.
    cleaned_ns: u64,
    /// Extents that writers do not count on any more, and a map must still have.
    leaving: BlockMap,
    /// Extents have left that the map on disk still has.
    left: bool,
    page: KBox<Transfer>,
    pages: KVVec<u32>,
    /// Slots from this one on may have pages of generations that are over.
    sweep: u32,
    /// The device is being closed: all goes that can.
    closing: bool,
}

impl IntentWriter {
    pub(crate) fn new(
        client: &Arc<Client>,
        wake: &Arc<Wake>,
        order: IntentOrder,
        pages: KVVec<u32>,
        extents: u64,
    ) -> Result<Self> {
        Ok(Self {
            order,
            wanted: block_map(extents)?,
            premarked: block_map(extents)?,
            in_vain: block_map(extents)?,
            runs: KVec::with_capacity(LOG_RUNS, GFP_KERNEL)?,
            log: Transfer::new(client, wake, LOG_RECORD_BYTES)?,
            logging: false,
            map: Transfer::new(client, wake, INTENT_MAP_BYTES)?,
            mapping: false,
            clean: Clean::Resting,
            cleaned_ns: 0,
            leaving: block_map(extents)?,
            left: false,
            page: Transfer::new(client, wake, BLOCK_BYTES as usize)?,
            pages,
            sweep: u32::MAX,
            closing: false,
        })
    }

    pub(crate) fn in_flight(&self) -> bool {
        self.logging || self.mapping || self.page_busy()
    }

    /// Whether a page of the dirty map is on its way.
    pub(super) fn page_busy(&self) -> bool {
        use Clean::{Indexing, Retiring, Writing};
        matches!(self.clean, Writing { .. } | Indexing { .. } | Retiring { .. })
    }

    /// Takes all away that can be.
    pub(super) fn close(&mut self) {
        self.closing = true;
        self.wanted.clear_all();
        self.clean = match self.clean {
            Clean::Resting => Clean::Unit(0),
            other => other,
        };
    }

    /// Whether that has been done, or given up.
    pub(super) fn closed(&self) -> bool {
        self.clean == Clean::Resting && !self.in_flight() && !self.order.map_pending()
    }

    /// A snapshot was sealed: the pages so far are of generations that it has.
    pub(super) fn begin_generation(&mut self) {
        self.pages.iter_mut().for_each(|slot| *slot = NO_SLOT);
        self.sweep = 0;
    }

    /// A record with what is wanted; `None` if nothing is, or it has to wait.
    fn collect(&mut self, intents: &BlockMap) -> Option<u64> {
        self.wanted.next_set(0)?;
        let seq = self.order.begin_record()?;
        self.runs.clear();
        let mut from = 0;
        while let Some(first) = self.wanted.next_set(from) {
            if self.runs.len() >= LOG_RUNS {
                break;
            }
            let mut len = 1u32;
            while len < u32::MAX && self.wanted.test(first.saturating_add(len.into())) {
                len = len.saturating_add(1);
            }
            self.wanted.clear_range(first, len.into());
            from = first.saturating_add(len.into());
            if intents.all_set(first, len.into()) {
                continue;
            }
            let run = ExtentRun { start: first as u32, len };
            // Within the capacity that was reserved.
            let _ = self.runs.push_within_capacity(run);
        }
        Some(seq)
    }
}

impl Worker {
    /// Somebody waits for intent for these sectors.
    pub(super) fn want_intent(&mut self, offset: u64, sectors: u32) {
        let (first, count) = blocks_touched(offset, sectors);
        let (extent, n) = self.dev.extents.of(first, count);
        if self.dev.intents.all_set(extent, n) {
            return;
        }
        let new = self.intent.wanted.set_range(extent, n);
        self.intent.in_vain.clear_range(extent, n);
        add(&self.dev.totals.intent_demanded, new);
        // One that follows on another is perhaps a stream.
        if extent.checked_sub(1).is_some_and(|before| self.dev.intents.test(before)) {
            self.premark(extent.saturating_add(n), AHEAD);
        }
    }

    /// Extents that will be written, it seems: they are added with what is wanted, or when there is time.
    fn premark(&mut self, extent: u64, n: u64) {
        let end = extent.saturating_add(n).min(self.dev.extents.count.into());
        for extent in extent..end {
            let known = self.dev.intents.test(extent) || self.intent.wanted.test(extent);
            if !known {
                self.intent.wanted.set_range(extent, 1);
                self.intent.premarked.set_range(extent, 1);
                add(&self.dev.totals.intent_premarked, 1);
            }
        }
    }

    /// The predictor expects writes to an area.
    pub(super) fn premark_area(&mut self, area: u64) {
        let (extent, _) = self.dev.extents.of(area << AREA_BLOCKS_SHIFT, 1);
        if !self.intent.in_vain.test(extent) {
            self.premark(extent, 1);
        }
    }

    /// Takes the results of records, maps and pages.
    pub(super) fn reap_intent(&mut self) {
        if self.intent.logging {
            if let Some(result) = self.intent.log.result() {
                self.progress = true;
                self.intent.logging = false;
                if result.is_err() {
                    self.intent_failed();
                } else {
                    self.intent.order.record_durable();
                    for run in self.intent.runs.iter() {
                        self.dev.intents.set_range(run.start.into(), run.len.into());
                    }
                    self.parked.retry = true;
                }
            }
        }
        if self.intent.mapping {
            if let Some(result) = self.intent.map.result() {
                self.progress = true;
                self.intent.mapping = false;
                if result.is_err() {
                    self.intent_failed();
                } else {
                    self.intent.order.map_durable();
                }
            }
        }
        match self.intent.clean {
            Clean::Writing { .. } => {
                if let Some(result) = self.intent.page.result() {
                    self.page_written(result);
                }
            }
            Clean::Indexing { unit, page, slot, wait }
                if wait.is_none_or(|(index_no, seq)| self.index.durable(index_no, seq)) =>
            {
                self.page_durable(unit, page, slot);
            }
            Clean::Retiring { unit, page, slot, wait }
                if wait.is_none_or(|(index_no, seq)| self.index.durable(index_no, seq)) =>
            {
                self.progress = true;
                self.dev.slots.lock().free(slot);
                self.intent.clean = Clean::Pages { unit, page: page.saturating_add(1) };
            }
            _ => {}
        }
    }

    fn intent_failed(&mut self) {
        add(&self.dev.totals.io_errors, 1);
        self.intent.order.failed();
        self.region_failed();
    }

    /// The region failed, and it was tried to write there that nothing is known of the changes from here on: writers
    /// need not wait for what will never be durable.
    pub(super) fn give_intent_up(&mut self) {
        let all = self.dev.extents.count.into();
        self.dev.intents.set_range(0, all);
        self.intent.wanted.clear_all();
        self.intent.clean = Clean::Resting;
        self.parked.retry = true;
        self.progress = true;
    }

    /// Starts what is due: a record, a map, a page.
    pub(super) fn run_intent(&mut self, now: u64) {
        if !self.healthy() {
            return;
        }
        if !self.intent.logging {
            if let Some(seq) = self.intent.collect(&self.dev.intents) {
                self.write_log_record(seq);
            }
        }
        if !self.intent.mapping {
            if let Some(write) = self.intent.order.begin_map() {
                self.write_intent_map(write);
            }
        }
        self.run_clean(now);
        self.sweep_pages();
    }

    fn write_log_record(&mut self, seq: u64) {
        let dev = self.dev.clone();
        let durability = self.barrier();
        self.progress = true;
        let intent = &mut self.intent;
        let out = intent.log.buffer().and_then(|b| b.first_chunk_mut::<LOG_RECORD_BYTES>());
        let Some(out) = out else { return };
        let tag = region_tag(&dev.region_uuid);
        LogRecord::encode(out, tag, seq, dev.extents, &intent.runs, crc32c);
        let sector = Layout::log_block(seq).saturating_mul(BLOCK_SECTORS.into());
        let written = intent.log.write(&dev.region, sector, LOG_RECORD_BYTES, durability);
        add(&dev.totals.region_bytes, LOG_RECORD_BYTES as u64);
        add(&dev.totals.intent_writes, 1);
        if written.is_err() {
            self.intent_failed();
            return;
        }
        self.intent.logging = true;
    }

    fn write_intent_map(&mut self, write: MapWrite) {
        let dev = self.dev.clone();
        let durability = self.barrier();
        self.progress = true;
        let intent = &mut self.intent;
        let out = intent.map.buffer().and_then(|b| b.first_chunk_mut::<INTENT_MAP_BYTES>());
        let Some(out) = out else { return };
        let map = IntentMap { seq: write.seq, log_seq: write.log_seq, extents: dev.extents };
        let leaving = &intent.leaving;
        let masks =
            (0..dev.intents.areas()).map(|i| dev.intents.area_mask(i) | leaving.area_mask(i));
        map.encode(out, dev.region_uuid, masks, crc32c);
        let sector = Layout::intent_block(write.copy).saturating_mul(BLOCK_SECTORS.into());
        let written = intent.map.write(&dev.region, sector, INTENT_MAP_BYTES, durability);
        add(&dev.totals.region_bytes, INTENT_MAP_BYTES as u64);
        add(&dev.totals.intent_writes, 1);
        if written.is_err() {
            self.intent_failed();
            return;
        }
        self.intent.mapping = true;
    }

    fn barrier(&self) -> Durability {
        if self.dev.region_cached {
            Durability::Barrier
        } else {
            Durability::Cached
        }
    }

    // Taking away.

    /// Units: the blocks of a page, or of an extent if that is larger.
    fn unit_shift(&self) -> u32 {
        self.dev.extents.shift.max(DIRTY_PAGE_BLOCKS.trailing_zeros())
    }

    fn run_clean(&mut self, now: u64) {
        let phase = self.snapshot.phase();
        let quiet = self.intent.closing || matches!(phase, Phase::Idle | Phase::Pending { .. });
        if !quiet {
            if !self.intent.page_busy() {
                self.put_back();
            }
            return;
        }
        match self.intent.clean {
            Clean::Resting => {
                let rest_ns = self.dev.knobs.ms_as_ns(Knob::IntentCleanMs);
                // The knob counts from the last time on, also if it was turned since.
                if self.intent.cleaned_ns == 0 {
                    self.intent.cleaned_ns = now;
                } else if now >= self.intent.cleaned_ns.saturating_add(rest_ns) {
                    self.intent.cleaned_ns = now;
                    self.intent.clean = Clean::Unit(0);
                }
            }
            Clean::Unit(unit) => self.begin_unit(unit),
            Clean::Pages { unit, page } => self.write_page_of(unit, page),
            Clean::Writing { .. } | Clean::Indexing { .. } | Clean::Retiring { .. } => {}
        }
    }

    /// The first block of a unit. No shift is above 63, see [`Extents`].
    ///
    /// [`Extents`]: presnap_engine::region::Extents
    fn block_of_unit(&self, unit: u64) -> u64 {
        unit.wrapping_shl(self.unit_shift())
    }

    /// The unit of a block.
    fn unit_of_block(&self, block: u64) -> u64 {
        block.wrapping_shr(self.unit_shift())
    }

    /// The extents of a unit.
    fn extents_of_unit(&self, unit: u64) -> (u64, u64) {
        let shift = self.unit_shift();
        let end = self.dev.extents.count.into();
        let first = self.block_of_unit(unit).wrapping_shr(self.dev.extents.shift);
        let n = 1u64.wrapping_shl(shift.saturating_sub(self.dev.extents.shift));
        (first, n.min(u64::saturating_sub(end, first)))
    }

    /// The next extent with intent that was not written lately.
    fn next_cold(&self, from: u64) -> Option<u64> {
        let (intents, touched) = (&self.dev.intents, &self.dev.touched);
        let mut extent = intents.next_set(from)?;
        while !self.intent.closing && touched.test(extent) {
            extent = intents.next_set(extent.saturating_add(1))?;
        }
        Some(extent)
    }

    /// Takes the intent of the next unit's cold extents out of memory; from then on writers ask for it again.
    fn begin_unit(&mut self, unit: u64) {
        self.progress = true;
        let (from, _) = self.extents_of_unit(unit);
        let Some(cold) = self.next_cold(from) else {
            self.end_clean();
            return;
        };
        let (first, _) = self.dev.extents.blocks(cold);
        let unit = self.unit_of_block(first);
        let (from, n) = self.extents_of_unit(unit);
        let end = from.saturating_add(n);
        let mut next = Some(cold);
        while let Some(extent) = next.filter(|&extent| extent < end) {
            self.intent.leaving.set_range(extent, 1);
            self.dev.intents.clear_range(extent, 1);
            next = self.next_cold(extent.saturating_add(1));
        }
        // Pairs with that of the writers: either they see that the intent is gone, or we their blocks.
        fence(Ordering::SeqCst);
        let page = self.block_of_unit(unit) / DIRTY_PAGE_BLOCKS;
        self.intent.clean = Clean::Pages { unit, page };
    }

    /// All units have been seen to: the next map is without what has left.
    fn end_clean(&mut self) {
        // Some may have been hot when the closing began.
        let again = self.intent.closing && self.dev.intents.next_set(0).is_some();
        self.intent.clean = if again { Clean::Unit(0) } else { Clean::Resting };
        if core::mem::take(&mut self.intent.left) {
            self.intent.order.want_map();
        }
        // What was premarked and has been written was worth it.
        let mut extent = 0;
        while let Some(next) = self.intent.premarked.next_set(extent) {
            let used = u64::from(self.dev.touched.test(next));
            let left = !self.dev.intents.test(next);
            if used == 1 || left {
                self.intent.premarked.clear_range(next, 1);
            }
            if used == 0 && left {
                self.intent.in_vain.set_range(next, 1);
            }
            add(&self.dev.totals.intent_premarked_used, used);
            extent = next.saturating_add(1);
        }
        self.dev.touched.clear_all();
    }

    /// The extents that were to leave stay.
    fn put_back(&mut self) {
        if matches!(self.intent.clean, Clean::Resting) {
            return;
        }
        let mut extent = 0;
        while let Some(next) = self.intent.leaving.next_set(extent) {
            self.dev.intents.set_range(next, 1);
            extent = next.saturating_add(1);
        }
        self.intent.leaving.clear_all();
        self.intent.clean = Clean::Resting;
        self.parked.retry = true;
    }

    /// Writes the next page of a unit that has dirty blocks.
    fn write_page_of(&mut self, unit: u64, page: u64) {
        self.progress = true;
        let dirty = self.dev.generations.dirty();
        let end = self.block_of_unit(unit.saturating_add(1));
        let first = page.saturating_mul(DIRTY_PAGE_BLOCKS);
        let Some(block) = dirty.next_set(first).filter(|&block| block < end) else {
            // Of this unit all is durable.
            self.intent.left |= self.intent.leaving.clear_all() > 0;
            self.intent.clean = Clean::Unit(unit.saturating_add(1));
            return;
        };
        let page = block / DIRTY_PAGE_BLOCKS;
        let found = self.dev.slots.lock().alloc_run(1);
        let Some((slot, _)) = found else {
            // There are better uses for the last slots.
            self.put_back();
            return;
        };
        let intent = &mut self.intent;
        let Some(out) = intent.page.buffer() else { return };
        let area = page.saturating_mul(DIRTY_PAGE_BLOCKS) >> AREA_BLOCKS_SHIFT;
        for (area, place) in (area..).zip(out.chunks_exact_mut(2)) {
            if let Some(place) = place.first_chunk_mut::<2>() {
                let mask = if area < dirty.areas() { dirty.area_mask(area) } else { 0 };
                *place = mask.to_le_bytes();
            }
        }
        let crc = crc32c(out);
        let sector = self.dev.layout().slot_block(slot).saturating_mul(BLOCK_SECTORS.into());
        add(&self.dev.totals.region_bytes, BLOCK_BYTES.into());
        let region = self.dev.region;
        let bytes = BLOCK_BYTES as usize;
        if intent.page.write(&region, sector, bytes, Durability::Cached).is_err() {
            self.dev.slots.lock().free(slot);
            self.intent_failed();
            return;
        }
        self.intent.clean = Clean::Writing { unit, page, slot, crc };
    }

    fn page_written(&mut self, result: Result) {
        let Clean::Writing { unit, page, slot, crc } = self.intent.clean else { return };
        self.progress = true;
        if result.is_err() {
            self.intent.clean = Clean::Resting;
            self.intent_failed();
            return;
        }
        // The entry only now: without the page it would speak for another content.
        let id = self.dev.coming();
        let _ = self.dev.slots.lock().insert(slot, id, page, SlotKind::Dirty, crc);
        let [wait, _] = self.index.mark(&self.dev.layout(), slot, 1, true);
        self.intent.clean = Clean::Indexing { unit, page, slot, wait };
    }

    fn page_durable(&mut self, unit: u64, page: u64, slot: u32) {
        self.progress = true;
        let place = self.intent.pages.get_mut(page as usize);
        let old = place.map_or(NO_SLOT, |place| core::mem::replace(place, slot));
        if old == NO_SLOT {
            self.intent.clean = Clean::Pages { unit, page: page.saturating_add(1) };
            return;
        }
        // Whoever wrote to its slot now would make it, after a crash, a page that is damaged.
        self.dev.slots.lock().vacate(old);
        let [wait, _] = self.index.mark(&self.dev.layout(), old, 1, true);
        self.intent.clean = Clean::Retiring { unit, page, slot: old, wait };
    }

    /// Frees the pages of generations that a sealed snapshot has.
    fn sweep_pages(&mut self) {
        let total = self.dev.layout().slots;
        if self.intent.sweep >= total {
            return;
        }
        self.progress = true;
        let end = self.intent.sweep.saturating_add(STEP).min(total);
        for slot in self.intent.sweep..end {
            let freed = {
                let mut slots = self.dev.slots.lock();
                let over = slots
                    .entry(slot)
                    .is_some_and(|e| e.kind == SlotKind::Dirty && e.snapshot <= self.base_id);
                over && slots.free(slot).is_some()
            };
            if freed {
                self.index.mark(&self.dev.layout(), slot, 1, false);
            }
        }
        self.intent.sweep = if end < total { end } else { u32::MAX };
    }
}
