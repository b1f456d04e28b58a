// SPDX-License-Identifier: GPL-2.0-only

//! The two copies of an index block, and the slot table that is made of it.

use presnap_engine::region::index::{DIRTY_PAGE_BLOCKS, INDEX_BYTES, INDEX_ENTRIES};
use presnap_engine::region::{
    Copy2, IndexBlock, IndexEntry, IndexPick, Limits, SlotKind, MAX_ORIGIN_BLOCKS,
};
use presnap_engine::slots::{Doubt, SlotEntry, SlotError, SlotTable};

use crate::bytes::{mend, says, Input};
use crate::hostile::ENTRY as FIELDS;

/// Of a region in which the last index block describes slots that do not exist.
const LIMITS: Limits =
    Limits { region_uuid: [9; 16], slots: 1040, origin_blocks: 1 << 20, next_snapshot: 7 };
/// Of the region's five index blocks, the last and one before.
const NUMBERS: [u32; 2] = [1, 4];
const HEADER: usize = 32;
const ENTRY: usize = 16;

pub(crate) type Slots = SlotTable<Vec<SlotEntry>, Vec<u32>>;

/// A copy: a byte of choices, the header, then entries, each with its place before it.
fn copy(input: &mut Input<'_>, others: &[u8]) -> Vec<u8> {
    if input.is_empty() {
        return vec![0; INDEX_BYTES];
    }
    let choice = input.u8();
    // The second copy is most often another version of the first.
    let mut out = if choice & 0x40 != 0 { others.to_vec() } else { vec![0; INDEX_BYTES] };
    input.fill(&mut out, HEADER);
    for _ in 0..choice & 15 {
        // The last byte stands for the first slot that does not exist.
        let at = match input.u8() {
            u8::MAX => (LIMITS.slots % INDEX_ENTRIES) as usize,
            at => at.into(),
        };
        if let Some(place) = out[HEADER..].chunks_exact_mut(ENTRY).nth(at) {
            input.fill(place, ENTRY);
            if choice & 0x20 != 0 {
                let numbers =
                    [LIMITS.origin_blocks, 1040, LIMITS.next_snapshot.into(), 0, 1, u64::MAX];
                input.tie(place, FIELDS, &numbers);
            }
        }
    }
    if choice & 0x80 == 0 {
        mend(&mut out, 24);
    }
    out
}

/// What an accepted index block must be; returns what it holds.
pub(crate) fn sound(
    block: &IndexBlock<'_>,
    number: u32,
    limits: &Limits,
) -> Vec<(u32, IndexEntry)> {
    let first = number * INDEX_ENTRIES;
    let used: Vec<_> = block.used().collect();
    let mut last = None;
    for (slot, e) in &used {
        assert!((first..first + INDEX_ENTRIES).contains(slot) && *slot < limits.slots);
        assert!(last < Some(*slot) && e.snapshot > 0);
        assert!(u64::from(e.snapshot) <= u64::from(limits.next_snapshot) + 1);
        match e.kind {
            SlotKind::Free => panic!("a free slot in use"),
            SlotKind::Data | SlotKind::Unconfirmed => {
                assert!(e.block < limits.origin_blocks && e.block < MAX_ORIGIN_BLOCKS)
            }
            SlotKind::Manifest => assert!(e.block < u64::from(limits.slots)),
            SlotKind::Dirty => assert!(e.block * DIRTY_PAGE_BLOCKS < limits.origin_blocks),
        }
        last = Some(*slot);
    }
    used
}

pub(crate) fn encode(
    number: u32,
    seq: u64,
    used: &[(u32, IndexEntry)],
    limits: &Limits,
) -> Vec<u8> {
    let mut entries = [IndexEntry::FREE; INDEX_ENTRIES as usize];
    for (slot, e) in used {
        entries[(slot - number * INDEX_ENTRIES) as usize] = *e;
    }
    let mut out = vec![0xee; INDEX_BYTES];
    let place = out.first_chunk_mut().expect("4 KiB");
    IndexBlock::encode(place, limits.region_tag(), number, seq, entries.into_iter());
    out
}

/// A table without entries.
pub(crate) fn table(slots: u32) -> Slots {
    let count = slots as usize;
    SlotTable::new(vec![SlotEntry::ZERO; count], vec![0; count], slots).expect("a table")
}

