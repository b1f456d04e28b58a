// SPDX-License-Identifier: GPL-2.0-only

//! An index in which every slot holds the same block, of another snapshot each: valid to the last bit, and to look one up is
//! to look at all. It must be refused, at once.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use presnap_engine::region::index::INDEX_ENTRIES;
use presnap_engine::region::root::ROOT_BYTES;
use presnap_engine::region::{Copy2, IndexBlock, IndexEntry, SlotKind};
use presnap_fuzz::bytes::{mend, put_u32};
use presnap_fuzz::recover::{recover, BLOCK};

use crate::rig::Rig;
use crate::Common;

pub(crate) fn run(args: &Common) -> Result<bool> {
    let mut rig = Rig::new(args)?;
    rig.format()?;
    let mut bytes = rig.read_region()?;
    let r = recover(&bytes[..]).map_err(anyhow::Error::msg)?;
    // So many snapshots there have been, it says.
    let root = r.layout.root_block(r.root_copy) as usize * BLOCK;
    put_u32(&mut bytes[root..], 48, 1 << 30);
    mend(&mut bytes[root..root + ROOT_BYTES], 12);
    for no in 0..r.layout.index_blocks {
        let first = r.layout.index_first_slot(no);
        let entry =
            |slot| IndexEntry { block: 7, kind: SlotKind::Data, snapshot: 1 + slot, crc: 0 };
        let entries = (first..r.layout.slots).take(INDEX_ENTRIES as usize).map(entry);
        let at = r.layout.index_copy_block(no, Copy2::A) as usize * BLOCK;
        let Some(place) = bytes[at..].first_chunk_mut() else { break };
        IndexBlock::encode(place, r.limits().region_tag(), no, 1, entries);
    }
    let forged = recover(&bytes[..]).map_err(anyhow::Error::msg)?;
    ensure!(forged.entries.len() == r.layout.slots as usize, "not every slot is in use");
    rig.write_region(&bytes)?;
    rig.log.mark()?;
    let begin = Instant::now();
    ensure!(rig.map()?.is_none(), "accepted after {:?}", begin.elapsed());
    let (took, words) = (begin.elapsed(), rig.log.words()?);
    ensure!(words.iter().any(|w| w.contains("its index cannot be")), "the words are {words:?}");
    ensure!(took < Duration::from_secs(60), "refused only after {took:?}");
    println!("{} slots of one block: refused after {took:?}", r.layout.slots);
    Ok(true)
}
