// SPDX-License-Identifier: GPL-2.0-only

//! Writing what was decided, in an order in which a crash at any place leaves no less than there was.

use std::io;

use presnap_engine::region::root::{ROOT_BYTES, ROOT_CLEAN};

use crate::medium::Medium;
use crate::region::{Work, Write};
use crate::{index, Checked};

impl Checked {
    /// Whether there is anything to be written.
    pub fn changes(&self) -> bool {
        let work = &self.work;
        !work.exhausted
            && (work.root_changed
                || !work.superblocks.is_empty()
                || !work.slots.is_empty()
                || !work.intent.writes(work.superblock.region_uuid).is_empty()
                || !work.index_changed.is_empty())
    }

    /// Repairs what can be.
    ///
    /// 1. A copy of the superblock: nobody reads the bad one.
    /// 2. Slots whose content is wrong: it stays wrong until all of it is written.
    /// 3. The root: what is not known from here on, which snapshots there are, and that the region was not closed in
    ///    order; so a write to maps or index that is cut off passes for that, and for nothing else.
    /// 4. The intent map, which says no less than before.
    /// 5. The index.
    /// 6. The root with the mark of an orderly close, if it had that.
    ///
    /// # Errors
    ///
    /// Those of the device.
    pub fn repair(mut self, medium: &dyn Medium) -> io::Result<()> {
        if !self.changes() {
            return Ok(());
        }
        let work = &mut self.work;
        put(medium, &std::mem::take(&mut work.superblocks))?;
        put(medium, &std::mem::take(&mut work.slots))?;
        let maps = work.intent.writes(work.superblock.region_uuid);
        let index = index::writes(work);
        let more = !maps.is_empty() || index.iter().any(|writes| !writes.is_empty());
        let flags = work.root.header.flags;
        if work.root_changed || more {
            if more {
                work.root.header.flags &= !ROOT_CLEAN;
            }
            put_root(work, medium)?;
        }
        for map in maps {
            put(medium, &[map])?;
        }
        for writes in index {
            put(medium, &writes)?;
        }
        if work.root.header.flags != flags {
            work.root.header.flags = flags;
            put_root(work, medium)?;
        }
        Ok(())
    }
}

/// Writes, and waits until it is durable.
fn put(medium: &dyn Medium, writes: &[Write]) -> io::Result<()> {
    for write in writes {
        medium.write(write.block, &write.bytes)?;
    }
    if !writes.is_empty() {
        medium.flush()?;
    }
    Ok(())
}

/// Writes the next version of the root.
fn put_root(work: &mut Work, medium: &dyn Medium) -> io::Result<()> {
    let copy = work.root_copy.other();
    work.root.header.seq = work.root.header.seq.saturating_add(1);
    let mut bytes = vec![0; ROOT_BYTES];
    if let Some(place) = bytes.first_chunk_mut() {
        work.root.encode_into(place);
    }
    put(medium, &[Write { block: work.layout.root_block(copy), bytes }])?;
    work.root_copy = copy;
    Ok(())
}
