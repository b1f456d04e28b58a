// SPDX-License-Identifier: GPL-2.0-only

//! The manifest: the chunks of a delta, written to slots page by page.

use super::Worker;
use crate::device::add;
use kernel::prelude::*;
use kernel::sync::Arc;
use presnap_abi::clock::crc32c as crc32c_of;
use presnap_abi::io::{Client, Durability, Transfer};
use presnap_abi::memory::array_of;
use presnap_abi::thread::Wake;
use presnap_engine::chunker::RUN_BLOCKS_MAX;
use presnap_engine::crc32c::combine;
use presnap_engine::freeze::{DropReason, Event, Phase};
use presnap_engine::geometry::{area_of, BLOCK_BYTES, BLOCK_SECTORS};
use presnap_engine::manifest::{chain_crc, Chunk, PageBuilder, PAGE_BYTES, PAGE_CHUNKS};
use presnap_engine::region::{Layout, SlotKind, NO_SLOT};

/// Blocks put into the manifest in one pass: guards must not wait for it.
const BLOCKS_PER_PASS: u32 = 64;

/// See the module.
pub(crate) struct Manifest {
    transfer: KBox<Transfer>,
    writing: bool,
    /// The chunks of the page that is being filled.
    page: KVVec<Chunk>,
    len: usize,
    open: Option<Chunk>,
    /// Slot of the page that is being filled.
    slot: u32,
    page_no: u32,
    chunks: u32,
    crc: u32,
    head_slot: u32,
    cursor: u64,
    /// All blocks have been put into chunks.
    scanned: bool,
    /// The last page is on its way or written.
    last: bool,
}

impl Manifest {
    pub(crate) fn new(client: &Arc<Client>, wake: &Arc<Wake>) -> Result<Self> {
        Ok(Self {
            transfer: Transfer::new(client, wake, PAGE_BYTES)?,
            writing: false,
            page: array_of(PAGE_CHUNKS as usize, Chunk::default())?,
            len: 0,
            open: None,
            slot: NO_SLOT,
            page_no: 0,
            chunks: 0,
            crc: 0,
            head_slot: NO_SLOT,
            cursor: 0,
            scanned: false,
            last: false,
        })
    }

    pub(crate) fn in_flight(&self) -> bool {
        self.writing
    }

    /// Begins a new manifest.
    pub(super) fn restart(&mut self) {
        self.len = 0;
        self.open = None;
        self.slot = NO_SLOT;
        self.page_no = 0;
        self.chunks = 0;
        self.crc = 0;
        self.head_slot = NO_SLOT;
        self.cursor = 0;
        self.scanned = false;
        self.last = false;
    }

    fn full(&self) -> bool {
        self.len >= PAGE_CHUNKS as usize
    }

    fn push(&mut self, chunk: Chunk) {
        if let Some(place) = self.page.get_mut(self.len) {
            *place = chunk;
            self.len = self.len.saturating_add(1);
            self.chunks = self.chunks.saturating_add(1);
        }
    }
}

impl Worker {
    /// Takes the result of a page's write.
    pub(super) fn reap_manifest(&mut self) {
        if !self.manifest.writing {
            return;
        }
        let Some(result) = self.manifest.transfer.result() else { return };
        self.progress = true;
        self.manifest.writing = false;
        if result.is_err() {
            add(&self.dev.totals.io_errors, 1);
            self.region_failed();
        }
    }

    /// Writes the manifest, then what differs of the index.
    pub(super) fn run_manifest(&mut self, now: u64) {
        if self.snapshot.phase() != Phase::Manifest || self.manifest.writing {
            return;
        }
        if self.manifest.last {
            if !self.index.flush {
                // Of a sealed delta, the index is plain.
                self.index.confirm(false);
            }
            self.index.flush = true;
            if self.index.clean() && self.origin_flush.settled() {
                self.index.flush = false;
                self.record.manifest_pages = self.manifest.page_no;
                self.record.manifest_chunks = self.manifest.chunks;
                self.record.manifest_crc = self.manifest.crc;
                self.record.manifest_head_slot = self.manifest.head_slot;
                self.report(Event::ManifestDurable);
            }
            return;
        }
        if !self.manifest.scanned && !self.manifest.full() {
            self.collect_chunks(now);
        }
        if self.manifest.full() || self.manifest.scanned {
            self.write_page();
        }
    }

