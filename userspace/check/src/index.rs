// SPDX-License-Identifier: GPL-2.0-only

//! The index: which copy of each block counts, and whether it can be relied on.

use presnap_engine::crc32c::crc32c;
use presnap_engine::region::index::{INDEX_BYTES, INDEX_ENTRIES};
use presnap_engine::region::{
    Copy2, FormatError, IndexBlock, IndexEntry, IndexPick, Limits, SlotKind,
};

use crate::medium::{read, Medium, BLOCK};
use crate::region::{Refused, Work, Write, VERSIONS};
use crate::report::Remedy;
use crate::Watch;

/// An index block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IndexState {
    /// Sequence number of the current version; 0 if there is none.
    seq: u64,
    /// Where the next version goes.
    next: Copy2,
    /// Both copies are damaged, and both are to be written.
    both: bool,
    /// It may not be written: it would say what is not certain.
    pub(crate) frozen: bool,
}

impl IndexState {
    const BLANK: Self = Self { seq: 0, next: Copy2::A, both: false, frozen: false };
}

/// Reads the index.
pub(crate) fn check(work: &mut Work, medium: &dyn Medium, watch: Watch<'_>) -> Result<(), Refused> {
    let limits = work.limits();
    let mut no = 0;
    while no < work.layout.index_blocks {
        let run = work.layout.index_run(no).max(1);
        let first = work.layout.index_copy_block(no, Copy2::A);
        let both = read(medium, first, 2 * u64::from(run));
        for i in 0..run {
            let (a, b) = if both.is_empty() {
                let at = first + 2 * u64::from(i);
                (read(medium, at, 1), read(medium, at + 1, 1))
            } else {
                let pair = &both[2 * BLOCK * i as usize..][..2 * BLOCK];
                (pair[..BLOCK].to_vec(), pair[BLOCK..].to_vec())
            };
            let state = check_block(work, no + i, &a, &b, &limits);
            work.index.push(state);
        }
        no += run;
        watch("index block", no.into(), work.layout.index_blocks.into());
    }
    settle_unconfirmed(work, medium);
    let base = work.root.header.base_id;
    let page = |e: &&IndexEntry| e.kind == SlotKind::Dirty && e.snapshot > base;
    let pages = work.entries.values().filter(page).count();
    work.note_found(work.entries.len() as u64, pages as u64);
    Ok(())
}

/// Entries that were written with their data count if that is there; if not, the origin has the block still. That is no
/// fault; the next version of the index block will say it.
fn settle_unconfirmed(work: &mut Work, medium: &dyn Medium) {
    let unconfirmed = |e: &IndexEntry| e.kind == SlotKind::Unconfirmed;
    let doubted: Vec<(u32, IndexEntry)> =
        work.entries.iter().filter(|(_, e)| unconfirmed(e)).map(|(slot, e)| (*slot, *e)).collect();
    for (slot, e) in doubted {
        if crc32c(0, &read(medium, work.layout.slot_block(slot), 1)) == e.crc {
            work.entries.insert(slot, IndexEntry { kind: SlotKind::Data, ..e });
        } else {
            work.entries.remove(&slot);
        }
    }
}

fn check_block(work: &mut Work, no: u32, a: &[u8], b: &[u8], limits: &Limits) -> IndexState {
    let mut state = IndexState::BLANK;
    match IndexBlock::pick(a, b, no, limits) {
        Ok(IndexPick::Blank { fault: None }) => {}
        Ok(IndexPick::Blank { fault: Some(fault) }) => {
            // The damaged one: of the other nothing is wrong, it is blank.
            let damaged = IndexBlock::decode(a, no, limits).err() == Some(fault)
                && !a.iter().all(|&byte| byte == 0);
            state.next = if damaged || a.is_empty() { Copy2::A } else { Copy2::B };
            missing(work, no, &mut state, fault, "first write", None);
        }
        Ok(IndexPick::Found(picked)) => {
            state.seq = picked.value.seq();
            state.next = picked.copy.other();
            work.entries.extend(picked.value.used());
            if let Err(e) = picked.value.check_room() {
                work.exhausted(&e);
            }
            work.exhausted |= state.seq.saturating_add(VERSIONS) > u64::MAX >> 1;
            if let Some(fault) = picked.other_fault {
                let other = if picked.copy == Copy2::A { b } else { a };
                let newer = whether_newer(other, no, state.seq, limits);
                missing(work, no, &mut state, fault, "one copy", newer);
            }
        }
        Err(fault) => {
            state.both = true;
            let lost = work.lose_images(u32::MAX);
            let words = format!("{fault} (index block {no}, both copies)");
            match lost {
                Some(images) => {
                    work.need_full();
                    work.index_changed.insert(no);
                    work.error(
                        words,
                        Remedy::Repair(format!(
                            "rebuilt from the manifests; the next delta is full{images}"
                        )),
                    );
                }
                None => {
                    state.frozen = true;
                    work.error(words, Remedy::Left(IMAGES.into()));
                    note_full(work);
                }
            }
        }
    }
    state
}

