// SPDX-License-Identifier: GPL-2.0-only

//! Durable intent: maps and log.
//!
//! Of a damaged map that was the newer one nothing is missing that matters: the older one has all bits that the newer had
//! before, and what was added lies in the log; if it does not any more, later records do, and the log is seen to lack some.

use presnap_engine::crc32c::crc32c;
use presnap_engine::region::intent::{replay, ExtentRun, INTENT_MAP_BYTES};
use presnap_engine::region::layout::{INTENT_BLOCKS, LOG_BLOCKS, LOG_START_BLOCK};
use presnap_engine::region::{Copy2, Extents, IntentMap, Layout};

use crate::medium::{read, Medium, BLOCK};
use crate::region::{Refused, Work, Write, VERSIONS};
use crate::report::Remedy;

/// What may have changed, and what is to be written of it.
#[derive(Default)]
pub(crate) struct Intent {
    /// A bit an extent.
    masks: Vec<u16>,
    extents: Option<Extents>,
    /// The current map.
    map: Option<IntentMap>,
    copy: Option<Copy2>,
    /// The records up to this one are in `masks`.
    log_seq: u64,
    /// A map has to be written.
    changed: bool,
}

impl Intent {
    /// How many extents may have changed.
    pub(crate) fn extents(&self) -> u64 {
        self.masks.iter().map(|mask| u64::from(mask.count_ones())).sum()
    }

    /// Blocks of an extent.
    pub(crate) fn extent_blocks(&self) -> u64 {
        self.extents.map_or(0, |e| 1 << e.shift)
    }

    fn set(&mut self, run: ExtentRun) {
        for extent in u64::from(run.start)..u64::from(run.start) + u64::from(run.len) {
            if let Some(mask) = self.masks.get_mut((extent / 16) as usize) {
                *mask |= 1 << (extent % 16);
            }
        }
    }

    /// All of these blocks pass for changed.
    pub(crate) fn set_blocks(&mut self, first: u64, count: u64) {
        let Some(extents) = self.extents else { return };
        let (start, len) = extents.of(first, count);
        let end = (start + len).min(extents.count.into());
        self.set(ExtentRun { start: start as u32, len: end.saturating_sub(start) as u32 });
        self.changed = true;
    }

    /// Nothing is said of any extent any more: the next delta is full.
    fn begin_anew(&mut self, log_seq: u64) {
        self.masks.fill(0);
        self.log_seq = log_seq;
        self.changed = true;
    }

    /// The maps to be written, one after the other.
    pub(crate) fn writes(&self, region_uuid: [u8; 16]) -> Vec<Write> {
        let Some(extents) = self.extents.filter(|_| self.changed) else { return Vec::new() };
        let encode = |copy: Copy2, seq: u64| {
            let map = IntentMap { seq, log_seq: self.log_seq, extents };
            let mut bytes = vec![0; INTENT_MAP_BYTES];
            if let Some(out) = bytes.first_chunk_mut() {
                let masks = self.masks.iter().copied();
                map.encode(out, region_uuid, masks, |bytes| crc32c(0, bytes));
            }
            Write { block: Layout::intent_block(copy), bytes }
        };
        match (self.copy, self.map) {
            (Some(copy), Some(map)) => vec![encode(copy.other(), map.seq.saturating_add(1))],
            // Neither copy is valid.
            _ => vec![encode(Copy2::A, 1), encode(Copy2::B, 2)],
        }
    }
}

/// Reads maps and log.
pub(crate) fn check(work: &mut Work, medium: &dyn Medium) -> Result<(), Refused> {
    let limits = work.limits();
    let extents = Extents::for_origin(limits.origin_blocks);
    let [a, b] = [Copy2::A, Copy2::B].map(|c| read(medium, Layout::intent_block(c), INTENT_BLOCKS));
    // A block that cannot be read is one that is damaged.
    let log: Vec<u8> = (0..LOG_BLOCKS)
        .flat_map(|no| {
            let block = read(medium, LOG_START_BLOCK + no, 1);
            if block.is_empty() {
                vec![0; BLOCK]
            } else {
                block
            }
        })
        .collect();
    work.intent.extents = Some(extents);
    work.intent.masks = vec![0; (extents.count as usize).div_ceil(16)];
    let picked = match IntentMap::pick(&a, &b, &limits) {
        Ok(picked) => picked,
        Err(e) => {
            let replayed = replay(&log, &IntentMap::fresh(extents), limits.region_tag(), |_| {});
            work.intent.begin_anew(replayed.newest_seq);
            work.need_full();
            work.error(
                format!("{e} (both copies): the next delta will be full"),
                Remedy::Repair("written anew, and noted that the next delta is full".into()),
            );
            return Ok(());
        }
    };
    let (bytes, other) = if picked.copy == Copy2::A { (&a, &b) } else { (&b, &a) };
    let map = picked.value;
    (work.intent.map, work.intent.copy) = (Some(map), Some(picked.copy));
    work.exhausted |= map.seq.saturating_add(VERSIONS) > u64::MAX >> 1;
    for (place, mask) in work.intent.masks.iter_mut().zip(IntentMap::masks(bytes)) {
        *place = mask;
    }
    let intent = &mut work.intent;
    let replayed = replay(&log, &map, limits.region_tag(), |run| intent.set(run));
    intent.log_seq = replayed.last_seq;
    // The other copy of a fresh region was never written.
    let blank = map.seq == 1 && !other.is_empty() && other.iter().all(|&byte| byte == 0);
    if let Some(fault) = picked.other_fault.filter(|_| !blank) {
        work.intent.changed = true;
        work.warning(
            format!("{fault} (copy {:?})", picked.copy.other()),
            Remedy::Repair("written anew from the other copy and the log".into()),
        );
    }
    if replayed.gap {
        work.intent.begin_anew(replayed.newest_seq.max(map.log_seq));
        work.need_full();
        work.error(
            "the intent log lacks a record: the next delta will be full".into(),
            Remedy::Repair("a new map, and noted that the next delta is full".into()),
        );
    }
    Ok(())
}