    /// Makes chunks of the next blocks of the delta: neighbours in the origin and in the region.
    fn collect_chunks(&mut self, now: u64) {
        self.progress = true;
        for _ in 0..BLOCKS_PER_PASS {
            if self.manifest.full() {
                return;
            }
            let Some(block) = self.dev.generations.delta().next_set(self.manifest.cursor) else {
                if let Some(open) = self.manifest.open.take() {
                    self.manifest.push(open);
                }
                self.manifest.scanned = true;
                return;
            };
            self.manifest.cursor = block.saturating_add(1);
            let found = {
                let slots = self.dev.slots.lock();
                slots.lookup(self.record.id, block).and_then(|s| Some((s, slots.entry(s)?.crc)))
            };
            let Some((slot, crc)) = found else {
                pr_err!("block {block} of snapshot {} has no slot\n", self.record.id);
                self.report(Event::Fail(DropReason::IoError));
                return;
            };
            let fits = self.manifest.open.as_ref().is_some_and(|open| {
                open.end_block() == Some(block)
                    && Layout::contiguous(open.slot, open.length_blocks.saturating_add(1))
                    && open.slot.checked_add(open.length_blocks) == Some(slot)
                    && open.length_blocks < RUN_BLOCKS_MAX
            });
            match self.manifest.open.as_mut() {
                Some(open) if fits => {
                    open.length_blocks = open.length_blocks.saturating_add(1);
                    open.checksum = combine(open.checksum, crc, BLOCK_BYTES.into());
                }
                _ => {
                    let score = self.stage.score_after(area_of(block), now).0;
                    let chunk = Chunk {
                        start_block: block,
                        length_blocks: 1,
                        slot,
                        score,
                        flags: 0,
                        checksum: crc,
                    };
                    if let Some(done) = self.manifest.open.replace(chunk) {
                        self.manifest.push(done);
                    }
                }
            }
        }
    }

    /// The snapshot was dropped: gives back the slot of a page that was not written.
    pub(super) fn forget_manifest(&mut self) {
        let slot = core::mem::replace(&mut self.manifest.slot, NO_SLOT);
        if slot != NO_SLOT {
            self.dev.slots.lock().free(slot);
        }
    }

    fn page_slot(&mut self) -> Option<u32> {
        let found = self.dev.slots.lock().alloc_run(1);
        if found.is_none() {
            if self.drop_staged() == 0 {
                self.overflow();
            }
            return None;
        }
        found.map(|(slot, _)| slot)
    }

    /// Writes the page that has been filled.
    fn write_page(&mut self) {
        if self.manifest.len == 0 && self.manifest.page_no == 0 {
            // An empty delta has no manifest.
            self.manifest.last = true;
            self.progress = true;
            return;
        }
        if self.manifest.slot == NO_SLOT {
            let Some(slot) = self.page_slot() else { return };
            self.manifest.slot = slot;
            self.manifest.head_slot = slot;
        }
        let last = self.manifest.scanned;
        let next = if last {
            None
        } else {
            match self.page_slot() {
                Some(slot) => Some(slot),
                None => return,
            }
        };
        let (id, page_no, slot) = (self.record.id, self.manifest.page_no, self.manifest.slot);
        let m = &mut self.manifest;
        let Some(out) = m.transfer.buffer().and_then(|b| b.first_chunk_mut::<PAGE_BYTES>()) else {
            return;
        };
        let mut builder = PageBuilder::new(out, id, page_no);
        for chunk in m.page.iter().take(m.len) {
            let _ = builder.push(chunk);
        }
        let page_crc = builder.finish(next);
        let content_crc = m.transfer.buffer().map_or(0, |b| crc32c_of(b));
        m.crc = chain_crc(m.crc, page_crc);
        m.page_no = page_no.saturating_add(1);
        m.len = 0;
        m.last = last;
        m.slot = next.unwrap_or(NO_SLOT);
        let _ =
            self.dev.slots.lock().insert(slot, id, page_no.into(), SlotKind::Manifest, content_crc);
        self.index.mark(&self.dev.layout(), slot, 1, false);
        let sector = self.dev.layout().slot_block(slot).saturating_mul(BLOCK_SECTORS.into());
        let region = self.dev.region;
        self.progress = true;
        add(&self.dev.totals.region_bytes, PAGE_BYTES as u64);
        let written = self.manifest.transfer.write(&region, sector, PAGE_BYTES, Durability::Cached);
        if written.is_err() {
            self.region_failed();
            return;
        }
        self.manifest.writing = true;
    }
}