const IMAGES: &str =
    "what was preserved for images is not known any more; --drop-damaged gives the images up";

/// Pages of the dirty map may be missing: that is noted, whatever becomes of the rest.
fn note_full(work: &mut Work) {
    if work.need_full() {
        let words = "what has changed since the last snapshot may not be known any more";
        let remedy = "noted that the next delta is full";
        work.warning(words.into(), Remedy::Repair(remedy.into()));
    }
}

/// One copy is damaged, and the other may be an older version.
fn missing(
    work: &mut Work,
    no: u32,
    state: &mut IndexState,
    fault: FormatError,
    which: &str,
    newer: Option<bool>,
) {
    let words = format!("{fault} (index block {no}, {which})");
    let rewritten = "rewritten from the other copy and the manifests";
    // After a crash it is a write that was cut off: whoever waited for it did not go on. Opening it, the kernel goes on
    // from the other copy, too.
    if !work.clean || newer == Some(false) {
        work.index_changed.insert(no);
        work.warning(words, Remedy::Repair(rewritten.into()));
        return;
    }
    // What it had and the other has not: entries of manifests, which are found again; pages of the dirty map; blocks
    // preserved for images.
    match work.lose_images(u32::MAX) {
        Some(images) => {
            work.need_full();
            work.index_changed.insert(no);
            work.warning(
                words,
                Remedy::Repair(format!(
                    "{rewritten}; it may have been the newer one: the next delta is full{images}"
                )),
            );
        }
        None => {
            state.frozen = true;
            work.error(words, Remedy::Left(format!("it may have been the newer one: {IMAGES}")));
            note_full(work);
        }
    }
}

/// Whether a damaged copy was the newer version; `None` if that is not certain.
///
/// Its sequence number says so, if all else of the header is right and it is not the number that is damaged: with the
/// other number that it might have had, the checksum is wrong all the same.
fn whether_newer(damaged: &[u8], no: u32, valid_seq: u64, limits: &Limits) -> Option<bool> {
    let word = |at: usize| Some(u32::from_le_bytes(*damaged.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(u64::from_le_bytes(*damaged.get(at..)?.first_chunk()?));
    let header = word(0)? == presnap_engine::region::index::INDEX_MAGIC
        && word(4)? == no
        && long(16)? == limits.region_tag();
    let (older, newer) = (valid_seq.checked_sub(1)?, valid_seq.checked_add(1)?);
    let seq = long(8)?;
    let other = if seq == older { newer } else { older };
    if !header || (seq != older && seq != newer) {
        return None;
    }
    let mut with_other = damaged.to_vec();
    with_other.get_mut(8..16)?.copy_from_slice(&other.to_le_bytes());
    match IndexBlock::decode(&with_other, no, limits) {
        Err(e) if e.fault == presnap_engine::region::Fault::Checksum => Some(seq == newer),
        _ => None,
    }
}

/// The index blocks to be written: first each one's next version; then a second copy of those that had none.
pub(crate) fn writes(work: &Work) -> [Vec<Write>; 2] {
    let tag = work.limits().region_tag();
    let mut out = [Vec::new(), Vec::new()];
    for &no in &work.index_changed {
        let Some(state) = work.index.get(no as usize).filter(|state| !state.frozen) else {
            continue;
        };
        let first = work.layout.index_first_slot(no);
        let encode = |copy: Copy2, seq: u64| {
            let entries = (first..first + INDEX_ENTRIES)
                .map(|slot| work.entries.get(&slot).copied().unwrap_or(IndexEntry::FREE));
            let mut bytes = vec![0; INDEX_BYTES];
            if let Some(out) = bytes.first_chunk_mut() {
                IndexBlock::encode(out, tag, no, seq, entries);
            }
            Write { block: work.layout.index_copy_block(no, copy), bytes }
        };
        out[0].push(encode(state.next, state.seq.saturating_add(1)));
        if state.both {
            out[1].push(encode(state.next.other(), state.seq.saturating_add(2)));
        }
    }
    out
}