/// Puts entries into a table, as the kernel does at opening.
pub(crate) fn load(slots: &mut Slots, used: &[(u32, IndexEntry)]) {
    let mut budget = slots.load_budget();
    for (slot, e) in used {
        let before = slots.used();
        match slots.load(*slot, e, &mut budget) {
            Ok(()) => {
                assert_eq!(slots.used(), before + 1);
                assert_eq!(slots.entry(*slot), Some(*e));
                if matches!(e.kind, SlotKind::Data | SlotKind::Unconfirmed) {
                    let found = slots.lookup(e.snapshot, e.block).expect("it, or one like it");
                    match slots.doubt(*slot) {
                        Some(Doubt::Double { other }) => {
                            let twin = slots.entry(other).expect("a slot in use");
                            assert!(twin.block == e.block && twin.snapshot == e.snapshot);
                        }
                        doubt => {
                            assert_eq!(found, *slot);
                            assert_eq!(doubt.is_some(), e.kind == SlotKind::Unconfirmed);
                        }
                    }
                    let (id, _) =
                        slots.lookup_at_or_after(e.snapshot, e.block).expect("at least it");
                    assert_eq!(id, e.snapshot);
                }
            }
            Err(why) => {
                says(why.as_str());
                assert_eq!((slots.used(), slots.entry(*slot)), (before, None));
                assert_eq!(why, SlotError::Crowded);
            }
        }
    }
}

/// All slots that are left can be had, and all can be given back.
pub(crate) fn drain(slots: &mut Slots) {
    let mut left = slots.total() - slots.used();
    while let Some((slot, length)) = slots.alloc_run(16) {
        assert!((1..=16).contains(&length) && slot + length <= slots.total() && length <= left);
        left -= length;
    }
    assert_eq!((left, slots.used()), (0, slots.total()));
    for slot in 0..slots.total() {
        slots.free(slot);
    }
    assert_eq!(slots.used(), 0);
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let number = NUMBERS[usize::from(input.u8() & 1)];
    let a = copy(&mut input, &[0; INDEX_BYTES]);
    let b = copy(&mut input, &a);
    let copies = [a, b];
    let decoded = [0, 1].map(|i| match IndexBlock::decode(&copies[i], number, &LIMITS) {
        Ok(block) => {
            let used = sound(&block, number, &LIMITS);
            assert!(encode(number, block.seq(), &used, &LIMITS) == copies[i], "not what was read");
            Some(block.seq())
        }
        Err(e) => {
            says(e);
            None
        }
    });
    match IndexBlock::pick(&copies[0], &copies[1], number, &LIMITS) {
        Ok(IndexPick::Found(picked)) => {
            let [mine, other] = [picked.copy, picked.copy.other()].map(|c| decoded[c.index()]);
            assert!(mine >= other && mine == Some(picked.value.seq()));
            assert!(other.is_none() || picked.other_fault.is_none());
            let used = sound(&picked.value, number, &LIMITS);
            let mut slots = table(LIMITS.slots);
            load(&mut slots, &used);
            drain(&mut slots);
            if picked.value.check_room().is_ok() {
                // The next version counts.
                let seq = picked.value.seq().saturating_add(1);
                let next = encode(number, seq, &used[..used.len() / 2], &LIMITS);
                let old = &copies[picked.copy.index()];
                let again = if picked.copy == Copy2::A { (old, &next) } else { (&next, old) };
                match IndexBlock::pick(again.0, again.1, number, &LIMITS) {
                    Ok(IndexPick::Found(p)) => {
                        assert_eq!((p.copy, p.value.seq()), (picked.copy.other(), seq));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        Ok(IndexPick::Blank { fault }) => {
            assert_eq!(decoded, [None, None]);
            assert!(fault.is_none() || copies.iter().any(|c| c.iter().any(|&x| x != 0)));
        }
        Err(e) => {
            says(e);
            assert_eq!(decoded, [None, None]);
        }
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for (choice, number) in NUMBERS.into_iter().enumerate() {
        let first = number * INDEX_ENTRIES;
        let entry = |i: u32| IndexEntry {
            block: u64::from(i) * 1000,
            kind: [SlotKind::Data, SlotKind::Unconfirmed, SlotKind::Manifest][i as usize % 3],
            snapshot: 1 + i,
            crc: !i,
        };
        let mut used: Vec<_> = (0..4).map(|i| (first + 4 * i, entry(i))).collect();
        // The last slot that exists is one of them.
        used.push(((first + INDEX_ENTRIES).min(LIMITS.slots) - 1, entry(4)));
        let mut one = vec![choice as u8];
        for (seq, marks) in [(3, 5), (4, 0x45)] {
            let bytes = encode(number, seq, &used, &LIMITS);
            one.push(marks);
            one.extend(&bytes[..HEADER]);
            for (slot, _) in &used {
                let at = (slot - first) as usize;
                one.push(at as u8);
                one.extend(&bytes[HEADER + at * ENTRY..][..ENTRY]);
            }
            out.push(one.clone());
        }
    }
    out
}
